// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package cgroup_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/cgroup"
)

// lab is a place in this machine's own hierarchies, removed with all that is in it when the test ends.
type lab struct {
	t    testing.TB
	host cgroup.Host
	base string // "/berth-test-cgroup-<random>"
}

func newLab(t testing.TB) *lab {
	t.Helper()
	host, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t, host, "/berth-test-cgroup-" + strings.ToLower(rand.Text()[:10])}
	t.Cleanup(l.sweep)
	if host.Version() == cgroup.V2 {
		l.enable(host.Root())
	}
	l.mkdir(l.base)
	return l
}

// only skips what this machine's version does not have.
func (l *lab) only(v cgroup.Version) {
	l.t.Helper()
	if l.host.Version() != v {
		l.t.Skipf("this machine has cgroup %v", l.host.Version())
	}
}

// group makes a group below the lab, with all controllers.
func (l *lab) group(path string) cgroup.Group {
	l.t.Helper()
	return l.mkdir(l.base + "/" + path)
}

func (l *lab) mkdir(path string) cgroup.Group {
	l.t.Helper()
	g, err := l.host.Group(path)
	if err != nil {
		l.t.Fatal(err)
	}
	for c, dir := range g.Paths() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			l.t.Fatal(err)
		}
		up := filepath.Dir(dir)
		if c == "cpuset" { // no process can join before these are set
			put(l.t, dir+"/cpuset.cpus", get(l.t, up+"/cpuset.cpus"))
			put(l.t, dir+"/cpuset.mems", get(l.t, up+"/cpuset.mems"))
		}
		// A group of the lab itself is for pods, one below it for containers.
		if g.Version() == cgroup.V2 && path == l.base {
			l.enable(dir)
		}
	}
	return g
}

// enable makes controllers available below a v2 folder.
func (l *lab) enable(dir string) {
	l.t.Helper()
	have := strings.Fields(get(l.t, dir+"/cgroup.subtree_control"))
	for _, c := range []string{"cpu", "memory", "pids", "io"} {
		if !slices.Contains(have, c) {
			put(l.t, dir+"/cgroup.subtree_control", "+"+c)
		}
	}
}

// dir is the group's folder for a controller.
func dir(g cgroup.Group, controller string) string {
	if g.Version() == cgroup.V2 {
		controller = ""
	}
	return g.Paths()[controller]
}

// join moves a process into the group, in each hierarchy, or in those named.
func join(t testing.TB, g cgroup.Group, pid int, controllers ...string) {
	t.Helper()
	for c, d := range g.Paths() {
		if len(controllers) == 0 || slices.Contains(controllers, c) {
			put(t, d+"/cgroup.procs", strconv.Itoa(pid))
		}
	}
}

// members lists who is in the group and below it.
func members(t testing.TB, g cgroup.Group) []string {
	t.Helper()
	var pids []string
	for _, d := range g.Paths() {
		for _, sub := range dirs(d) {
			b, err := os.ReadFile(sub + "/cgroup.procs")
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) && !errors.Is(err, syscall.EOPNOTSUPP) {
				t.Fatal(err)
			}
			pids = append(pids, strings.Fields(string(b))...)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

func dirs(root string) []string {
	var all []string
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	return all
}

// limitMemory sets a limit without swap.
func limitMemory(t testing.TB, g cgroup.Group, bytes int) {
	t.Helper()
	n := strconv.Itoa(bytes)
	d := dir(g, "memory")
	if g.Version() == cgroup.V2 {
		put(t, d+"/memory.max", n)
		put(t, d+"/memory.swap.max", "0")
		return
	}
	put(t, d+"/memory.limit_in_bytes", n)
	put(t, d+"/memory.memsw.limit_in_bytes", n)
}

// bounded is a context that ends long after everything should have.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for something that has no event.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !poll(30*time.Second, cond) {
		t.Fatalf("never: %s", what)
	}
}

// poll looks every millisecond, until cond is true or the time is up.
func poll(limit time.Duration, cond func() bool) bool {
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	end := time.After(limit)
	for {
		if cond() {
			return true
		}
		select {
		case <-look.C:
		case <-end:
			return cond()
		}
	}
}

// sweep removes the lab by means of its own, so that a fault of the package leaves nothing behind.
func (l *lab) sweep() {
	g, err := l.host.Group(l.base)
	if err != nil {
		l.t.Error(err)
		return
	}
	self := strconv.Itoa(os.Getpid())
	if !poll(10*time.Second, func() bool {
		left := false
		for _, root := range g.Paths() {
			all := dirs(root)
			slices.Reverse(all)
			for _, d := range all {
				for file, text := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0", "pids.max": "0"} {
					if f, err := os.OpenFile(d+"/"+file, os.O_WRONLY, 0); err == nil {
						_, _ = f.WriteString(text) // it may be gone by now
						f.Close()
					}
				}
				b, _ := os.ReadFile(d + "/cgroup.procs")
				for _, p := range strings.Fields(string(b)) {
					if pid, _ := strconv.Atoi(p); pid > 0 && p != self {
						syscall.Kill(pid, syscall.SIGKILL)
					}
				}
				if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
					left = true
				}
			}
		}
		return !left
	}) {
		l.t.Errorf("%s is still there", l.base)
	}
}
