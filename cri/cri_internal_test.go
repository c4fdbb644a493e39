// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/sandbox"
	"github.com/berth-cri/berth/store"
)

// node stands for all that is below the services. It does nothing and knows nobody.
type node struct{}

func (node) RunPod(context.Context, *cri.PodSandboxConfig, string) (store.PodID, error) {
	return "p", nil
}
func (node) StopPod(context.Context, string) error        { return nil }
func (node) RemovePod(context.Context, string) error      { return nil }
func (node) Pods(*cri.PodSandboxFilter) []*cri.PodSandbox { return nil }
func (node) PodStatus(id string) (*cri.PodSandboxStatus, error) {
	if id != "p" {
		return nil, fmt.Errorf("pod %q: %w", id, sandbox.ErrNotFound)
	}
	return &cri.PodSandboxStatus{Id: id}, nil
}
func (node) PodInfo(string) (*sandbox.Info, error) { return &sandbox.Info{}, nil }
func (node) PodStats(context.Context, string) (*cri.PodSandboxStats, error) {
	return &cri.PodSandboxStats{}, nil
}

func (node) ListPodStats(context.Context, *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	return nil, nil
}

func (node) CreateContainer(context.Context, string, *cri.ContainerConfig) (store.ContainerID, error) {
	return "c", nil
}
func (node) StartContainer(context.Context, string) error { return nil }
func (node) StopContainer(_ context.Context, _ string, d time.Duration) error {
	if d < 0 {
		return errors.New("negative")
	}
	return nil
}
func (node) RemoveContainer(context.Context, string) error    { return nil }
func (node) Containers(*cri.ContainerFilter) []*cri.Container { return []*cri.Container{{Id: "c"}} }
func (node) ContainerStatus(id string) (*cri.ContainerStatus, error) {
	if id != "c" {
		return nil, sandbox.ErrNotFound
	}
	return &cri.ContainerStatus{Id: id, State: cri.ContainerState_CONTAINER_RUNNING}, nil
}

func (node) ContainerInfo(context.Context, string) (*sandbox.Info, error) {
	return &sandbox.Info{}, nil
}

func (node) UpdateResources(context.Context, string, *cri.LinuxContainerResources) error { return nil }

func (node) ExecSync(context.Context, string, []string, time.Duration) (*cri.ExecSyncResponse, error) {
	return &cri.ExecSyncResponse{}, nil
}
func (node) ReopenLog(context.Context, string) error { return nil }
func (node) ContainerStats(context.Context, string) (*cri.ContainerStats, error) {
	return &cri.ContainerStats{}, nil
}

func (node) ListContainerStats(context.Context, *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	return nil, nil
}

func (node) Events(_ context.Context, fn func(sandbox.Event) error) error {
	for k := range sandbox.EventDeleted + 1 {
		if err := fn(sandbox.Event{Kind: k, Pod: "p"}); err != nil {
			return err
		}
	}
	return nil
}

func (node) Pull(context.Context, string, *cri.AuthConfig, *cri.PodSandboxConfig) (store.ImageID, error) {
	return "i", nil
}
func (node) List(string) []*cri.Image                  { return nil }
func (node) Status(string) (*cri.Image, error)         { return &cri.Image{Id: "i"}, nil }
func (node) Info(context.Context, string) (any, error) { return nil, nil }
func (node) Remove(context.Context, string) error      { return nil }
func (node) FsInfo(context.Context) (*cri.ImageFsInfoResponse, error) {
	return &cri.ImageFsInfoResponse{}, nil
}
func (node) Ready(context.Context) error                  { return errors.New("no configuration") }
func (node) SetPodCIDR(context.Context, string) error     { return nil }
func (node) GetExec(*cri.ExecRequest) (string, error)     { return "http://127.0.0.1/x", nil }
func (node) GetAttach(*cri.AttachRequest) (string, error) { return "http://127.0.0.1/x", nil }
func (node) GetPortForward(*cri.PortForwardRequest) (string, error) {
	return "http://127.0.0.1/x", nil
}

func server() *Server {
	n := node{}
	return New(Config{
		Pods: n, Containers: n, Commands: n, Images: n, Network: n, Streams: n, Version: "1.2.3", Driver: cgroup.Systemd,
		Handlers: []string{"other"}, Details: func() map[string]any { return map[string]any{"k": 1} },
	})
}

// handlers are the unary calls of both services, by name.
func handlers() (list []grpc.MethodDesc) {
	for _, d := range []grpc.ServiceDesc{cri.RuntimeService_ServiceDesc, cri.ImageService_ServiceDesc} {
		list = append(list, d.Methods...)
	}
	return list
}

// FuzzCalls gives any bytes to any call, as a client may. Nothing may panic.
func FuzzCalls(f *testing.F) {
	list := handlers()
	seeds := []proto.Message{
		&cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "n"}}},
		&cri.CreateContainerRequest{PodSandboxId: "p", Config: &cri.ContainerConfig{Image: &cri.ImageSpec{Image: "i"}}},
		&cri.PodSandboxStatusRequest{PodSandboxId: "p", Verbose: true},
		&cri.StopContainerRequest{ContainerId: "c", Timeout: math.MinInt64},
		&cri.StopContainerRequest{ContainerId: "c", Timeout: math.MaxInt64},
		&cri.PullImageRequest{Image: &cri.ImageSpec{Image: "i"}, Auth: &cri.AuthConfig{Password: "p"}},
	}
	for n := range list {
		f.Add(byte(n), []byte(nil))
		for _, s := range seeds {
			b, err := proto.Marshal(s)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(n), b)
		}
	}
	s := server()
	f.Fuzz(func(t *testing.T, n byte, body []byte) {
		m := list[int(n)%len(list)]
		decoded := true
		resp, err := m.Handler(s, t.Context(), func(req any) error {
			err := proto.Unmarshal(body, req.(proto.Message))
			decoded = err == nil
			return err
		}, s.unary)
		if !decoded {
			return // gRPC answers that
		}
		if err == nil && (resp == nil || reflect.ValueOf(resp).IsNil()) {
			t.Errorf("%s: neither an answer nor an error", m.MethodName)
		}
		if _, ok := status.FromError(err); !ok {
			t.Errorf("%s: error without a code: %v", m.MethodName, err)
		}
	})
}

// TestAllCalls holds that all 43 calls are there, and that those which berth does not
// have say so with their name.
func TestAllCalls(t *testing.T) {
	total := len(handlers())
	for _, d := range []grpc.ServiceDesc{cri.RuntimeService_ServiceDesc, cri.ImageService_ServiceDesc} {
		total += len(d.Streams)
	}
	if total != 43 {
		t.Errorf("%d calls, want the 43 of v0.37.2", total)
	}
	s := server()
	missing := 0
	for _, m := range handlers() {
		_, err := m.Handler(s, t.Context(), func(any) error { return nil }, s.unary)
		if status.Code(err) == codes.Unimplemented {
			missing++
			t.Logf("not yet: %s: %v", m.MethodName, err)
		}
	}
	if missing != 6 {
		t.Errorf("%d unary calls are not implemented, want 6", missing)
	}
}

// TestCodes holds what kubelets read.
func TestCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{fmt.Errorf("pod x: %w", sandbox.ErrNotFound), codes.NotFound},
		{fmt.Errorf("x: %w", sandbox.ErrExecTimeout), codes.DeadlineExceeded},
		{fmt.Errorf("%w, joined: %w", context.DeadlineExceeded, errors.New("x")), codes.DeadlineExceeded},
		{&spec.FieldError{Field: "f", Kind: spec.ErrUnsupported}, codes.InvalidArgument},
		{&sandbox.PanicError{Value: "x"}, codes.Internal},
		{errors.New("anything"), codes.Unknown},
		{status.Error(codes.Aborted, "as it is"), codes.Aborted},
		{fmt.Errorf("pull x: %w", registry.ErrUnavailable), codes.Unknown},
	} {
		got := toStatus(c.err)
		if status.Code(got) != c.want {
			t.Errorf("%v: %v, want %v", c.err, status.Code(got), c.want)
		}
		if c.err != nil && !errors.Is(c.err, registry.ErrUnavailable) && c.want != codes.Aborted && status.Convert(got).Message() != c.err.Error() {
			t.Errorf("%v: message %q", c.err, status.Convert(got).Message())
		}
	}
}

// TestRegistryUnavailable holds the words by which a kubelet knows that it may help to
// try again.
func TestRegistryUnavailable(t *testing.T) {
	got := status.Convert(toStatus(fmt.Errorf("pull x: %w: no route", registry.ErrUnavailable)))
	if got.Code() != codes.Unknown || !strings.HasPrefix(got.Message(), "RegistryUnavailable: pull x") {
		t.Errorf("%v %q", got.Code(), got.Message())
	}
}

// TestSeconds holds that no number of seconds becomes something else.
func TestSeconds(t *testing.T) {
	for n, want := range map[int64]time.Duration{0: 0, -5: 0, math.MinInt64: 0, 30: 30 * time.Second} {
		if got := seconds(n); got != want {
			t.Errorf("%d: %v, want %v", n, got, want)
		}
	}
	if got := seconds(math.MaxInt64); got < 200*365*24*time.Hour {
		t.Errorf("the most: %v", got)
	}
}

func TestStatus(t *testing.T) {
	s := server()
	r, err := s.Status(t.Context(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Status.Conditions {
		if c.Status != (c.Type == cri.RuntimeReady) || !c.Status && c.Message != "no configuration" {
			t.Errorf("condition %v", c)
		}
	}
	if len(r.RuntimeHandlers) != 2 || r.RuntimeHandlers[0].Name != "" || r.Info["k"] != "1" {
		t.Errorf("status %v", r)
	}
	d, err := s.RuntimeConfig(t.Context(), &cri.RuntimeConfigRequest{})
	if err != nil || d.Linux.CgroupDriver != cri.CgroupDriver_SYSTEMD {
		t.Errorf("runtime config %v, %v", d, err)
	}
}
