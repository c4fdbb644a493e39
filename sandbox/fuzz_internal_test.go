// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// seed marshals a message for a fuzzer to begin with.
func seed(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// fuzzed is a berth for a fuzzer: one for all its inputs.
func fuzzed(f *testing.F) *life {
	f.Helper()
	l := newNode(f).boot(-1, nil)
	if err := l.rt.Recover(f.Context()); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(l.end)
	return l
}

// noPanic fails the test where an operation panicked: that it was caught helps the node,
// not us.
func noPanic(t *testing.T, err error) {
	t.Helper()
	if p := (*PanicError)(nil); errors.As(err, &p) {
		t.Errorf("%v\n%s", err, p.Stack)
	}
}

// FuzzRunPod gives any configuration to RunPodSandbox. Whatever comes of it, the pod can
// be stopped and removed, and nothing is left.
func FuzzRunPod(f *testing.F) {
	full := podConfig("full", 2)
	full.Annotations = map[string]string{"a": "b"}
	full.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 8080}, nil}
	full.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	full.Linux.CgroupParent = "/kubepods/pod1"
	for _, cfg := range []*cri.PodSandboxConfig{podConfig("a", 0), hostPodConfig("b"), full, {}, {Metadata: &cri.PodSandboxMetadata{}}} {
		f.Add(seed(f, cfg), "")
	}
	f.Add([]byte(nil), "kata")
	l := fuzzed(f)
	f.Fuzz(func(t *testing.T, b []byte, handler string) {
		cfg := new(cri.PodSandboxConfig)
		if proto.Unmarshal(b, cfg) != nil {
			return
		}
		ctx := context.WithoutCancel(t.Context())
		id, err := l.rt.RunPod(ctx, cfg, handler)
		noPanic(t, err)
		if err != nil {
			return
		}
		if _, err := l.rt.PodStatus(string(id)); err != nil {
			t.Error(err)
		}
		if err := errors.Join(l.rt.StopPod(ctx, string(id)), l.rt.RemovePod(ctx, string(id))); err != nil {
			t.Error(err)
		}
		if left := l.remains(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// FuzzCreateContainer gives any configuration to CreateContainer, in a pod.
func FuzzCreateContainer(f *testing.F) {
	full := containerConfig("full")
	full.Envs = []*cri.KeyValue{{Key: "A", Value: []byte{0xff}}, nil}
	full.Mounts = []*cri.Mount{{HostPath: "/", ContainerPath: "/host", Readonly: true}, nil}
	full.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rw"}, nil}
	full.Linux = &cri.LinuxContainerConfig{
		Resources: &cri.LinuxContainerResources{CpuPeriod: 100000, MemoryLimitInBytes: 1 << 30},
		SecurityContext: &cri.LinuxContainerSecurityContext{
			RunAsUser: &cri.Int64Value{Value: 1}, Capabilities: &cri.Capability{AddCapabilities: []string{"ALL"}},
			Seccomp: &cri.SecurityProfile{},
		},
	}
	for _, cfg := range []*cri.ContainerConfig{containerConfig("a"), full, {}, {Metadata: &cri.ContainerMetadata{Name: "x"}}} {
		f.Add(seed(f, cfg))
	}
	l := fuzzed(f)
	pod, err := l.rt.RunPod(f.Context(), podConfig("fuzz", 0), "")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := new(cri.ContainerConfig)
		if proto.Unmarshal(b, cfg) != nil {
			return
		}
		ctx := context.WithoutCancel(t.Context())
		id, err := l.rt.CreateContainer(ctx, string(pod), cfg)
		noPanic(t, err)
		if err != nil {
			return
		}
		noPanic(t, l.rt.StartContainer(ctx, string(id)))
		if _, err := l.rt.ContainerStatus(string(id)); err != nil {
			t.Error(err)
		}
		_, err = l.rt.ContainerInfo(ctx, string(id))
		if err != nil {
			t.Error(err)
		}
		if err := l.rt.RemoveContainer(ctx, string(id)); err != nil {
			t.Error(err)
		}
	})
}
