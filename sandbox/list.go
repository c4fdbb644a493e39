// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/store"
)

// Lists and statuses come from memory: they take no lock of an object, and wait for
// nothing that is under way.

// Pods lists the pods that a filter lets through, the oldest first. Those that are
// being made are not listed: a kubelet would take them for broken.
func (rt *Runtime) Pods(f *cri.PodSandboxFilter) []*cri.PodSandbox {
	var list []*cri.PodSandbox
	id, ok := rt.fullPodID(f.GetId())
	if !ok {
		return nil
	}
	for r := range rt.cfg.Store.Pods() {
		state, listed := podListed(PodState(r.State))
		switch {
		case !listed,
			id != "" && r.ID != id,
			f.GetState() != nil && f.GetState().GetState() != state,
			!selects(f.GetLabelSelector(), r.Labels):
			continue
		}
		list = append(list, &cri.PodSandbox{
			Id: string(r.ID), Metadata: podMetadata(r), State: state, CreatedAt: r.CreatedAt.UnixNano(),
			Labels: r.Labels, Annotations: r.Annotations, RuntimeHandler: r.Handler,
		})
	}
	return list
}

// PodStatus returns what a kubelet wants to know of a pod, or ErrNotFound.
func (rt *Runtime) PodStatus(id string) (*cri.PodSandboxStatus, error) {
	p, r, err := rt.podRecord(id)
	if err != nil {
		return nil, err
	}
	state, listed := podListed(PodState(r.State))
	if !listed {
		return nil, notMade("pod", string(r.ID))
	}
	s := &cri.PodSandboxStatus{
		Id: string(r.ID), Metadata: podMetadata(r), State: state, CreatedAt: r.CreatedAt.UnixNano(),
		Labels: r.Labels, Annotations: r.Annotations, RuntimeHandler: r.Handler,
		Network: new(cri.PodSandboxNetworkStatus),
		Linux:   &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: new(cri.NamespaceOption)}},
	}
	if a := r.Network.Attachment; a != nil {
		for i, ip := range a.IPs {
			if i == 0 {
				s.Network.Ip = ip.String()
				continue
			}
			s.Network.AdditionalIps = append(s.Network.AdditionalIps, &cri.PodIP{Ip: ip.String()})
		}
	}
	// A kubelet makes a pod anew whose network is not of the kind that it asked for.
	if r.Network.Host {
		s.Linux.Namespaces.Options.Network = cri.NamespaceMode_NODE
	}
	if cfg, err := p.configOf(); err == nil && cfg != nil {
		if o := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
			s.Linux.Namespaces.Options = o
		}
	}
	return s, nil
}

// Containers lists the containers that a filter lets through, the oldest first.
func (rt *Runtime) Containers(f *cri.ContainerFilter) []*cri.Container {
	podID, ok := rt.fullPodID(f.GetPodSandboxId())
	if !ok {
		return nil
	}
	id := store.ContainerID("")
	if f.GetId() != "" {
		c, err := rt.findContainer(f.GetId())
		if err != nil {
			return nil
		}
		id = c.id
	}
	var list []*cri.Container
	records := rt.cfg.Store.Containers()
	if podID != "" {
		records = rt.cfg.Store.ContainersOf(podID)
	}
	for r := range records {
		state, listed := containerListed(ContainerState(r.State))
		switch {
		case !listed,
			id != "" && r.ID != id,
			f.GetState() != nil && f.GetState().GetState() != state,
			!selects(f.GetLabelSelector(), r.Labels):
			continue
		}
		list = append(list, &cri.Container{
			Id: string(r.ID), PodSandboxId: string(r.PodID), Metadata: containerMetadata(r), Image: imageSpec(r),
			ImageRef: r.ImageRef, ImageId: string(r.ImageID), State: state, CreatedAt: r.CreatedAt.UnixNano(),
			Labels: r.Labels, Annotations: r.Annotations,
		})
	}
	return list
}

// ContainerStatus returns what a kubelet wants to know of a container, or ErrNotFound.
func (rt *Runtime) ContainerStatus(id string) (*cri.ContainerStatus, error) {
	c, r, err := rt.containerRecord(id)
	if err != nil {
		return nil, err
	}
	state, listed := containerListed(ContainerState(r.State))
	if !listed {
		return nil, notMade("container", string(r.ID))
	}
	s := &cri.ContainerStatus{
		Id: string(r.ID), Metadata: containerMetadata(r), State: state,
		CreatedAt: r.CreatedAt.UnixNano(), StartedAt: nanos(r.StartedAt), FinishedAt: nanos(r.FinishedAt),
		Image: imageSpec(r), ImageRef: r.ImageRef, ImageId: string(r.ImageID),
		Reason: r.Reason, Message: r.Message, Labels: r.Labels, Annotations: r.Annotations,
	}
	if state == cri.ContainerState_CONTAINER_EXITED {
		s.ExitCode = r.ExitCode
	}
	if pod, ok := rt.cfg.Store.Pod(r.PodID); ok && pod.LogDirectory != "" && r.LogPath != "" {
		s.LogPath = pod.LogDirectory + "/" + r.LogPath
	}
	if sig, err := stopSignal(r.StopSignal); err == nil {
		s.StopSignal = spec.CRISignal(sig)
	}
	if pl, err := c.planned(); err == nil {
		for _, m := range pl.config.GetMounts() {
			s.Mounts = append(s.Mounts, proto.CloneOf(m))
		}
		s.Resources = &cri.ContainerResources{Linux: proto.CloneOf(pl.config.GetLinux().GetResources())}
		s.User = &cri.ContainerUser{Linux: linuxUser(pl.User)}
	}
	return s, nil
}

func linuxUser(u spec.User) *cri.LinuxContainerUser {
	l := &cri.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, g := range u.Groups {
		l.SupplementalGroups = append(l.SupplementalGroups, int64(g))
	}
	return l
}

// podListed is how a pod's state is shown, if at all.
func podListed(s PodState) (cri.PodSandboxState, bool) {
	switch s {
	case PodCreating, "":
		return cri.PodSandboxState_SANDBOX_NOTREADY, false
	case PodReady:
		return cri.PodSandboxState_SANDBOX_READY, true
	default:
		return cri.PodSandboxState_SANDBOX_NOTREADY, true
	}
}

// containerListed is how a container's state is shown, if at all. A container that is
// being started or stopped is what it was before: the kubelet knows no more states.
func containerListed(s ContainerState) (cri.ContainerState, bool) {
	switch s {
	case ContainerCreating, "":
		return cri.ContainerState_CONTAINER_UNKNOWN, false
	case ContainerCreated, ContainerStarting:
		return cri.ContainerState_CONTAINER_CREATED, true
	case ContainerRunning, ContainerStopping:
		return cri.ContainerState_CONTAINER_RUNNING, true
	default:
		return cri.ContainerState_CONTAINER_EXITED, true
	}
}

func (rt *Runtime) fullPodID(id string) (store.PodID, bool) {
	if id == "" {
		return "", true
	}
	p, err := rt.findPod(id)
	if err != nil {
		return "", false
	}
	return p.id, true
}

// selects says whether labels have all that a selector asks for.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func podMetadata(r store.Pod) *cri.PodSandboxMetadata {
	return &cri.PodSandboxMetadata{Name: r.Name, Uid: r.UID, Namespace: r.Namespace, Attempt: r.Attempt}
}

func containerMetadata(r store.Container) *cri.ContainerMetadata {
	return &cri.ContainerMetadata{Name: r.Name, Attempt: r.Attempt}
}

func imageSpec(r store.Container) *cri.ImageSpec {
	return &cri.ImageSpec{Image: r.Image, UserSpecifiedImage: r.UserImage}
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
