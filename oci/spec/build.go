// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Build returns the runtime spec of a container.
//
// A field of the request that is wrong, or that nothing here can do, gives a *FieldError. Build does not
// see the host: whether the sources of mounts exist, and whether those of Bidirectional ones are shared,
// is for the caller to look at; sysctls and the host name are set where the pod's namespaces are made.
func Build(in Input) (*specs.Spec, error) {
	b := &builder{
		Input:      in,
		security:   in.Container.GetLinux().GetSecurityContext(),
		privileged: in.Container.GetLinux().GetSecurityContext().GetPrivileged(),
		spec: &specs.Spec{
			Version: specs.Version,
			Process: &specs.Process{},
			Root:    &specs.Root{Path: "rootfs"},
			Linux:   &specs.Linux{CgroupsPath: in.Cgroup},
		},
	}
	if err := CheckPod(in.Pod, in.Features); err != nil {
		return nil, err
	}
	// The order is that of what needs what: namespaces decide on mounts, capabilities on seccomp.
	for _, step := range []func() error{
		b.refuse,
		b.process,
		b.namespaces,
		b.capabilities,
		b.resources,
		b.devices,
		b.paths,
		b.mounts,
		b.seccomp,
		b.annotations,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return b.spec, nil
}

// builder is one call of Build.
type builder struct {
	Input
	security   *cri.LinuxContainerSecurityContext // nil is empty
	privileged bool
	pidMode    cri.NamespaceMode // once it is settled
	spec       *specs.Spec
}

// own reports which namespaces the pod has.
func (b *builder) own() Namespaces { return PodNamespaces(b.Pod) }

// paths decides on the read-only root, and on what of /proc and /sys is hidden. As received: the
// kubelet sends its default lists, or empty ones for a pod with procMount: Unmasked.
func (b *builder) paths() error {
	b.spec.Root.Readonly = b.security.GetReadonlyRootfs()
	if b.privileged {
		return nil
	}
	for _, list := range []struct {
		name string
		from []string
		to   *[]string
	}{
		{"masked_paths", b.security.GetMaskedPaths(), &b.spec.Linux.MaskedPaths},
		{"readonly_paths", b.security.GetReadonlyPaths(), &b.spec.Linux.ReadonlyPaths},
	} {
		for i, p := range list.from {
			if err := checkPath(at("container.linux.security_context."+list.name, i), p); err != nil {
				return err
			}
			*list.to = append(*list.to, p)
		}
	}
	return nil
}

// annotations copies those that the handler's configuration lets through. An annotation is written by
// whoever may make a pod, and an OCI runtime takes orders from some, so that without the node's
// administrator none gets there; and these never do, whatever the patterns say:
//
//	org.systemd.property.*  a unit's properties: the way out of CVE-2024-3154
//	io.kubernetes.cri*      what a runtime tells an OCI runtime about the pod: not for the pod to say
func (b *builder) annotations() error {
	for _, from := range []struct {
		patterns []string
		all      map[string]string
	}{
		{b.Handler.PodAnnotations, b.Pod.GetAnnotations()},
		{b.Handler.ContainerAnnotations, b.Container.GetAnnotations()},
	} {
		for key, value := range from.all {
			if strings.HasPrefix(key, "org.systemd.property.") || strings.HasPrefix(key, "io.kubernetes.cri") {
				continue
			}
			if !matchesAny(from.patterns, key) {
				continue
			}
			if b.spec.Annotations == nil {
				b.spec.Annotations = make(map[string]string)
			}
			b.spec.Annotations[key] = value
		}
	}
	return nil
}

func matchesAny(patterns []string, key string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, key); ok && err == nil {
			return true
		}
	}
	return false
}
