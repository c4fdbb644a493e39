// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/oci/ocitest"
	"github.com/berth-cri/berth/oci/wire"
)

func TestLife(t *testing.T) {
	r := newRig(t)
	r.container("c1", []string{"echo", "hello", "world"})
	exit := r.wait("c1")
	if exit.Code != 0 || exit.Signal != 0 || exit.OOMKilled || exit.Lost {
		t.Errorf("exit = %+v, want code 0", exit)
	}
	if got := r.logLines("c1", crilog.Stdout); !slices.Equal(got, []string{"hello world"}) {
		t.Errorf("stdout = %q", got)
	}
	if got := r.logLines("c1", crilog.Stderr); !slices.Equal(got, []string{"err hello world"}) {
		t.Errorf("stderr = %q", got)
	}
	if err := r.Delete(t.Context(), "c1"); err != nil {
		t.Error(err)
	}
	if err := r.Delete(t.Context(), "c1"); err != nil {
		t.Errorf("second delete: %v", err)
	}
	o, err := r.Observe(t.Context())
	if err != nil || len(o.Containers) != 0 {
		t.Errorf("observe after delete = %+v, %v", o, err)
	}
}

func TestSignalAndExitCode(t *testing.T) {
	r := newRig(t)
	r.container("term", []string{"sleep", "42"})
	r.container("kill", []string{"sleep"})
	for id, s := range map[string]unix.Signal{"term": unix.SIGTERM, "kill": unix.SIGKILL} {
		if err := r.Signal(t.Context(), id, s); err != nil {
			t.Fatal(err)
		}
	}
	if e := r.wait("term"); e.Code != 42 || e.Signal != 0 {
		t.Errorf("exit = %+v, want code 42", e)
	}
	if e := r.wait("kill"); e.Code != 137 || e.Signal != 9 {
		t.Errorf("exit = %+v, want code 137 by signal 9", e)
	}
	if err := r.Signal(t.Context(), "kill", unix.SIGTERM); err != nil {
		t.Errorf("signal to one that has ended: %v", err)
	}
	err := r.Signal(t.Context(), "nobody", unix.SIGTERM)
	wantCode(t, err, wire.NotFound)
}

// TestOwnCgroup shows that keeper and executor are in no cgroup of their starter
// in which that one could be killed as a whole.
func TestOwnCgroup(t *testing.T) {
	r := newRig(t)
	for name, pid := range map[string]int{"keeper": r.keeperPID(), "executor": r.executorPID()} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			// hierarchy:controllers:path
			parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if parts[1] != "cpuset" && parts[2] != r.Config.Cgroup {
				t.Errorf("%s is in %q, want %s", name, line, r.Config.Cgroup)
			}
		}
	}
}

// TestStartEnvironment: the keeper and its executors have nothing of their
// starter's environment but PATH.
func TestStartEnvironment(t *testing.T) {
	t.Setenv("BERTH_TEST_SECRET", "of the starter")
	r := newRig(t)
	for name, pid := range map[string]int{"keeper": r.keeperPID(), "executor": r.executorPID()} {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			t.Fatal(err)
		}
		for v := range strings.SplitSeq(strings.Trim(string(env), "\x00"), "\x00") {
			if key, _, _ := strings.Cut(v, "="); key != "PATH" && key != "BERTH_KEEPER_JOIN" {
				t.Errorf("%s has %q", name, v)
			}
		}
	}
}

// TestStartWithoutCgroup: a start that fails leaves nothing open.
func TestStartWithoutCgroup(t *testing.T) {
	name := "berth-test-" + strings.ToLower(rand.Text()[:8])
	leak.Check(t, leak.Cgroups(name))
	hierarchy := "/sys/fs/cgroup/pids"
	if _, err := os.Stat(hierarchy); err != nil {
		t.Skip("one hierarchy: there is nothing open when it fails")
	}
	// No cgroup can be made in one of them.
	dir := filepath.Join(hierarchy, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ocitest.RemoveCgroups(name); err != nil {
			t.Error(err)
		}
	})
	mountAt(t, dir, unix.MS_PRIVATE)
	state := t.TempDir()
	cfg := oci.StartConfig{State: state, Binary: built.executor, Log: filepath.Join(state, "log"), Cgroup: "/" + name + "/keeper"}
	before := openFiles(t, os.Getpid())
	for range 5 { // the order is not always the same
		if e, err := oci.Start(t.Context(), cfg); err == nil {
			e.Close()
			t.Fatal("started in a cgroup that cannot be made")
		}
	}
	if now := openFiles(t, os.Getpid()); now > before {
		t.Errorf("%d descriptors are open, %d before", now, before)
	}
}
