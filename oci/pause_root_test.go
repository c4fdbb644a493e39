// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// inSharedPID makes the container one of a pod whose PID namespace is shared.
func inSharedPID(pod string) option {
	return func(c *wire.Create) {
		c.Pod = pod
		for i := range c.Spec.Linux.Namespaces {
			if c.Spec.Linux.Namespaces[i].Type == specs.PIDNamespace {
				c.Spec.Linux.Namespaces[i].Path = wire.FromPod
			}
		}
	}
}

func (r *rig) sharedPod(id string) {
	r.t.Helper()
	err := r.PodCreate(r.t.Context(), wire.PodCreate{ID: id, SharePID: true, PauseCgroup: "/" + r.name + "/pause-" + id}, nil)
	if err != nil {
		r.t.Fatalf("pod %s: %v\n%s", id, err, r.said())
	}
}

// pausePID finds the first process of a container's PID namespace.
func (r *rig) pausePID(pod string) int {
	r.t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		files, _ := filepath.Glob(pattern + r.name + "/pause-" + pod + "/cgroup.procs")
		for _, f := range files {
			var pid int
			if b, err := os.ReadFile(f); err == nil {
				if _, err := fmt.Sscan(string(b), &pid); err == nil {
					return pid
				}
			}
		}
	}
	r.t.Fatalf("no pause process of pod %s in a cgroup of its own", pod)
	return 0
}

// TestPauseIsNoWayOut looks at pod's first process from a container that shares
// its PID namespace and is root there.
func TestPauseIsNoWayOut(t *testing.T) {
	r := newRig(t)
	r.sharedPod("pod")
	r.container("c", []string{"peek", "/proc/1"}, inSharedPID("pod"))
	if e := r.wait("c"); e.Code != 0 {
		t.Errorf("exit = %+v", e)
	}
	got := r.logLines("c", "")
	for _, line := range got {
		if !strings.Contains(line, "permission denied") {
			t.Errorf("root in a container could look at it: %q", line)
		}
	}
	if len(got) != 5 { // of its descriptors root may see the list, which is empty
		t.Errorf("log = %q, want five refusals", got)
	}
	r.container("self", []string{"peek", "/proc/self"}, inSharedPID("pod")) // that a look can succeed at all
	r.wait("self")
	if lines := r.logLines("self", ""); strings.Contains(strings.Join(lines, " "), "permission denied") {
		t.Errorf("the look at itself was refused: %q", lines)
	}
	r.checkPause(r.pausePID("pod"))
}

// checkPause looks at it with the node's eyes.
func (r *rig) checkPause(pid int) {
	r.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		r.t.Fatal(err)
	}
	want := []string{
		"Uid:\t65535\t65535\t65535\t65535", "Gid:\t65535\t65535\t65535\t65535", "Groups:\t \n",
		"NoNewPrivs:\t1", "Seccomp:\t2", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000",
	}
	for _, w := range want {
		if !strings.Contains(string(status), w) {
			r.t.Errorf("status of pause has no %q:\n%s", w, status)
		}
	}
	for dir, most := range map[string]int{"fd": 0, "root/": 0} {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, dir))
		if err != nil || len(entries) > most {
			r.t.Errorf("%s of pause: %d entries, %v; want none", dir, len(entries), err)
		}
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err != nil || len(b) > 0 {
		r.t.Errorf("environment of pause: %q, %v; want none", b, err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/file", pid), nil, 0o600); err == nil {
		r.t.Error("the root of pause can be written to")
	}
}

// TestSharedPID: one namespace for the pod's containers, orphans are reaped, it
// survives every process of ours, and its end is the end of all that is in it.
func TestSharedPID(t *testing.T) {
	r := newRig(t)
	r.sharedPod("pod")
	r.sharedPod("pod") // again is no error
	a := r.container("a", []string{"sleep", "7"}, inSharedPID("pod"))
	b := r.container("b", []string{"fork", "3", "0"}, inSharedPID("pod"))
	r.wait("b")
	pause := r.pausePID("pod")
	for _, pid := range []int{a.PID, pause} {
		if got, want := pidNS(t, pid), pidNS(t, pause); got != want {
			t.Errorf("process %d is in %s, want %s", pid, got, want)
		}
	}
	if b.PID == pause {
		t.Error("the container's process is the namespace's first")
	}
	kill(t, r.executorPID())
	r.nextExecutor()
	r.killKeeper()
	r.nextExecutor()
	r.container("after", []string{"sleep"}, inSharedPID("pod"))
	if got := pidNS(t, r.mustObserve("after").Process.PID); got != pidNS(t, pause) {
		t.Errorf("a container started after a takeover is in %s", got)
	}
	if zombies := childrenOf(t, pause, 'Z'); zombies != 0 {
		t.Errorf("pause has %d zombies", zombies)
	}
	for _, id := range []string{"a", "after"} {
		if err := r.Signal(t.Context(), id, unix.SIGTERM); err != nil {
			t.Error(err)
		}
		r.wait(id)
	}
	if err := r.PodDelete(t.Context(), "pod"); err == nil {
		t.Error("a pod with containers was deleted")
	}
	for _, id := range []string{"a", "b", "after"} {
		if err := r.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := r.PodDelete(t.Context(), "pod"); err != nil {
			t.Error(err)
		}
	}
	waitGone(t, pause)
}

func (r *rig) mustObserve(id string) wire.Container {
	r.t.Helper()
	o, err := r.Observe(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range o.Containers {
		if c.ID == id {
			return c
		}
	}
	r.t.Fatalf("no container %s", id)
	return wire.Container{}
}

func pidNS(t *testing.T, pid int) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// childrenOf counts the children of a process that are in a state.
func childrenOf(t *testing.T, parent int, state byte) (n int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if f[0][0] == state && f[1] == fmt.Sprint(parent) {
			n++
		}
	}
	return n
}

// TestSharedPIDSurvivesBoth: with executor and keeper gone at once, the pod's
// first process and its containers live on, and the pod is completed by asking for
// it again.
func TestSharedPIDSurvivesBoth(t *testing.T) {
	r := newRig(t)
	r.sharedPod("pod")
	a := r.container("a", []string{"sleep", "7", "ready"}, inSharedPID("pod"))
	pause := r.pausePID("pod")
	r.killBoth()
	r.sharedPod("pod")
	if got := r.pausePID("pod"); got != pause {
		t.Errorf("pause is %d, was %d", got, pause)
	}
	if c := r.mustObserve("a"); c.Process != a || c.State != wire.Running {
		t.Errorf("container is %+v, want running as %+v", c, a)
	}
	b := r.container("b", []string{"sleep", "8", "ready"}, inSharedPID("pod"))
	if pidNS(t, b.PID) != pidNS(t, pause) {
		t.Error("a container started afterwards is in another PID namespace")
	}
	for id, code := range map[string]int{"a": 7, "b": 8} {
		r.waitLog(id, "ready")
		if err := r.Signal(t.Context(), id, unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if e := r.wait(id); e.Code != code {
			t.Errorf("%s: exit %+v, want code %d", id, e, code)
		}
	}
}

// TestPauseDies: the end of a pause process is noted, also for the next executor,
// and the pod can be made again once its containers are gone.
func TestPauseDies(t *testing.T) {
	r := newRig(t)
	r.sharedPod("pod")
	r.sharedPod("other")
	r.container("a", nil, inSharedPID("pod"))
	kill(t, r.pausePID("pod"))
	if e := r.wait("a"); e.Signal != int(unix.SIGKILL) {
		t.Errorf("exit of a container without its namespace's first process = %+v", e)
	}
	r.waitFor("the end of the pause process is told", func() bool { return len(r.pausesEnded()) == 1 })
	before := r.pausesEnded()[0]
	if before.ID != "pod" || before.Signal != int(unix.SIGKILL) || before.Lost {
		t.Errorf("told is %+v", before)
	}
	_, err := r.Create(t.Context(), r.request("b", nil, inSharedPID("pod")))
	wantCode(t, err, wire.BadState)
	if err == nil || !strings.Contains(err.Error(), "pause") {
		t.Errorf("a create in such a pod: %v", err)
	}
	r.restart(killExecutor)
	if now := r.pausesEnded(); len(now) != 1 || !now[0].At.Equal(before.At) || now[0].Code != before.Code {
		t.Errorf("told after a takeover is %+v, before it was %+v", now, before)
	}
	again := wire.PodCreate{ID: "pod", SharePID: true, PauseCgroup: "/" + r.name + "/pause-pod"}
	wantCode(t, r.PodCreate(t.Context(), again, nil), wire.BadState) // a is still here
	if err := r.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	r.sharedPod("pod")
	if now := r.pausesEnded(); len(now) != 0 {
		t.Errorf("told after the pod was made again: %+v", now)
	}
	r.runs("c", 7, []string{"exit", "7"}, inSharedPID("pod"))
}

// TestPauseDiesUnseen: also where it ends while keeper and executor cannot see it.
func TestPauseDiesUnseen(t *testing.T) {
	r := newRig(t)
	r.sharedPod("pod")
	pause, executor := r.pausePID("pod"), r.executorPID()
	if err := unix.Kill(executor, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	kill(t, pause)
	kill(t, executor)
	r.nextExecutor()
	ended := r.pausesEnded()
	if len(ended) != 1 || ended[0].ID != "pod" {
		t.Fatalf("told is %+v", ended)
	}
	r.sharedPod("pod")
	r.runs("c", 7, []string{"exit", "7"}, inSharedPID("pod"))
}

func (r *rig) pausesEnded() []wire.Exit {
	r.t.Helper()
	o, err := r.Observe(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return o.PausesEnded
}

// TestPodDeleteThatFails: a pod is known until all of it is gone, so that the next
// try takes back what the first could not.
func TestPodDeleteThatFails(t *testing.T) {
	for name, between := range map[string]func(r *rig){
		"at once":          func(*rig) {},
		"after a takeover": func(r *rig) { r.restart(killExecutor) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.sharedPod("pod")
			pause := r.pausePID("pod")
			leave := r.occupy(r.podCgroups("pod"))
			if err := r.PodDelete(t.Context(), "pod"); err == nil {
				t.Error("deleted, although its cgroup cannot be removed")
			}
			between(r)
			o, err := r.Observe(t.Context())
			if err != nil || !slices.Contains(o.Pods, "pod") {
				t.Errorf("pods after a delete that failed: %v, %v", o.Pods, err)
			}
			waitGone(t, pause)
			leave()
			if err := r.PodDelete(t.Context(), "pod"); err != nil {
				t.Error(err)
			}
			if left := r.podCgroups("pod"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			r.sharedPod("pod")
			if now := r.pausePID("pod"); now == pause {
				t.Error("the pause process is the old one")
			}
		})
	}
}

// occupy puts a process of the test's into cgroups, which keeps them from being
// removed until it is ended by what is returned.
func (r *rig) occupy(dirs []string) (leave func()) {
	r.t.Helper()
	if len(dirs) == 0 {
		r.t.Fatal("no cgroup")
	}
	stranger := exec.Command(built.guest, "sleep")
	if err := stranger.Start(); err != nil {
		r.t.Fatal(err)
	}
	leave = sync.OnceFunc(func() { _ = stranger.Process.Kill(); _ = stranger.Wait() })
	r.t.Cleanup(leave)
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(stranger.Process.Pid)), 0); err != nil {
			r.t.Fatal(err)
		}
	}
	return leave
}

func (r *rig) podCgroups(pod string) []string {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		found, _ := filepath.Glob(pattern + r.name + "/pause-" + pod)
		dirs = append(dirs, found...)
	}
	return dirs
}
