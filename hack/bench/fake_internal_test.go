// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var errFake = errors.New("the fake was told to fail")

// fakeRuntime answers as a runtime does whose containers do at once what the bench wants of them. It
// refuses what a runtime would: pods and containers that are not there, or not in the state for it.
type fakeRuntime struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	name     string
	logLines int
	torn     bool   // whether the first of many log lines is in two pieces
	file     string // where pods and containers are kept over a restart; "" for nowhere

	mu          sync.Mutex
	fail        string // this method fails
	networkDown bool
	short       bool // stats lack a pod
	most        int  // pods at the same time
	calls       []string
	number      int
	images      map[string]bool
	state       fakeState
}

// fakeState is what survives a restart.
type fakeState struct {
	Pods       map[string]*fakePod
	Containers map[string]*fakeContainer
}

type fakePod struct {
	Stopped bool
	Logs    string
	Labels  map[string]string
}

type fakeContainer struct {
	Pod     string
	State   cri.ContainerState
	Command []string
	Log     string
}

func newFake(name string) *fakeRuntime {
	return &fakeRuntime{
		name: name, logLines: 1000, images: map[string]bool{"busybox": true},
		state: fakeState{Pods: map[string]*fakePod{}, Containers: map[string]*fakeContainer{}},
	}
}

// serve listens in a folder until the test ends, and returns the address.
func (f *fakeRuntime) serve(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := f.server()
	var done sync.WaitGroup
	done.Go(func() {
		if err := server.Serve(listener); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { server.Stop(); done.Wait() })
	return "unix://" + socket
}

// server answers each call under the lock, keeps its name, and fails the one that shall fail.
func (f *fakeRuntime) server() *grpc.Server {
	server := grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			method := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
			f.calls = append(f.calls, method)
			if method == f.fail {
				return nil, errFake
			}
			resp, err := handler(ctx, req)
			if err == nil && f.file != "" {
				err = f.save()
			}
			return resp, err
		}))
	cri.RegisterRuntimeServiceServer(server, f)
	cri.RegisterImageServiceServer(server, f)
	return server
}

func (f *fakeRuntime) save() error {
	text, err := json.Marshal(f.state)
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(f.file+".new", f.file)
}

func (f *fakeRuntime) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: f.name, RuntimeVersion: "1.0"}, nil
}

func (f *fakeRuntime) Status(_ context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	resp := &cri.StatusResponse{Status: &cri.RuntimeStatus{
		Conditions: []*cri.RuntimeCondition{{Type: cri.NetworkReady, Status: !f.networkDown}},
	}}
	if r.GetVerbose() {
		resp.Info = map[string]string{"executor": fmt.Sprintf(`{"PID":%d,"KeeperPID":1}`, os.Getpid())}
	}
	return resp, nil
}

func (f *fakeRuntime) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	f.number++
	id := "pod" + strconv.Itoa(f.number)
	f.state.Pods[id] = &fakePod{Logs: r.GetConfig().GetLogDirectory(), Labels: r.GetConfig().GetLabels()}
	f.most = max(f.most, len(f.state.Pods))
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (f *fakeRuntime) StopPodSandbox(_ context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	pod, ok := f.state.Pods[r.GetPodSandboxId()]
	if !ok {
		return nil, errFake
	}
	pod.Stopped = true
	return &cri.StopPodSandboxResponse{}, nil
}

func (f *fakeRuntime) RemovePodSandbox(_ context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	pod, ok := f.state.Pods[r.GetPodSandboxId()]
	if !ok || !pod.Stopped {
		return nil, errFake
	}
	delete(f.state.Pods, r.GetPodSandboxId())
	for id, c := range f.state.Containers {
		if c.Pod == r.GetPodSandboxId() {
			delete(f.state.Containers, id)
		}
	}
	return &cri.RemovePodSandboxResponse{}, nil
}

func (f *fakeRuntime) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	if f.state.Pods[r.GetPodSandboxId()] == nil {
		return nil, errFake
	}
	return &cri.PodSandboxStatusResponse{}, nil
}

func (f *fakeRuntime) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	resp := &cri.ListPodSandboxResponse{}
	for id, p := range f.state.Pods {
		resp.Items = append(resp.Items, &cri.PodSandbox{Id: id, Labels: p.Labels})
	}
	return resp, nil
}

func (f *fakeRuntime) ListPodSandboxStats(context.Context, *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	n := len(f.state.Pods)
	if f.short {
		n--
	}
	return &cri.ListPodSandboxStatsResponse{Stats: make([]*cri.PodSandboxStats, n)}, nil
}

func (f *fakeRuntime) CreateContainer(_ context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	pod, ok := f.state.Pods[r.GetPodSandboxId()]
	if !ok || pod.Stopped || !f.images[r.GetConfig().GetImage().GetImage()] {
		return nil, errFake
	}
	f.number++
	id := "container" + strconv.Itoa(f.number)
	f.state.Containers[id] = &fakeContainer{
		Pod: r.GetPodSandboxId(), Command: r.GetConfig().GetCommand(),
		Log: filepath.Join(pod.Logs, r.GetConfig().GetLogPath()),
	}
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

func (f *fakeRuntime) StartContainer(_ context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	c, ok := f.state.Containers[r.GetContainerId()]
	if !ok || c.State != cri.ContainerState_CONTAINER_CREATED {
		return nil, errFake
	}
	c.State = cri.ContainerState_CONTAINER_RUNNING
	// The kernel stamps files by a coarser clock than ours: a second is more than that.
	head := time.Now().Add(-time.Second).Format(time.RFC3339Nano) + " stdout "
	text := head + "F ready\n"
	if strings.Contains(strings.Join(c.Command, " "), "/block") {
		whole := f.logLines
		if f.torn {
			whole--
			text += head + "P " + logLine[:10] + "\n" + head + "F " + logLine[10:] + "\n"
		}
		text += strings.Repeat(head+"F "+logLine+"\n", whole)
	}
	// As a real one, it writes some time after it has started; one that is gone by then does not.
	time.AfterFunc(20*time.Millisecond, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.state.Containers[r.GetContainerId()] == c {
			_ = os.WriteFile(c.Log, []byte(text), 0o600) // the bench waits for it
		}
	})
	return &cri.StartContainerResponse{}, nil
}

func (f *fakeRuntime) ExecSync(_ context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	if c := f.state.Containers[r.GetContainerId()]; c == nil || c.State != cri.ContainerState_CONTAINER_RUNNING {
		return nil, errFake
	}
	return &cri.ExecSyncResponse{}, nil
}

func (f *fakeRuntime) StopContainer(_ context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	c, ok := f.state.Containers[r.GetContainerId()]
	if !ok {
		return nil, errFake
	}
	if _, err := os.Stat(c.Log); err != nil {
		return nil, fmt.Errorf("%w: a SIGTERM before it is obeyed", errFake)
	}
	c.State = cri.ContainerState_CONTAINER_EXITED
	return &cri.StopContainerResponse{}, nil
}

func (f *fakeRuntime) RemoveContainer(_ context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	if c := f.state.Containers[r.GetContainerId()]; c == nil || c.State != cri.ContainerState_CONTAINER_EXITED {
		return nil, errFake
	}
	delete(f.state.Containers, r.GetContainerId())
	return &cri.RemoveContainerResponse{}, nil
}

func (f *fakeRuntime) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	c, ok := f.state.Containers[r.GetContainerId()]
	if !ok {
		return nil, errFake
	}
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{State: c.State}}, nil
}

func (f *fakeRuntime) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	resp := &cri.ListContainersResponse{}
	for id, c := range f.state.Containers {
		resp.Containers = append(resp.Containers, &cri.Container{Id: id, State: c.State})
	}
	return resp, nil
}

func (f *fakeRuntime) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	if !f.images[r.GetImage().GetImage()] {
		return &cri.ImageStatusResponse{}, nil
	}
	return &cri.ImageStatusResponse{Image: &cri.Image{Id: "1"}}, nil
}

func (f *fakeRuntime) PullImage(_ context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	if f.images[r.GetImage().GetImage()] {
		return nil, fmt.Errorf("%w: a pull of what is there", errFake)
	}
	f.images[r.GetImage().GetImage()] = true
	return &cri.PullImageResponse{ImageRef: "1"}, nil
}

func (f *fakeRuntime) RemoveImage(_ context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	delete(f.images, r.GetImage().GetImage())
	return &cri.RemoveImageResponse{}, nil
}
