// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// smallState puts the rig's state folder on a tmpfs of its own.
func smallState(r *rig) {
	if err := unix.Mount("berth-test", r.state, "tmpfs", 0, "size=16m,mode=711"); err != nil {
		r.t.Fatal(err)
	}
}

// fill leaves no room in the state folder, until the returned function is called.
func (r *rig) fill() (empty func()) {
	r.t.Helper()
	path := filepath.Join(r.state, "filler")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		r.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			r.t.Error(err)
		}
	}
}

// TestFullState: how something ended is written down and told although the state
// folder is full; what would begin then is refused.
func TestFullState(t *testing.T) {
	r := newRigOn(t, built.executor, smallState)
	r.container("seen", []string{"sleep", "5", "ready"})
	unseen := r.container("unseen", []string{"sleep", "6", "ready"})
	for _, id := range []string{"seen", "unseen"} {
		r.waitLog(id, "ready")
	}
	e := r.exec("unseen", "e", execArgs("sleep", "7", "ready"), wire.Exec{Stdout: true})
	go e.out.read()
	e.out.await(t, "ready")
	empty := r.fill()
	if err := r.Signal(t.Context(), "seen", unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := r.wait("seen"); exit.Code != 5 || exit.Lost {
		t.Errorf("exit = %+v", exit)
	}
	if _, err := r.Create(t.Context(), r.request("more", []string{"exit", "0"})); err == nil || !strings.Contains(err.Error(), unix.ENOSPC.Error()) {
		t.Errorf("a create without room: %v", err)
	}
	if err := unix.Kill(e.created.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := r.wait("unseen/e"); exit.Code != 7 || exit.Lost {
		t.Errorf("exit of an exec = %+v", exit)
	}
	executor := r.executorPID()
	if err := unix.Kill(executor, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(unseen.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitGone(t, unseen.PID)
	kill(t, executor)
	if exit := r.wait("unseen"); exit.Code != 6 || exit.Lost {
		t.Errorf("exit that the next executor found = %+v", exit)
	}
	if _, err := os.Stat(filepath.Join(r.state, "c", "unseen", "exit")); err != nil {
		t.Error(err)
	}
	empty()
	r.runs("more", 8, []string{"exit", "8"})
}

// TestAlone: an executor that has no keeper, and cannot become it, says so to those
// who need one, and becomes it when it can.
func TestAlone(t *testing.T) {
	r := newRig(t)
	r.pod("pod")
	executor := r.executorPID()
	var before unix.Rlimit
	if err := unix.Prlimit(executor, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	// Without a descriptor for the list of what is held there is nothing to hand on.
	none := unix.Rlimit{Cur: 3, Max: before.Max}
	if err := unix.Prlimit(executor, unix.RLIMIT_NOFILE, &none, nil); err != nil {
		t.Fatal(err)
	}
	kill(t, r.keeperPID())
	err := r.PodDelete(t.Context(), "pod")
	wantCode(t, err, wire.Failed)
	if err == nil || !strings.Contains(err.Error(), "keeper") {
		t.Errorf("error = %v, want one that says what is missing", err)
	}
	if err := unix.Prlimit(executor, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	r.waitKeeper(executor)
	r.nextExecutor()
	if err := r.PodDelete(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
}

// TestJoinContainer: a container in the PID namespace of another.
func TestJoinContainer(t *testing.T) {
	r := newRig(t)
	a := r.container("a", nil)
	join := func(c *wire.Create) {
		for i := range c.Spec.Linux.Namespaces {
			if c.Spec.Linux.Namespaces[i].Type == specs.PIDNamespace {
				c.Spec.Linux.Namespaces[i].Path = wire.FromContainer + "a"
			}
		}
	}
	b := r.container("b", nil, join)
	if got, want := pidNS(t, b.PID), pidNS(t, a.PID); got != want {
		t.Errorf("b is in %s, a in %s", got, want)
	}
	if err := errors.Join(r.KillAll(t.Context(), "b"), r.Delete(t.Context(), "b")); err != nil {
		t.Error(err)
	}
	for _, f := range r.executorFiles() {
		if strings.HasPrefix(f, "pid:[") {
			t.Errorf("the executor has %s open", f)
		}
	}
	if err := r.KillAll(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	_, err := r.Create(t.Context(), r.request("c", nil, join))
	wantCode(t, err, wire.BadState)
}

// executorFiles lists what the executor has open.
func (r *rig) executorFiles() []string {
	r.t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", r.executorPID()))
	if err != nil {
		r.t.Fatal(err)
	}
	var list []string
	for _, path := range paths {
		if to, err := os.Readlink(path); err == nil {
			list = append(list, to)
		}
	}
	return list
}
