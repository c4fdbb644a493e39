// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/cgroup"
)

// Names and versions that clients see.
const (
	runtimeName = "berth"
	apiVersion  = "v1"    // of the CRI
	kubeVersion = "0.1.0" // of the kubelet's API, which no kubelet looks at any more
)

// Version tells who we are.
func (s *Server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{
		Version: kubeVersion, RuntimeName: runtimeName, RuntimeVersion: s.cfg.Version, RuntimeApiVersion: apiVersion,
	}, nil
}

// Status tells whether pods can be run, and what the node can do.
func (s *Server) Status(ctx context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	network := &cri.RuntimeCondition{Type: cri.NetworkReady, Status: true}
	if err := s.cfg.Network.Ready(ctx); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	resp := &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			{Type: cri.RuntimeReady, Status: true}, network,
		}},
		// Only what is true: the scheduler places pods by it (KEP-5328).
		Features: &cri.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	for _, name := range append([]string{""}, s.cfg.Handlers...) {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &cri.RuntimeHandler{
			Name: name, Features: &cri.RuntimeHandlerFeatures{},
		})
	}
	if r.GetVerbose() && s.cfg.Details != nil {
		info, err := encoded(s.cfg.Details())
		if err != nil {
			return nil, err
		}
		resp.Info = info
	}
	return resp, nil
}

// RuntimeConfig tells the cgroup driver, which a kubelet follows (KEP-4033).
func (s *Server) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	driver := cri.CgroupDriver_CGROUPFS
	if s.cfg.Driver == cgroup.Systemd {
		driver = cri.CgroupDriver_SYSTEMD
	}
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the range of addresses for the pods of this node.
func (s *Server) UpdateRuntimeConfig(ctx context.Context, r *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	cidr := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if cidr == "" {
		return &cri.UpdateRuntimeConfigResponse{}, nil
	}
	return &cri.UpdateRuntimeConfigResponse{}, s.cfg.Network.SetPodCIDR(ctx, cidr)
}
