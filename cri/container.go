// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"math"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/sandbox"
)

// CreateContainer makes a container, which has no process yet.
func (s *Server) CreateContainer(ctx context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	if r.GetConfig() == nil {
		return nil, fmt.Errorf("%w: config is missing", sandbox.ErrInvalid)
	}
	id, err := s.cfg.Containers.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &cri.CreateContainerResponse{ContainerId: string(id)}, nil
}

// StartContainer starts a container.
func (s *Server) StartContainer(ctx context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	return &cri.StartContainerResponse{}, s.cfg.Containers.StartContainer(ctx, r.GetContainerId())
}

// StopContainer ends a container within a grace period. Again is no error.
func (s *Server) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	return &cri.StopContainerResponse{}, s.cfg.Containers.StopContainer(ctx, r.GetContainerId(), seconds(r.GetTimeout()))
}

// seconds is a number of seconds, however large or small.
func seconds(n int64) time.Duration {
	return time.Duration(min(max(n, 0), math.MaxInt64/int64(time.Second))) * time.Second
}

// RemoveContainer removes a container, by force if it runs. Again is no error.
func (s *Server) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	return &cri.RemoveContainerResponse{}, s.cfg.Containers.RemoveContainer(ctx, r.GetContainerId())
}

// ListContainers lists containers.
func (s *Server) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: s.cfg.Containers.Containers(r.GetFilter())}, nil
}

// ContainerStatus tells of one container.
func (s *Server) ContainerStatus(ctx context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	st, err := s.cfg.Containers.ContainerStatus(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &cri.ContainerStatusResponse{Status: st}
	if r.GetVerbose() {
		info, err := s.cfg.Containers.ContainerInfo(ctx, st.Id)
		if err != nil {
			return nil, err
		}
		if resp.Info, err = encoded(map[string]any{"info": info}); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// UpdateContainerResources changes what a container may use.
func (s *Server) UpdateContainerResources(ctx context.Context, r *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	if r.GetLinux() == nil {
		return nil, fmt.Errorf("%w: linux is missing", sandbox.ErrInvalid)
	}
	return &cri.UpdateContainerResourcesResponse{}, s.cfg.Containers.UpdateResources(ctx, r.GetContainerId(), r.GetLinux())
}

// ReopenContainerLog makes a container's log go on in the file that has its path now.
func (s *Server) ReopenContainerLog(ctx context.Context, r *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	return &cri.ReopenContainerLogResponse{}, s.cfg.Commands.ReopenLog(ctx, r.GetContainerId())
}

// ContainerStats tells what a container uses.
func (s *Server) ContainerStats(ctx context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	st, err := s.cfg.Commands.ContainerStats(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats tells what containers use.
func (s *Server) ListContainerStats(ctx context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	list, err := s.cfg.Commands.ListContainerStats(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &cri.ListContainerStatsResponse{Stats: list}, nil
}

// ExecSync runs a command and returns what it wrote.
func (s *Server) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	return s.cfg.Commands.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), seconds(r.GetTimeout()))
}

// Exec returns a URL for the streams of a command.
func (s *Server) Exec(_ context.Context, r *cri.ExecRequest) (*cri.ExecResponse, error) {
	if err := s.runs(r.GetContainerId()); err != nil {
		return nil, err
	}
	url, err := s.cfg.Streams.GetExec(r)
	if err != nil {
		return nil, err
	}
	return &cri.ExecResponse{Url: url}, nil
}

// Attach returns a URL for the streams of a container.
func (s *Server) Attach(_ context.Context, r *cri.AttachRequest) (*cri.AttachResponse, error) {
	if err := s.runs(r.GetContainerId()); err != nil {
		return nil, err
	}
	url, err := s.cfg.Streams.GetAttach(r)
	if err != nil {
		return nil, err
	}
	return &cri.AttachResponse{Url: url}, nil
}

// PortForward returns a URL for connections to a pod.
func (s *Server) PortForward(_ context.Context, r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	st, err := s.cfg.Pods.PodStatus(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if st.State != cri.PodSandboxState_SANDBOX_READY {
		return nil, fmt.Errorf("pod %s: %w", st.Id, sandbox.ErrState)
	}
	url, err := s.cfg.Streams.GetPortForward(r)
	if err != nil {
		return nil, err
	}
	return &cri.PortForwardResponse{Url: url}, nil
}

// runs returns an error unless a container runs: the caller gets it now, and not from
// a URL that leads nowhere.
func (s *Server) runs(id string) error {
	st, err := s.cfg.Containers.ContainerStatus(id)
	if err != nil {
		return err
	}
	if st.State != cri.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %s: %w", st.Id, sandbox.ErrNotRunning)
	}
	return nil
}
