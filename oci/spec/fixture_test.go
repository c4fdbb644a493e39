// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	image "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
)

// node is a machine with all that Build knows of.
func node() spec.Features {
	return spec.Features{
		Arch: "amd64", Kernel: spec.Kernel{Major: 6, Minor: 12},
		CgroupV2: true, CgroupNamespace: true, SwapAccounting: true, PSI: true,
		HugepageSizes: []string{"2MB", "1GB"},
		Seccomp:       true,
		Capabilities: []string{
			"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
			"CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF",
		},
		RecursiveReadOnly: true, IDMappedMounts: true,
	}
}

// input is a small container: what a kubelet sends for a pod that asks for nothing.
func input() spec.Input {
	return spec.Input{
		Pod: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "web", Uid: "5a2", Namespace: "default"},
			Hostname: "web-0",
			Linux: &cri.LinuxPodSandboxConfig{
				CgroupParent:    "/kubepods/pod5a2",
				SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
			},
		},
		Container: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "nginx"},
			Linux: &cri.LinuxContainerConfig{
				Resources: &cri.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
				SecurityContext: &cri.LinuxContainerSecurityContext{
					NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
					MaskedPaths:      []string{"/proc/kcore", "/proc/keys"},
					ReadonlyPaths:    []string{"/proc/bus", "/proc/sys"},
				},
			},
		},
		Image: image.ImageConfig{
			Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"},
			Env:        []string{"PATH=/usr/local/bin:/usr/bin:/bin", "NGINX_VERSION=1.29"},
			StopSignal: "SIGQUIT",
		},
		User:         spec.User{Groups: []uint32{0}, Name: "root", Home: "/root"},
		Features:     node(),
		Cgroup:       "/kubepods/pod5a2/0123",
		NodeHostname: "node-1",
		Files:        spec.Files{Hosts: "/run/berth/p/hosts", Hostname: "/run/berth/p/hostname", ResolvConf: "/run/berth/p/resolv.conf"},
		HostDevices: []spec.HostDevice{
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666},
			{Path: "/dev/vda", Type: "b", Major: 254, Minor: 0, Mode: 0o660, GID: 6},
		},
	}
}

// with changes a fresh input.
func with(changes ...func(*spec.Input)) spec.Input {
	in := input()
	for _, change := range changes {
		change(&in)
	}
	return in
}

func security(in *spec.Input) *cri.LinuxContainerSecurityContext {
	return in.Container.GetLinux().GetSecurityContext()
}

func podSecurity(in *spec.Input) *cri.LinuxSandboxSecurityContext {
	return in.Pod.GetLinux().GetSecurityContext()
}

func resources(in *spec.Input) *cri.LinuxContainerResources {
	return in.Container.GetLinux().GetResources()
}

// modes gives pod and container namespace options of their own.
func modes(in *spec.Input, pod, container *cri.NamespaceOption) {
	podSecurity(in).NamespaceOptions, security(in).NamespaceOptions = pod, container
}

func privileged(in *spec.Input) {
	podSecurity(in).Privileged, security(in).Privileged = true, true
}

// build is Build that has to succeed.
func build(t testing.TB, in spec.Input) *specs.Spec {
	t.Helper()
	s, err := spec.Build(in)
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	return s
}

// refused wants err to be about field and of a kind.
func refused(t testing.TB, err error, field string, kind error) {
	t.Helper()
	var fe *spec.FieldError
	if !errors.As(err, &fe) || fe.Field != field || !errors.Is(err, kind) {
		t.Errorf("error = %v; want one on %s that is: %v", err, field, kind)
	}
	if err != nil && (strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "\x00") || len(err.Error()) > 600) {
		t.Errorf("an error that is no line: %q", err)
	}
}

// destinations are where a spec mounts, in order.
func destinations(s *specs.Spec) []string {
	var list []string
	for _, m := range s.Mounts {
		list = append(list, m.Destination)
	}
	return list
}

func mountAt(t testing.TB, s *specs.Spec, destination string) specs.Mount {
	t.Helper()
	i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == destination })
	if i < 0 {
		t.Fatalf("nothing is mounted at %s", destination)
	}
	return s.Mounts[i]
}

func env(s *specs.Spec, name string) string {
	for _, kv := range s.Process.Env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return "(unset)"
}
