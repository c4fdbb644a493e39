// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// label marks the pods and containers of a bench.
const label = "bench.berth-cri.io/pod"

// network of a pod.
type network string

const (
	hostNetwork network = "host"
	cniNetwork  network = "cni"
)

// obeys is a first process that ends at SIGTERM, which it must ask for, being the first; what it writes
// says that from now on it does.
func obeys() []string {
	return []string{"/bin/sh", "-c", `trap 'exit 0' TERM; echo ready; sleep 3600 & wait`}
}

// grace is what StopContainer gives a container, in seconds. No container here needs it.
const grace = 30

// pod is one that a session has made.
type pod struct {
	id, container string
	config        *cri.PodSandboxConfig
	log           string // the container's log file
}

// podConfig describes the next pod of a session; its log folder exists afterwards.
func (s *session) podConfig(n network) (*cri.PodSandboxConfig, error) {
	name := "bench-" + strconv.FormatInt(s.next.Add(1), 10)
	dir := filepath.Join(s.logs, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	mode := cri.NamespaceMode_POD
	if n == hostNetwork {
		mode = cri.NamespaceMode_NODE
	}
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: s.run + "-" + name, Namespace: "bench"},
		LogDirectory: dir,
		Labels:       map[string]string{label: s.run},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: s.cfg.cgroupParent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: mode, Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
	if n != hostNetwork {
		config.Hostname = name
	}
	return config, nil
}

// containerConfig describes the one container of a pod.
func (s *session) containerConfig(p *cri.PodSandboxConfig, command []string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"},
		Image:    &cri.ImageSpec{Image: s.cfg.image, UserSpecifiedImage: s.cfg.image},
		Command:  command,
		Labels:   map[string]string{label: s.run},
		LogPath:  "main.log",
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: p.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			},
		},
	}
}

// runPod makes a pod without a container. timed is called around the call.
func (s *session) runPod(ctx context.Context, n network, timed timer) (*pod, error) {
	config, err := s.podConfig(n)
	if err != nil {
		return nil, err
	}
	p := &pod{config: config, log: filepath.Join(config.LogDirectory, "main.log")}
	return p, timed("RunPodSandbox", func() error {
		r, err := s.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
		p.id = r.GetPodSandboxId()
		return err
	})
}

// startContainer makes and starts the container of a pod.
func (s *session) startContainer(ctx context.Context, p *pod, command []string, timed timer) error {
	config := s.containerConfig(p.config, command)
	return timed("CreateContainer+StartContainer", func() error {
		r, err := s.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
			PodSandboxId: p.id, Config: config, SandboxConfig: p.config,
		})
		if err != nil {
			return err
		}
		p.container = r.GetContainerId()
		_, err = s.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container})
		return err
	})
}

// exec runs a command in the container of a pod; another exit code than 0 is an error.
func (s *session) exec(ctx context.Context, p *pod, command ...string) error {
	r, err := s.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: command, Timeout: 30})
	if err == nil && r.GetExitCode() != 0 {
		err = fmt.Errorf("%w: %q ended with %d: %s", errResult, command, r.GetExitCode(), r.GetStderr())
	}
	return err
}

// ready waits until the container of a pod has written its first line.
func (s *session) ready(ctx context.Context, p *pod) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.timeout)
	defer cancel()
	err := poll(ctx, pollEvery, func() (bool, error) {
		info, err := os.Stat(p.log)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return err == nil && info.Size() > 0, err
	})
	if err != nil {
		return fmt.Errorf("wait for the first line in the log: %w", err)
	}
	return nil
}

// removePod stops and removes a pod and what is in it, and its log folder.
func (s *session) removePod(ctx context.Context, p *pod, timed timer) error {
	err := timed("StopPodSandbox+RemovePodSandbox", func() error { return s.stopAndRemove(ctx, p.id) })
	if err != nil {
		return err
	}
	return os.RemoveAll(p.config.LogDirectory)
}

func (e *endpoint) stopAndRemove(ctx context.Context, pod string) error {
	if _, err := e.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		return err
	}
	_, err := e.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	return err
}

// cleanup removes all pods that any bench has made on an endpoint. It goes on after an error, and does
// not end with ctx.
func (e *endpoint) cleanup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
	defer cancel()
	// A filter asks for one value of a label, and that of a run that died is not known.
	list, err := e.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	var problems []error
	for _, p := range list.GetItems() {
		if _, ours := p.GetLabels()[label]; !ours {
			continue
		}
		if err := e.stopAndRemove(ctx, p.GetId()); err != nil {
			problems = append(problems, fmt.Errorf("clean up: pod %s: %w", p.GetId(), err))
		}
	}
	return errors.Join(problems...)
}
