// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// TestTakeoverTriesAgain: a container that cannot be taken over at once costs no
// other anything, is tried again until it can be, and the log says so once.
func TestTakeoverTriesAgain(t *testing.T) {
	r := newRig(t)
	other := r.container("other", []string{"sleep", "4"})
	gap := r.container("gap", []string{"exit", "33", "300"})
	keeper, executor := r.keeperPID(), r.executorPID()
	r.exits.stop()
	for _, pid := range []int{executor, keeper} {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	waitGone(t, gap.PID)
	// Where its exit is to be written nothing can be.
	folder := filepath.Join(r.state, "c", "gap", "exit.tmp")
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{executor, keeper} {
		kill(t, pid)
	}
	r.waitFor("pid 1 reaps the one that has ended", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", gap.PID))
		return errors.Is(err, fs.ErrNotExist)
	})
	r.startAgain()
	if err := r.Signal(t.Context(), "other", unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := r.wait("other"); e.Code != 4 || e.PID != other.PID {
		t.Errorf("exit of the other = %+v", e)
	}
	o, err := r.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range o.Containers {
		if c.ID == "gap" && c.State == wire.Exited {
			t.Errorf("its exit cannot have been written, and is told: %+v", c.Exit)
		}
	}
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	if e := r.wait("gap"); e.PID != gap.PID || !e.Lost && e.Code != 33 {
		t.Errorf("exit in the gap = %+v", e)
	}
	if n := strings.Count(r.said(), "not taken over completely"); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, r.said())
	}
}

// TestUnreadable: a container whose record cannot be read is left alone, cannot be
// overwritten, is seen, and can be deleted.
func TestUnreadable(t *testing.T) {
	r := newRig(t)
	held := r.held()
	c := r.container("d", []string{"sleep", "0", "ready"}, withStdin, hostPID) // else all would end with the first
	r.container("e", nil)
	r.waitLog("d", "ready")
	x := r.exec("d", "x", execArgs("sleep"), wire.Exec{OwnCgroup: true})
	record := filepath.Join(r.state, "c", "d", "record")
	r.damage(record)

	_, err := r.Create(t.Context(), r.request("d", []string{"exit", "0"}))
	wantCode(t, err, wire.Exists)
	if err == nil || !strings.Contains(err.Error(), record) {
		t.Errorf("a create with its id: %v; want one that names %s", err, record)
	}
	if start := startTime(t, c.PID); start != c.Start {
		t.Error("its process is another's")
	}
	if err := r.Start(t.Context(), "d"); !errors.Is(err, &wire.Error{Code: wire.BadState}) {
		t.Errorf("start of it: %v", err)
	}
	wantCode(t, r.KillAll(t.Context(), "d"), wire.BadState)
	r.mustObserve("e")
	o, err := r.Observe(t.Context())
	if err != nil || len(o.Unreadable) != 1 || o.Unreadable[0].ID != "d" || o.Unreadable[0].Record != record || o.Unreadable[0].Why == "" {
		t.Errorf("observed: %+v, %v", o.Unreadable, err)
	}

	// Where its cgroup is cannot be known for the moment.
	state := filepath.Join(r.state, "lc", "d", "state.json")
	if err := os.Rename(state, state+"-"); err != nil {
		t.Fatal(err)
	}
	err = r.Delete(t.Context(), "d")
	wantCode(t, err, wire.Failed)
	if err == nil || !strings.Contains(err.Error(), state) || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("a delete that cannot know what to kill: %v", err)
	}
	if start := startTime(t, c.PID); start != c.Start {
		t.Error("its process is another's")
	}
	if err := os.Rename(state+"-", state); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		if err := r.Delete(t.Context(), "d"); err != nil {
			t.Error(err)
		}
	}
	for _, pid := range []int{c.PID, x.created.PID} {
		r.waitFor("its process is gone", func() bool {
			_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
			return err != nil
		})
	}
	r.runs("d", 5, []string{"exit", "5"})
	r.settle(t, held)
}

// damage makes a record unreadable for the next executor.
func (r *rig) damage(record string) {
	r.t.Helper()
	executor := r.executorPID()
	if err := unix.Kill(executor, unix.SIGSTOP); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(record, []byte("{"), 0o600); err != nil {
		r.t.Fatal(err)
	}
	kill(r.t, executor)
	r.nextExecutor()
}
