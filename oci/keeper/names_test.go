// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/keeper"
)

// What is put is handed to the next executor: the same open files under the same
// names, in the same order.
func TestPutHave(t *testing.T) {
	r := running(t)
	r.wantHeld()
	var paths []string
	var files []file
	for i := range keeper.MaxFDs {
		p, f := r.file(fmt.Sprint("f", i))
		paths, files = append(paths, p), append(files, f)
	}
	want := []held{
		{Name: "none"},
		{Name: "one", Files: files[:1]},
		{Name: "c/an id/with spaces", Files: files[1:4]},
		{Name: "ü=\t-%s%n", Files: files[4:5]},
		{Name: strings.Repeat("n", keeper.MaxName), Files: files}, // both at their limit
	}
	for _, h := range want {
		var p []string
		for _, f := range h.Files {
			p = append(p, paths[slices.Index(files, f)])
		}
		r.put(h.Name, p...)
	}
	keeperPID := r.keeper.pid
	for range 3 {
		r.kill()
		r.wantHeld(want...)
		if r.exec.Parent != keeperPID {
			t.Fatalf("executor is a child of %d, not of the keeper, %d", r.exec.Parent, keeperPID)
		}
	}
	if got := r.do(order{Do: "names"}).N; got != len(want) {
		t.Errorf("the client knows %d names, want %d", got, len(want))
	}
	r.idle()
}

func TestPutReplacesWhatTheNameHeld(t *testing.T) {
	r := running(t)
	old := r.fifo("old")
	p1, f1 := r.file("f1")
	p2, f2 := r.file("f2")
	r.put("log", "w:"+old.path)
	r.do(order{Do: "close", Name: "log"})
	if old.hungUp(t) {
		t.Fatal("the pipe broke although the keeper holds it")
	}
	r.put("log", p1, p2)
	if !old.hungUp(t) {
		t.Error("what the name held before is still open after the answer")
	}
	r.kill()
	r.wantHeld(held{Name: "log", Files: []file{f1, f2}})
}

func TestDeleteCloses(t *testing.T) {
	r := running(t)
	var want []held
	pipes := make(map[string]*fifo)
	for _, name := range []string{"first", "middle", "last"} {
		p, f := r.file(name + ".file")
		pipes[name] = r.fifo(name)
		r.put(name, p, "w:"+pipes[name].path)
		r.do(order{Do: "close", Name: name})
		want = append(want, held{Name: name, Files: []file{f, identify(int(pipes[name].r.Fd()))}})
	}
	for i, name := range []string{"first", "last", "middle"} {
		if pipes[name].hungUp(t) {
			t.Errorf("%s is closed too early", name)
		}
		r.do(order{Do: "delete", Name: name})
		if !pipes[name].hungUp(t) {
			t.Errorf("%s is still open after the answer", name)
		}
		if got := r.do(order{Do: "names"}).N; got != 2-i {
			t.Errorf("the client knows %d names, want %d", got, 2-i)
		}
		if i == 0 {
			r.do(order{Do: "delete", Name: name}) // again is no error
			r.do(order{Do: "delete", Name: "never put"})
			// The executor's copies of what it is handed end with it.
			r.kill()
			r.wantHeld(want[1:]...)
			r.do(order{Do: "close", Name: "middle"})
			r.do(order{Do: "close", Name: "last"})
		}
	}
}

// The client refuses what the keeper could not hand on.
func TestNamesThatAreRefused(t *testing.T) {
	r := running(t)
	p, f := r.file("f")
	r.put("kept", p)
	tests := []struct {
		name  string
		files int
	}{
		{name: "", files: 1},
		{name: strings.Repeat("n", keeper.MaxName+1), files: 1},
		{name: "two\nlines", files: 1},
		{name: "end\n", files: 1},
		{name: "nul\x00", files: 1},
		{name: "kept", files: keeper.MaxFDs + 1},
	}
	for _, tt := range tests {
		rep, ok := r.try(order{Do: "put", Name: tt.name, Paths: slices.Repeat([]string{p}, tt.files)})
		if !ok || !strings.Contains(rep.Err, keeper.ErrName.Error()) {
			t.Errorf("put %.20q with %d descriptors: %q", tt.name, tt.files, rep.Err)
		}
	}
	r.kill()
	r.wantHeld(held{Name: "kept", Files: []file{f}})
}

// A thousand names with two descriptors each, put side by side, under the limit of
// descriptors that a shell gives.
func TestThousandNames(t *testing.T) {
	r := newRig(t)
	cmd := r.command(self(t))
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `ulimit -Sn 1024; exec "$0" "$@"`}, cmd.Args...)
	r.start(cmd)
	r.next()
	p, f := r.file("f")
	r.do(order{Do: "many", Name: "n", N: 1000, Paths: []string{p, p}})
	r.kill()
	var want []held
	for i := range 1000 {
		want = append(want, held{Name: fmt.Sprintf("n/%d", i), Files: []file{f, f}})
	}
	r.wantHeld(want...)
}

// A keeper that has no number left for a descriptor says so, and holds on to what
// the name had.
func TestPutIsRefusedWithoutRoom(t *testing.T) {
	r := running(t)
	p, f := r.file("f")
	r.put("log", p)
	// One number is free below the limit: one of three descriptors has room.
	limit := unix.Rlimit{}
	for free := 0; free < 1; limit.Max++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", r.keeper.pid, limit.Max)); err != nil {
			free++
		}
	}
	limit.Cur = limit.Max
	if err := unix.Prlimit(r.keeper.pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"log", "new"} {
		rep, ok := r.try(order{Do: "put", Name: name, Paths: []string{p, p, p}})
		if !ok || !strings.Contains(rep.Err, keeper.ErrRefused.Error()) {
			t.Errorf("put %s: %q", name, rep.Err)
		}
	}
	if got := r.do(order{Do: "names"}).N; got != 1 {
		t.Errorf("the client knows %d names, want 1", got)
	}
	// The client's list counts when it becomes the keeper.
	r.keeper.signal(t, unix.SIGKILL)
	r.next()
	r.wantHeld(held{Name: "log", Files: []file{f}})
}

// The executor starts with the standard streams, the socket, and nothing that the
// keeper has open besides; no signal is blocked, and its limit is not the keeper's.
func TestWhatAnExecutorStartsWith(t *testing.T) {
	r := newRig(t)
	limits := filepath.Join(r.dir, "limits")
	script := filepath.Join(r.dir, "script")
	writeScript(t, script, fmt.Sprintf("ulimit -Sn >>%s\nexec %s \"$@\"", limits, self(t)))
	cmd := r.command(script)
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `ulimit -Sn 300; exec "$0" "$@"`}, cmd.Args...)
	r.start(cmd)
	p, _ := r.file("f")
	for i := range 3 {
		r.next()
		if want := []int{0, 1, 2, 3}; !slices.Equal(r.exec.Open, want) {
			t.Errorf("start %d: descriptors %v are open, want %v", i, r.exec.Open, want)
		}
		if strings.Trim(r.exec.Blocked, "0") != "" {
			t.Errorf("start %d: signals %s are blocked", i, r.exec.Blocked)
		}
		r.put(fmt.Sprint("name", i), p, p)
		r.exec.signal(t, unix.SIGKILL)
	}
	r.next()
	b, err := os.ReadFile(limits)
	if want := strings.Repeat("300\n", 4); err != nil || string(b) != want {
		t.Errorf("limits of descriptors: %q, %v, want %q", b, err, want)
	}
}

func writeScript(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// The mount namespace is needed before Go starts.
func TestMountNamespaceIsDescriptorFour(t *testing.T) {
	r := running(t)
	p, f := r.file("ns")
	other, _ := r.file("other")
	r.put("a", other)
	r.put(keeper.MountNamespace, p)
	r.put("b", other)
	r.kill()
	if r.exec.Four != f {
		t.Errorf("descriptor 4 is %v, want %v", r.exec.Four, f)
	}
	if want := []int{0, 1, 2, 3, 4}; !slices.Equal(r.exec.Open, want) {
		t.Errorf("descriptors %v are open, want %v", r.exec.Open, want)
	}
	r.do(order{Do: "delete", Name: keeper.MountNamespace})
	r.kill()
	if want := []int{0, 1, 2, 3}; !slices.Equal(r.exec.Open, want) {
		t.Errorf("descriptors %v are open, want %v", r.exec.Open, want)
	}
}
