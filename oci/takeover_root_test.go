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
