// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/sandbox"
)

// RunPodSandbox makes a pod that containers can be created in.
func (s *Server) RunPodSandbox(ctx context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	if r.GetConfig() == nil {
		return nil, fmt.Errorf("%w: config is missing", sandbox.ErrInvalid)
	}
	id, err := s.cfg.Pods.RunPod(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: string(id)}, nil
}

// StopPodSandbox ends all that runs in a pod. Again is no error.
func (s *Server) StopPodSandbox(ctx context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	return &cri.StopPodSandboxResponse{}, s.cfg.Pods.StopPod(ctx, r.GetPodSandboxId())
}

// RemovePodSandbox removes a pod and its containers. Again is no error.
func (s *Server) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	return &cri.RemovePodSandboxResponse{}, s.cfg.Pods.RemovePod(ctx, r.GetPodSandboxId())
}

// PodSandboxStatus tells of one pod.
func (s *Server) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	at := time.Now()
	st, err := s.cfg.Pods.PodStatus(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &cri.PodSandboxStatusResponse{Status: st, ContainersStatuses: s.statusesOf(st.Id), Timestamp: at.UnixNano()}
	if r.GetVerbose() {
		info, err := s.cfg.Pods.PodInfo(st.Id)
		if err != nil {
			return nil, err
		}
		if resp.Info, err = encoded(map[string]any{"info": info}); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// statusesOf returns the statuses of a pod's containers.
func (s *Server) statusesOf(pod string) (list []*cri.ContainerStatus) {
	for _, c := range s.cfg.Containers.Containers(&cri.ContainerFilter{PodSandboxId: pod}) {
		if st, err := s.cfg.Containers.ContainerStatus(c.Id); err == nil { // else it is gone meanwhile
			list = append(list, st)
		}
	}
	return list
}

// ListPodSandbox lists pods.
func (s *Server) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: s.cfg.Pods.Pods(r.GetFilter())}, nil
}

// PodSandboxStats tells what a pod uses.
func (s *Server) PodSandboxStats(ctx context.Context, r *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	st, err := s.cfg.Pods.PodStats(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats tells what pods use.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	list, err := s.cfg.Pods.ListPodStats(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &cri.ListPodSandboxStatsResponse{Stats: list}, nil
}

// encoded is a verbose answer: JSON by key.
func encoded(values map[string]any) (map[string]string, error) {
	info := make(map[string]string, len(values))
	for k, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("verbose answer: %w", err)
		}
		info[k] = string(b)
	}
	return info, nil
}
