// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces decides in which namespaces the container runs. One that is not in the spec is the
// executor's, which is the node's.
//
//	         POD                    CONTAINER   NODE               TARGET
//	network  the pod's              –           the pod is on it   –
//	ipc      the pod's              –           the pod is on it   –
//	pid      the pod's              its own     the pod is on it   that of target_id
//	uts      as network
//	mount    its own, always
//	cgroup   its own on v2, without privileges; else the node's
//
// The pod's may be the node's. A container without namespace_options is where its pod is.
func (b *builder) namespaces() error {
	const field = "container.linux.security_context.namespace_options."
	pod, own := podOptions(b.Pod), b.own()
	o := b.security.GetNamespaceOptions()
	b.pidMode = pod.GetPid()
	if o != nil {
		if err := b.sharedMode(field+"network", o.GetNetwork(), pod.GetNetwork()); err != nil {
			return err
		}
		if err := b.sharedMode(field+"ipc", o.GetIpc(), pod.GetIpc()); err != nil {
			return err
		}
		if err := b.settlePID(field, o); err != nil {
			return err
		}
	}

	b.namespace(specs.MountNamespace, "")
	switch b.pidMode {
	case cri.NamespaceMode_CONTAINER:
		b.namespace(specs.PIDNamespace, "")
	case cri.NamespaceMode_POD:
		b.namespace(specs.PIDNamespace, FromPod)
	case cri.NamespaceMode_TARGET:
		b.namespace(specs.PIDNamespace, FromContainer+o.GetTargetId())
	}
	if own.Net {
		b.namespace(specs.NetworkNamespace, FromPod)
	}
	if own.IPC {
		b.namespace(specs.IPCNamespace, FromPod)
	}
	if own.UTS {
		b.namespace(specs.UTSNamespace, FromPod)
	}
	if b.Features.CgroupV2 && b.Features.CgroupNamespace && !b.privileged {
		b.namespace(specs.CgroupNamespace, "")
	}
	return nil
}

func (b *builder) namespace(t specs.LinuxNamespaceType, path string) {
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
}

// sharedMode checks a mode that is the pod's to choose. POD is good for both: whatever the pod has.
func (b *builder) sharedMode(field string, mode, pod cri.NamespaceMode) error {
	switch mode {
	case cri.NamespaceMode_POD:
		return nil
	case cri.NamespaceMode_NODE:
		if pod == cri.NamespaceMode_NODE {
			return nil
		}
		return invalid(field, "NODE, but the pod has a namespace of its own")
	default:
		return invalid(field, "%s: want POD or NODE", mode)
	}
}

// settlePID sets pidMode.
func (b *builder) settlePID(field string, o *cri.NamespaceOption) error {
	pod := podOptions(b.Pod).GetPid()
	if o.GetTargetId() != "" && o.GetPid() != cri.NamespaceMode_TARGET {
		return invalid(field+"target_id", "%.100q, but pid is %s", o.GetTargetId(), o.GetPid())
	}
	switch mode := o.GetPid(); mode {
	case cri.NamespaceMode_CONTAINER:
		b.pidMode = mode
	case cri.NamespaceMode_TARGET:
		if o.GetTargetId() == "" {
			return invalid(field+"target_id", "missing, and pid is TARGET")
		}
		b.pidMode = mode
	case cri.NamespaceMode_NODE:
		if pod != cri.NamespaceMode_NODE {
			return invalid(field+"pid", "NODE, but the pod was made with %s", pod)
		}
		b.pidMode = mode
	case cri.NamespaceMode_POD:
		// Who shares the pod's namespace is where the pod is, be it on the node's.
		if pod == cri.NamespaceMode_CONTAINER {
			return invalid(field+"pid", "POD, but the pod was made with CONTAINER and has no PID namespace")
		}
		b.pidMode = pod
	default:
		return invalid(field+"pid", "%s: want POD, CONTAINER, NODE or TARGET", mode)
	}
	return nil
}
