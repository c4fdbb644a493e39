// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/sandbox"
)

// GetContainerEvents tells of every change of a pod or a container from now on, with
// the statuses of the whole pod (KEP-3386). A client that does not keep up is cut off.
func (s *Server) GetContainerEvents(_ *cri.GetEventsRequest, out grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	return s.cfg.Commands.Events(out.Context(), func(e sandbox.Event) error {
		r := &cri.ContainerEventResponse{ContainerId: string(e.Container), CreatedAt: e.At.UnixNano()}
		if e.Container == "" {
			r.ContainerId = string(e.Pod)
		}
		switch e.Kind {
		case sandbox.EventCreated:
			r.ContainerEventType = cri.ContainerEventType_CONTAINER_CREATED_EVENT
		case sandbox.EventStarted:
			r.ContainerEventType = cri.ContainerEventType_CONTAINER_STARTED_EVENT
		case sandbox.EventStopped:
			r.ContainerEventType = cri.ContainerEventType_CONTAINER_STOPPED_EVENT
		case sandbox.EventDeleted:
			r.ContainerEventType = cri.ContainerEventType_CONTAINER_DELETED_EVENT
		}
		if st, err := s.cfg.Pods.PodStatus(string(e.Pod)); err == nil {
			r.PodSandboxStatus, r.ContainersStatuses = st, s.statusesOf(st.Id)
		}
		return out.Send(r)
	})
}
