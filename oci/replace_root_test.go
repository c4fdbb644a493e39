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
	"time"

	"github.com/berth-cri/berth/oci/wire"
)

// second returns the executor's second build.
func second(t *testing.T) string {
	t.Helper()
	path, err := buildExecutor("two")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// replace replaces, and returns what the executor then says of itself.
func (r *rig) replace(executor, keeper string) wire.Report {
	r.t.Helper()
	if err := r.Replace(r.t.Context(), wire.Replace{Executor: executor, Keeper: keeper}); err != nil {
		r.t.Fatalf("replace: %v\n%s", err, r.said())
	}
	return r.report()
}

// keeperRuns says whether the keeper's image is path's.
func (r *rig) keeperRuns(path string) bool {
	r.t.Helper()
	image, err := os.Stat(fmt.Sprintf("/proc/%d/exe", r.keeperPID()))
	file, ferr := os.Stat(path)
	if err := errors.Join(err, ferr); err != nil {
		r.t.Fatal(err)
	}
	return os.SameFile(image, file)
}

// TestReplace replaces executor and keeper by another build and back, one alone
// and both, while containers write: none is touched, and no line is lost.
func TestReplace(t *testing.T) {
	one, two := built.executor, second(t)
	r := newRig(t)
	created := r.writers(8, 1000, 1)
	keeper := r.keeperPID()
	for _, step := range []struct {
		executor, keeper string // "" leaves it
		build, image     string // then
	}{
		{two, "", "two", one},
		{"", two, "two", two},
		{one, "", "one", two},
		{"", one, "one", one},
		{two, two, "two", two},
		{one, one, "one", one},
	} {
		before := r.report()
		now := r.replace(step.executor, step.keeper)
		if now.Build != step.build {
			t.Errorf("%+v: executor is %q, want %q", step, now.Build, step.build)
		}
		if renewed := now.PID != before.PID; renewed != (step.executor != "") {
			t.Errorf("%+v: executor was %d and is %d", step, before.PID, now.PID)
		}
		if now.KeeperPID != keeper || !r.keeperRuns(step.image) {
			t.Errorf("%+v: keeper is %d, want %d of %s", step, now.KeeperPID, keeper, step.image)
		}
		r.checkUntouched(created)
	}
	// The build stays the one that was asked for, and does not fall back to the first.
	r.replace(two, "")
	r.restart(killExecutor)
	if got := r.report().Build; got != "two" {
		t.Errorf("after its death the executor is %q, want %q", got, "two")
	}
	r.restart(killKeeper)
	if got := r.report().Build; got != "two" {
		t.Errorf("after the keeper's death the executor is %q, want %q", got, "two")
	}
	r.checkUntouched(created)
	r.endWriters(created, false)
}

// TestReplaceUnderWay replaces while containers are made, run and deleted.
func TestReplaceUnderWay(t *testing.T) {
	binaries := []string{second(t), built.executor}
	r := newRig(t)
	stop, done := make(chan struct{}), make(chan error, 3)
	for w := range cap(done) {
		go func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				exit, err := r.life(fmt.Sprintf("w%d-%d", w, n), oomCase{args: []string{"exit", "9"}})
				if err != nil || exit.Code != 9 {
					done <- fmt.Errorf("life %d: exit %+v, %w", n, exit, err)
					return
				}
			}
		}()
	}
	for n := range 24 {
		binary := binaries[n%2]
		var build string
		switch n % 3 {
		case 0:
			build = r.replace(binary, "").Build
		case 1:
			build = r.replace(binary, binary).Build
		default:
			r.replace("", binary)
			continue
		}
		if want := strings.TrimPrefix(filepath.Base(binary), "berth-executor-"); build != want {
			t.Errorf("replacement %d: executor is %q, want %q", n, build, want)
		}
	}
	close(stop)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	r.settle(t, r.held())
}

// script writes a program that passes for an executor until it is started as one.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bad")
	text = "#!/bin/sh\n[ \"$1\" = --version ] && echo berth-executor bad && exit 0\n" + text + "\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReplaceByNothing names what is no executor: it is refused, and nothing happens.
func TestReplaceByNothing(t *testing.T) {
	r := newRig(t)
	created := r.writers(2, 200, 0)
	before := r.report()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		filepath.Join(dir, "missing"), dir, plain, "/bin/false", "/bin/true", "berth-executor", "/proc/self/mem",
	} {
		for _, req := range []wire.Replace{{Executor: path}, {Keeper: path}, {Executor: built.executor, Keeper: path}} {
			err := r.Replace(t.Context(), req)
			wantCode(t, err, wire.Invalid)
			if err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("error = %v, want it to name %s", err, path)
			}
		}
	}
	after := r.report()
	if after.PID != before.PID || after.KeeperPID != before.KeeperPID || after.Build != before.Build {
		t.Errorf("executor was %+v and is %+v", before, after)
	}
	r.checkUntouched(created)
	r.endWriters(created, false)
}

// TestReplaceByBroken replaces by what does not come to serve: the node goes on
// with what it had.
func TestReplaceByBroken(t *testing.T) {
	r := newRig(t)
	created := r.writers(4, 1000, 0)
	ends := script(t, "exit 1")
	loops := script(t, `[ "$1" = executor ] && exec sleep 0.2; exit 1`)
	for _, req := range []wire.Replace{
		{Executor: ends}, {Keeper: ends}, {Executor: ends, Keeper: ends}, {Executor: loops}, {Executor: built.executor, Keeper: ends},
	} {
		before := r.report()
		if err := r.Replace(t.Context(), req); err != nil {
			t.Errorf("%+v: %v\n%s", req, err, r.said())
		}
		// Whichever process has become the keeper, somebody serves, with the build from before.
		r.waitFor("a keeper that is the executor's parent", func() bool {
			now := r.report()
			return now.Build == before.Build && now.KeeperPID == r.keeperPID()
		})
		r.checkUntouched(created)
		r.restart(killExecutor)
		if got := r.report().Build; got != "one" {
			t.Errorf("%+v: after its death the executor is %q", req, got)
		}
	}
	r.checkUntouched(created)
	r.endWriters(created, false)
}

// waitFor waits for what has no event.
func (r *rig) waitFor(what string, is func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(2 * time.Millisecond) { //nolint:forbidigo // what is waited for has no event
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s\n%s", what, r.said())
		}
	}
}

// TestBinaryGone overwrites and deletes the executor's file: containers go on to be
// made and exec'd in, by the same build, and also after executor and keeper died.
func TestBinaryGone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "executor")
	b, err := os.ReadFile(built.executor)
	if err == nil {
		err = os.WriteFile(file, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	r := newRigOf(t, file)
	r.container("first", nil)
	check := func(id string) {
		t.Helper()
		r.runs(id, 5, []string{"exit", "5"})
		e := wire.Exec{ID: "first", Exec: id, Process: testSpec([]string{"exit", "6"}, "").Process}
		if _, err := r.Exec(t.Context(), e, nil); err != nil {
			t.Errorf("exec: %v\n%s", err, r.said())
		} else if exit := r.wait("first/" + id); exit.Code != 6 {
			t.Errorf("exec's exit = %+v, want code 6", exit)
		}
		if got := r.report().Build; got != "one" {
			t.Errorf("%s: executor is %q, want %q", id, got, "one")
		}
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"replaced", func() error { // by rename, as a package manager does
			if err := os.WriteFile(file+".new", []byte("#!/bin/false\n"), 0o755); err != nil {
				return err
			}
			return os.Rename(file+".new", file)
		}},
		{"deleted", func() error { return os.Remove(file) }},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		check(step.name)
		for n, v := range []victim{killExecutor, killKeeper, killExecutor} {
			r.restart(v)
			check(fmt.Sprintf("%s-%d", step.name, n))
		}
	}
	r.Config.Binary = built.executor // for the rig's end
}
