// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stand makes the idle pods, if they do not stand yet.
func (s *session) stand(ctx context.Context) error {
	if s.standing != nil {
		return nil
	}
	var err error
	if s.idle, err = s.usage(ctx); err != nil {
		return err
	}
	pods := make([]*pod, 0, s.cfg.pods)
	for range s.cfg.pods {
		p, err := s.runPod(ctx, hostNetwork, untimed)
		if err != nil {
			return err
		}
		if err := s.startContainer(ctx, p, obeys(), untimed); err != nil {
			return err
		}
		if err := s.ready(ctx, p); err != nil {
			return err
		}
		pods = append(pods, p)
	}
	s.standing = pods
	return nil
}

// memory measures what the runtime's processes and the kernel hold for idle pods.
func memory(ctx context.Context, s *session, t *sheet) error {
	kernelBefore, err := kernelMemory("/proc")
	if err != nil {
		return err
	}
	if err := s.stand(ctx); err != nil {
		return err
	}
	after, err := s.usage(ctx)
	if err != nil {
		return err
	}
	kernelAfter, err := kernelMemory("/proc")
	if err != nil {
		return err
	}
	n := float64(s.cfg.pods)
	t.add("PSS without pods", kilobytes, float64(s.idle.pss))
	t.add("PSS per idle pod", kilobytes, float64(after.pss-s.idle.pss)/n)
	t.add("kernel memory per idle pod", kilobytes, float64(kernelAfter-kernelBefore)/n)
	return nil
}

// lists measures what a kubelet asks for again and again.
func lists(ctx context.Context, s *session, t *sheet) error {
	if err := s.stand(ctx); err != nil {
		return err
	}
	atLeast := func(got int) error {
		if got < s.cfg.pods {
			return fmt.Errorf("%w: %d listed of %d", errResult, got, s.cfg.pods)
		}
		return nil
	}
	for range s.cfg.execs {
		if err := t.timed("ListContainers", func() error {
			r, err := s.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
			if err != nil {
				return err
			}
			return atLeast(len(r.GetContainers()))
		}); err != nil {
			return err
		}
		if err := t.timed("ListPodSandbox", func() error {
			r, err := s.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			if err != nil {
				return err
			}
			return atLeast(len(r.GetItems()))
		}); err != nil {
			return err
		}
	}
	// Each is some hundred calls in one, or walks all cgroups.
	for range max(s.cfg.execs/10, 1) {
		if err := t.timed("ListPodSandboxStats", func() error {
			r, err := s.runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			if err != nil {
				return err
			}
			return atLeast(len(r.GetStats()))
		}); err != nil {
			return err
		}
		if err := t.timed("lists and all statuses", func() error { return s.relist(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// relist asks as a kubelet's pod lifecycle generator does, for our pods.
func (s *session) relist(ctx context.Context) error {
	if _, err := s.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); err != nil {
		return err
	}
	if _, err := s.runtime.ListContainers(ctx, &cri.ListContainersRequest{}); err != nil {
		return err
	}
	for _, p := range s.standing {
		if _, err := s.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id}); err != nil {
			return err
		}
		if _, err := s.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container}); err != nil {
			return err
		}
	}
	return nil
}

// restart kills the daemon by the command of the flags, which starts it again unless somebody else
// does. It measures from the start of the command: when the daemon is seen dead, its successor may be
// half up.
func restart(ctx context.Context, s *session, t *sheet) error {
	if err := s.stand(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.timeout)
	defer cancel()
	pid, err := s.daemon()
	if err != nil {
		return err
	}
	fd, err := pidfd(pid)
	if err != nil {
		return err
	}
	defer unix.Close(fd)

	shell := exec.CommandContext(ctx, "/bin/sh", "-c", s.target.restart)
	shell.Env = append(os.Environ(), "DAEMON_PID="+strconv.Itoa(pid))
	// The daemon that it leaves running shall outlive a Ctrl-C, and hold no pipe that Wait waits for:
	// stdout and stderr stay nil.
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	began := time.Now()
	if err := shell.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- shell.Wait() }()
	err = s.comeback(ctx, fd, pid)
	took := time.Since(began)
	if err != nil {
		cancel() // kills the shell, where it still runs
		return errors.Join(err, <-done)
	}
	if err := <-done; err != nil {
		return fmt.Errorf("%q: %w", s.target.restart, err)
	}
	t.addTime("killed until all listed", took)
	return nil
}

// comeback waits for the end of the daemon, whose answers would be no news, and then until everything is
// there again.
func (s *session) comeback(ctx context.Context, fd, pid int) error {
	if err := poll(ctx, pollEvery, func() (bool, error) { return ended(fd) }); err != nil {
		return fmt.Errorf("wait for the end of the daemon, process %d: %w", pid, err)
	}
	last := errResult
	if err := poll(ctx, pollEvery, func() (bool, error) {
		err := s.allThere(ctx)
		if ctx.Err() == nil {
			last = err // what it waits for, not that it waits no more
		}
		return err == nil, nil
	}); err != nil {
		return fmt.Errorf("wait for the pods after the restart: %w: %w", err, last)
	}
	return nil
}

// allThere says whether all standing pods run and the network is ready.
func (s *session) allThere(ctx context.Context) error {
	r, err := s.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return err
	}
	running := make(map[string]bool)
	for _, c := range r.GetContainers() {
		running[c.GetId()] = c.GetState() == cri.ContainerState_CONTAINER_RUNNING
	}
	for _, p := range s.standing {
		if !running[p.container] {
			return fmt.Errorf("%w: container %s does not run", errResult, p.container)
		}
	}
	status, err := s.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range status.GetStatus().GetConditions() {
		if c.GetType() == cri.NetworkReady && c.GetStatus() {
			return nil
		}
	}
	return fmt.Errorf("%w: the network is not ready", errResult)
}
