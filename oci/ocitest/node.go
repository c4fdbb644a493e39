// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ocitest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/oci"
)

const (
	closeLimit = 60 * time.Second // of all that ends a Node
	goneLimit  = 10 * time.Second // of a process that was told to end
)

// Node is a keeper and an executor of a test's own, and a connection to them.
type Node struct {
	*oci.Executor
	Name   string // unique: cgroups of the test are at /Name and below
	Folder string // on a tmpfs, as /run is on a node: /dev/shm/Name
	Config oci.StartConfig

	tb testing.TB
}

// New starts a keeper and an executor. When the test has ended all containers and pods are ended,
// then executor and keeper; what is left of them fails the test, and so does what the options name.
func New(tb testing.TB, binary string, opts ...leak.Option) *Node {
	tb.Helper()
	return NewOn(tb, binary, func(*Node) {}, opts...)
}

// NewOn is New, but that prepare is called once the state folder is there and nothing else: it may
// mount a file system on it.
func NewOn(tb testing.TB, binary string, prepare func(*Node), opts ...leak.Option) *Node {
	tb.Helper()
	name := "berth-test-" + strings.ToLower(rand.Text()[:8])
	// Not every machine's /run is a tmpfs.
	n := &Node{Name: name, Folder: filepath.Join("/dev/shm", name), tb: tb}
	n.Config = oci.StartConfig{
		State: filepath.Join(n.Folder, "executor"), Binary: binary,
		Log: filepath.Join(n.Folder, "log"), Cgroup: "/" + name + "/keeper",
	}
	leak.Check(tb, append(opts, leak.Under(n.Folder), leak.Cgroups(name))...)
	if err := os.MkdirAll(n.Config.State, 0o711); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(n.close)
	prepare(n)
	var err error
	if n.Executor, err = oci.Start(tb.Context(), n.Config); err != nil {
		tb.Fatalf("%v\n%s", err, n.Said())
	}
	return n
}

// Said returns what keeper and executor have written into their log.
func (n *Node) Said() string {
	b, err := os.ReadFile(n.Config.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// KeeperPID returns the keeper's process, as it has written it down.
func (n *Node) KeeperPID() (int, error) {
	b, err := os.ReadFile(filepath.Join(n.Config.State, "keeper.pid"))
	if err != nil {
		return 0, err
	}
	pid, _, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	return strconv.Atoi(pid)
}

// close ends every container, then executor and keeper, and takes away what the first start of an
// executor leaves for the next.
func (n *Node) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	if n.tb.Failed() {
		n.tb.Logf("executor said:\n%s", n.Said())
	}
	if err := n.end(ctx); err != nil {
		n.tb.Errorf("clean up: %v\n%s", err, n.Said())
	}
}

func (n *Node) end(ctx context.Context) error {
	e, err := oci.Start(ctx, n.Config) // whatever the test has killed
	if err != nil {
		return err
	}
	defer e.Close()
	if n.Executor != nil {
		n.Executor.Close()
	}
	errs := []error{endAll(ctx, e)}
	keeper, err := n.KeeperPID()
	errs = append(errs, err, e.Quit(ctx))
	if err == nil {
		errs = append(errs, WaitGone(keeper))
	}
	for _, dir := range []string{filepath.Join(n.Config.State, "m"), n.Config.State} { // see NewOn
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(n.Folder), RemoveCgroups(n.Name))...)
}

// endAll ends all that an executor has.
func endAll(ctx context.Context, e *oci.Executor) error {
	o, err := e.Observe(ctx)
	if err != nil {
		return err
	}
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(o.Containers))
	)
	for i, c := range o.Containers {
		wg.Go(func() { errs[i] = errors.Join(e.KillAll(ctx, c.ID), e.Delete(ctx, c.ID)) })
	}
	wg.Wait()
	for _, id := range o.Pods {
		errs = append(errs, e.PodDelete(ctx, id))
	}
	return errors.Join(errs...)
}

// WaitGone waits until a process has ended; a zombie that nobody reaps has.
func WaitGone(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(goneLimit); time.Now().Before(deadline); {
		n, err := unix.Poll(poll, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the end of %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// RemoveCgroups removes the cgroup /name and those below it in every hierarchy: the folders that
// libcontainer makes as parents, and nobody removes. One that has a process stays, and is an error.
func RemoveCgroups(name string) error {
	tops, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		return err
	}
	var errs []error
	for _, top := range append(tops, "/sys/fs/cgroup/"+name) {
		var folders []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				folders = append(folders, path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		errs = append(errs, err)
		for _, f := range slices.Backward(folders) {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
