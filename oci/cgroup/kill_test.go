// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/cgroup"
)

// The fixtures of this file are plain files that look like groups with real processes in them,
// so the list of processes never changes by itself.

// both runs a test on a v1 and a v2 group of plain files, each with a group below it. procs is
// the list of processes in the lower one.
func both(t *testing.T, procs string, f func(t *testing.T, g cgroup.Group, root string)) {
	t.Run("v1", func(t *testing.T) {
		root := tree(t, map[string]string{
			"freezer/x/cgroup.procs": "", "freezer/x/freezer.state": "THAWED\n",
			"freezer/x/y/cgroup.procs": procs, "freezer/x/y/freezer.state": "FROZEN\n",
			"memory/x/cgroup.procs": "",
		})
		f(t, fromPaths(t, map[string]string{"freezer": root + "/freezer/x", "memory": root + "/memory/x"}), root)
	})
	t.Run("v2", func(t *testing.T) {
		populated := "0"
		if procs != "" {
			populated = "1"
		}
		root := tree(t, map[string]string{
			"x/cgroup.controllers": "", "x/cgroup.events": "populated " + populated + "\nfrozen 0\n",
			"x/cgroup.procs": "", "x/cgroup.kill": "", "x/cgroup.freeze": "0\n",
			"x/y/cgroup.procs": procs,
		})
		f(t, v2(t, root+"/x"), root)
	})
}

// untouched fails if a kill began.
func untouched(t *testing.T, root string) {
	t.Helper()
	for path, want := range map[string]string{
		"/freezer/x/freezer.state": "THAWED\n", "/freezer/x/y/freezer.state": "FROZEN\n", "/x/cgroup.kill": "", "/x/cgroup.freeze": "0\n",
	} {
		b, err := os.ReadFile(root + path)
		if err == nil && string(b) != want {
			t.Errorf("%s is %q, was %q", path, b, want)
		}
	}
}

func TestKillRefusesItself(t *testing.T) {
	both(t, "1\n"+strconv.Itoa(os.Getpid())+"\n", func(t *testing.T, g cgroup.Group, root string) {
		if err := g.Kill(t.Context()); !errors.Is(err, cgroup.ErrSelf) {
			t.Errorf("%v", err)
		}
		untouched(t, root)
	})
	t.Run("in another hierarchy", func(t *testing.T) {
		root := tree(t, map[string]string{"freezer/x/cgroup.procs": "", "memory/x/cgroup.procs": strconv.Itoa(os.Getpid()) + "\n"})
		g := fromPaths(t, map[string]string{"freezer": root + "/freezer/x", "memory": root + "/memory/x"})
		if err := g.Kill(t.Context()); !errors.Is(err, cgroup.ErrSelf) {
			t.Errorf("%v", err)
		}
	})
}

func TestRootIsRefused(t *testing.T) {
	bystander := start(t, nil, "exit")
	procs := strconv.Itoa(bystander.pid()) + "\n"
	both(t, procs, func(t *testing.T, g cgroup.Group, root string) {
		if g.Version() == cgroup.V1 {
			put(t, root+"/memory/x/release_agent", "\n")
		} else if err := os.Remove(root + "/x/cgroup.events"); err != nil {
			t.Fatal(err)
		}
		if err := g.Kill(t.Context()); !errors.Is(err, cgroup.ErrRoot) {
			t.Errorf("Kill: %v", err)
		}
		if err := g.Remove(t.Context()); !errors.Is(err, cgroup.ErrRoot) {
			t.Errorf("Remove: %v", err)
		}
		untouched(t, root)
	})
	t.Run("of a hybrid host", func(t *testing.T) {
		root := tree(t, map[string]string{"freezer/cgroup.procs": procs, "unified/cgroup.controllers": "", "unified/cgroup.procs": ""})
		g := fromPaths(t, map[string]string{"freezer": root + "/freezer", "": root + "/unified"})
		if err := g.Kill(t.Context()); !errors.Is(err, cgroup.ErrRoot) {
			t.Errorf("Kill: %v", err)
		}
	})
	bystander.open()
	if got := bystander.ended(); got != "exit 7" {
		t.Errorf("the bystander ended with %s", got)
	}
}

func TestNothingToKill(t *testing.T) {
	both(t, "", func(t *testing.T, g cgroup.Group, root string) {
		if err := g.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for name, f := range map[string]func(context.Context) error{"Kill": g.Kill, "Empty": g.Empty} {
			if err := f(ended); err != nil { // what is so already needs no time
				t.Errorf("%s when ctx has ended: %v", name, err)
			}
		}
		untouched(t, root)
		for _, p := range g.Paths() {
			if err := os.RemoveAll(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Kill(t.Context()); err != nil {
			t.Errorf("gone: %v", err)
		}
		if err := g.Empty(t.Context()); err != nil {
			t.Errorf("gone: %v", err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Errorf("gone: %v", err)
		}
	})
}

// Without cgroup.kill, and with a freezer that never says FROZEN, each process is killed all the
// same, the group is thawed, and who remains is named: the list of plain files does not shrink.
func TestKillOneByOne(t *testing.T) {
	for name, setup := range map[string]func(t *testing.T, g cgroup.Group, root string){
		"as it is": func(*testing.T, cgroup.Group, string) {},
		"no freezer": func(t *testing.T, g cgroup.Group, root string) {
			for _, f := range []string{"/x/cgroup.freeze", "/freezer/x/freezer.state", "/freezer/x/y/freezer.state"} {
				if err := os.Remove(root + f); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, "0\n", func(t *testing.T, g cgroup.Group, root string) {
				if g.Version() == cgroup.V2 {
					if err := os.Remove(root + "/x/cgroup.kill"); err != nil {
						t.Fatal(err)
					}
				}
				setup(t, g, root)
				v := start(t, nil, "exit")
				for _, p := range []string{"/x/y/cgroup.procs", "/freezer/x/y/cgroup.procs"} {
					if _, err := os.Stat(root + p); err == nil {
						put(t, root+p, "0\n"+strconv.Itoa(v.pid())+"\n")
					}
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel() // one round is made even so
				err := g.Kill(ctx)
				remain, ok := errors.AsType[*cgroup.RemainError](err)
				if got := v.ended(); got != "signal 9" {
					t.Errorf("ended with %s", got)
				}
				if !ok || !errors.Is(err, context.Canceled) || len(remain.Processes) != 2 || remain.Processes[0] != (cgroup.Process{}) || remain.Processes[1].PID != v.pid() {
					t.Errorf("%#v", err)
				}
				for _, f := range []string{"/freezer/x/freezer.state", "/freezer/x/y/freezer.state"} {
					if b, err := os.ReadFile(root + f); err == nil && !strings.HasPrefix(string(b), "THAWED") {
						t.Errorf("%s is %q", f, b)
					}
				}
				if b, err := os.ReadFile(root + "/x/cgroup.freeze"); err == nil && !strings.HasPrefix(string(b), "0") {
					t.Errorf("cgroup.freeze is %q", b)
				}
			})
		})
	}
}

func TestKillWritesOneFileOnV2(t *testing.T) {
	v := start(t, nil, "exit")
	root := tree(t, map[string]string{
		"x/cgroup.controllers": "", "x/cgroup.events": "populated 1\nfrozen 0\n", "x/cgroup.kill": "", "x/cgroup.freeze": "0\n",
		"x/cgroup.procs": strconv.Itoa(v.pid()) + "\n",
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v2(t, root+"/x").Kill(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := get(t, root+"/x/cgroup.kill"); got != "1" {
		t.Errorf("cgroup.kill is %q", got)
	}
	if got := get(t, root+"/x/cgroup.freeze"); got != "0\n" {
		t.Errorf("cgroup.freeze is %q", got)
	}
	v.open()
	if got := v.ended(); got != "exit 7" {
		t.Errorf("ended with %s", got)
	}
}

func TestEmptyNamesWhoRemains(t *testing.T) {
	v := start(t, nil, "exit")
	both(t, strconv.Itoa(v.pid())+"\n", func(t *testing.T, g cgroup.Group, root string) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		err := g.Empty(ctx)
		remain, ok := errors.AsType[*cgroup.RemainError](err)
		if !ok || !errors.Is(err, context.DeadlineExceeded) || remain.Group != g.String() || remain.Frozen {
			t.Fatalf("%#v", err)
		}
		if len(remain.Processes) != 1 || remain.Processes[0].PID != v.pid() || remain.Processes[0].Comm == "" || remain.Processes[0].State == 0 {
			t.Errorf("%+v", remain.Processes)
		}
		if want := strconv.Itoa(v.pid()) + " " + remain.Processes[0].Comm + " ("; !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not contain %q", err, want)
		}
	})
}

func TestEmptyWhenTheListIs(t *testing.T) {
	both(t, strconv.Itoa(start(t, nil, "exit").pid())+"\n", func(t *testing.T, g cgroup.Group, root string) {
		done := make(chan error, 1)
		go func() { done <- g.Empty(t.Context()) }()
		if g.Version() == cgroup.V2 {
			put(t, root+"/x/cgroup.events", "populated 0\nfrozen 0\n")
		} else {
			put(t, root+"/freezer/x/y/cgroup.procs", "")
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("still waiting")
		}
	})
}

func TestRemainErrorText(t *testing.T) {
	err := &cgroup.RemainError{Group: "/x", Frozen: true, Err: context.DeadlineExceeded}
	for i := range 10 {
		err.Processes = append(err.Processes, cgroup.Process{PID: i, Comm: "sh", State: 'D'})
	}
	err.Processes[1] = cgroup.Process{PID: 0}
	const want = "cgroup /x: 10 processes remain: 0 sh (D), 0, 2 sh (D), 3 sh (D), 4 sh (D), 5 sh (D), 6 sh (D), 7 sh (D), …; an ancestor is frozen: context deadline exceeded"
	if got := err.Error(); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestRemoveFolders(t *testing.T) {
	root := tree(t, map[string]string{"freezer/p/x/y/z/": "", "freezer/p/x/w/": "", "memory/p/x/": "", "freezer/p/other/": ""})
	g := fromPaths(t, map[string]string{"freezer": root + "/freezer/p/x", "memory": root + "/memory/p/x", "pids": root + "/pids/p/x"})
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{"/freezer/p/x": false, "/memory/p/x": false, "/freezer/p/other": true, "/memory/p": true} {
		if _, err := os.Stat(root + path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// What cannot be removed does not keep the rest.
func TestRemoveBusy(t *testing.T) {
	root := tree(t, map[string]string{"freezer/x/y/file": "", "freezer/x/z/": "", "memory/x/": ""})
	g := fromPaths(t, map[string]string{"freezer": root + "/freezer/x", "memory": root + "/memory/x"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := g.Remove(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), root+"/freezer/x/y") {
		t.Errorf("%v", err)
	}
	if _, ok := errors.AsType[*cgroup.RemainError](err); ok {
		t.Errorf("%v speaks of processes", err)
	}
	for path, want := range map[string]bool{"/freezer/x/y": true, "/freezer/x/z": false, "/memory/x": false} {
		if _, err := os.Stat(root + path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}
