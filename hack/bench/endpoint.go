// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	errEndpoint = errors.New("not the address of a unix socket (unix:///...)")
	errOwner    = errors.New("the socket does not tell its daemon; give -pid")
)

// target is an endpoint as the flags describe it.
type target struct {
	address   string // unix:///...
	pids      []int
	processes []string // names
	restart   string   // shell command, "" for none
}

// endpoint is a runtime that is measured.
type endpoint struct {
	target
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	version string // for people: name and version
}

// dial connects to a runtime and asks who it is.
func dial(ctx context.Context, t target) (*endpoint, error) {
	if !strings.HasPrefix(t.address, "unix:///") {
		return nil, fmt.Errorf("%q: %w", t.address, errEndpoint)
	}
	conn, err := grpc.NewClient(t.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// As a kubelet's; lists of many pods are larger than gRPC's default.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		// After a restart the wait for the next try would be measured, not the runtime.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: pollEvery, Multiplier: 1, MaxDelay: pollEvery},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, err
	}
	e := &endpoint{
		target: t, conn: conn,
		runtime: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn),
	}
	v, err := e.runtime.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", t.address, err)
	}
	e.version = v.GetRuntimeName() + " " + v.GetRuntimeVersion()
	return e, nil
}

// daemon returns the process that listens on the socket.
func (e *endpoint) daemon() (int, error) {
	conn, err := net.Dial("unix", strings.TrimPrefix(e.address, "unix://"))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		peer    *unix.Ucred
		peerErr error
	)
	if err := raw.Control(func(fd uintptr) {
		peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if peerErr != nil {
		return 0, peerErr
	}
	// 0 is a process of a PID namespace that we do not see, 1 made the socket for somebody.
	if peer.Pid <= 1 {
		return 0, errOwner
	}
	return int(peer.Pid), nil
}

// roots returns the processes from which all others of the runtime are found.
func (e *endpoint) roots(ctx context.Context) ([]int, error) {
	pids := append([]int(nil), e.pids...)
	switch pid, err := e.daemon(); {
	case err == nil:
		pids = append(pids, pid)
	case !errors.Is(err, errOwner) || len(pids) == 0:
		return nil, err
	}
	status, err := e.runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	if info, ok := status.GetInfo()["executor"]; ok {
		var executor struct{ PID, KeeperPID int }
		if err := json.Unmarshal([]byte(info), &executor); err != nil {
			return nil, fmt.Errorf("info of the executor: %w", err)
		}
		for _, pid := range []int{executor.PID, executor.KeeperPID} {
			if pid > 1 {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// usage returns what the processes of the runtime use now.
func (e *endpoint) usage(ctx context.Context) (usage, error) {
	roots, err := e.roots(ctx)
	if err != nil {
		return usage{}, err
	}
	table, err := processTable("/proc")
	if err != nil {
		return usage{}, err
	}
	return usageOf("/proc", table, family(table, roots, e.processes))
}

// pollEvery is how often something is looked at that tells nobody when it changes.
const pollEvery = time.Millisecond

// poll asks done until it says so, or an error, or the context ends.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// pidfd opens a process, so that its end cannot be taken for that of another one with its number.
func pidfd(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("process %d: %w", pid, err)
	}
	return fd, nil
}

// ended reports whether the process of a pidfd is dead.
func ended(fd int) (bool, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	if errors.Is(err, syscall.EINTR) {
		return false, nil
	}
	return n > 0, err
}
