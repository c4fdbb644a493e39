// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/wire"
)

const memoryLimit = 24 << 20 // an init of libcontainer needs some 10 MiB

// driver is a way to place a container.
type driver struct {
	name   string
	rounds int  // of TestOOM; 50 make 200 that are killed, and 200 that are not
	byPID  bool // only the kills of first processes are known
	// place puts a container into a pod's cgroup.
	place func(r *rig, pod string) option
}

// drivers lists what this machine can be used with.
func drivers(t *testing.T) []driver {
	t.Helper()
	list := []driver{{name: "cgroupfs", rounds: 50, place: func(*rig, string) option { return limited }}}
	version, err := cgroup.Detect(cgroup.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil || version != cgroup.V2 {
		return list
	}
	return append(list,
		// A pod's slice is there before its containers, as a kubelet's is.
		driver{"systemd", 50, false, func(r *rig, pod string) option { return inScope(r, r.slice(pod, true)) }},
		// One that systemd makes and removes with its scopes.
		driver{"systemd, slice comes and goes", 10, true, func(r *rig, pod string) option { return inScope(r, r.slice(pod, false)) }},
		driver{"systemd, no pod's slice", 10, true, func(r *rig, _ string) option { return inScope(r, "system.slice") }},
	)
}

func limited(c *wire.Create) {
	c.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(memoryLimit))}
}

func inScope(r *rig, slice string) option {
	return func(c *wire.Create) {
		limited(c)
		c.Systemd = true
		c.Spec.Linux.CgroupsPath = slice + ":" + r.name + ":" + c.ID
	}
}

// slice names a pod's slice, and makes it.
func (r *rig) slice(pod string, start bool) string {
	name := strings.ReplaceAll(r.name, "-", "") + "-" + pod + ".slice"
	if start {
		systemctl(r.t, "start", name)
	}
	return name
}

// endSlices ends the pods' slices, with the one that they are in, and checks that
// systemd has no scope of r in its books.
func (r *rig) endSlices() {
	left := ""
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) { //nolint:forbidigo // the kernel counts in its own time
		if left = systemctl(r.t, "list-units", "--all", "--plain", "--no-legend", r.name+"*"); left == "" {
			break
		}
	}
	if left != "" {
		r.t.Errorf("units left:\n%s", left)
	}
	systemctl(r.t, "stop", strings.ReplaceAll(r.name, "-", "")+".slice")
}

func systemctl(t testing.TB, args ...string) string {
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Errorf("systemctl %q: %v: %s", args, err, out)
	}
	return string(out)
}

// oomCase is a container and what must be said of its end.
type oomCase struct {
	name string
	args []string
	kill bool // by SIGKILL, from outside
	code int
	oom  bool
}

// TestOOM runs containers that die of their memory limit within milliseconds, side
// by side with some that end otherwise, two and two in a pod: each time it must be
// said right.
func TestOOM(t *testing.T) {
	cases := []oomCase{
		{name: "eats", args: []string{"eat", "64"}, code: 137, oom: true},
		{name: "fails", args: []string{"exit", "1"}, code: 1},
		{name: "eats", args: []string{"eat", "64"}, code: 137, oom: true},
		{name: "is killed", args: []string{"sleep"}, kill: true, code: 137},
		{name: "its child eats", args: []string{"eat", "64", "child", "3"}, code: 3, oom: true},
		{name: "fails", args: []string{"exit", "1"}, code: 1},
		{name: "eats", args: []string{"eat", "64"}, code: 137, oom: true},
		{name: "survives its child", args: []string{"eat", "64", "child", "0"}, code: 0},
	}
	for _, d := range drivers(t) {
		t.Run(d.name, func(t *testing.T) {
			r := newRig(t)
			slots := make(chan struct{}, 3)
			var wg sync.WaitGroup
			if testing.Short() {
				d.rounds /= 5
			}
			for n := range d.rounds * len(cases) {
				c := cases[n%len(cases)]
				if c.oom && c.code != 137 && d.byPID {
					continue
				}
				slots <- struct{}{}
				pod := d.place(r, fmt.Sprintf("pod%d", n/2%10))
				wg.Go(func() {
					defer func() { <-slots }()
					id := fmt.Sprintf("c%d", n)
					exit, err := r.life(id, c, pod)
					if err != nil || exit.Code != c.code || exit.OOMKilled != c.oom {
						t.Errorf("%s %s: exit %+v, %v; want code %d, OOMKilled %v", id, c.name, exit, err, c.code, c.oom)
					}
				})
			}
			wg.Wait()
			r.settle(t, r.held())
			if d.name != "cgroupfs" {
				r.endSlices()
			}
		})
	}
}

// life makes a container, waits for its end and deletes it.
func (r *rig) life(id string, c oomCase, opts ...option) (wire.Exit, error) {
	ctx := r.t.Context()
	if _, err := r.Create(ctx, r.request(id, c.args, opts...)); err != nil {
		return wire.Exit{}, err
	}
	if err := r.Start(ctx, id); err != nil {
		return wire.Exit{}, errors.Join(err, r.Delete(ctx, id))
	}
	if c.kill {
		if err := r.Signal(ctx, id, unix.SIGKILL); err != nil {
			return wire.Exit{}, err
		}
	}
	exit := r.wait(id)
	return exit, r.Delete(ctx, id)
}

// TestOOMWithoutExecutor has the kernel kill while no executor lives: in one pod
// the containers that eat, those that fail, and one that goes on.
func TestOOMWithoutExecutor(t *testing.T) {
	for _, d := range drivers(t) {
		t.Run(d.name, func(t *testing.T) {
			r := newRig(t)
			for round := range 5 {
				pod := d.place(r, fmt.Sprintf("pod%d", round))
				id := func(name string) string { return name + strconv.Itoa(round) }
				hogs := []string{id("hog"), id("hag")}
				pids := make(map[string]int)
				for _, name := range hogs {
					pids[name] = r.container(name, []string{"hog", "64"}, pod).PID
					r.waitLog(name, "ready")
				}
				pids[id("other")] = r.container(id("other"), []string{"term"}, pod).PID
				r.waitLog(id("other"), "ready")
				r.container(id("alive"), []string{"term"}, pod)
				r.waitLog(id("alive"), "ready")

				keeper, executor := r.keeperPID(), r.executorPID()
				signal(t, keeper, unix.SIGSTOP) // else the next executor is there at once
				kill(t, executor)
				for name, pid := range pids {
					s := unix.SIGUSR1
					if name == id("other") {
						s = unix.SIGKILL
					}
					signal(t, pid, s)
				}
				for _, pid := range pids {
					waitGone(t, pid)
				}
				signal(t, keeper, unix.SIGCONT)
				for name := range pids {
					if e, oom := r.wait(name), name != id("other"); e.Code != 137 || e.OOMKilled != oom {
						t.Errorf("%s: exit %+v, want code 137, OOMKilled %v", name, e, oom)
					}
				}
				if err := r.Signal(t.Context(), id("alive"), unix.SIGKILL); err != nil {
					t.Error(err)
				}
				if e := r.wait(id("alive")); e.OOMKilled {
					t.Errorf("the last one: exit %+v, want no OOMKilled", e)
				}
				r.clear(t)
			}
			r.settle(t, r.held())
			if d.name != "cgroupfs" {
				r.endSlices()
			}
		})
	}
}

func signal(t testing.TB, pid int, s unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}
