// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/oci/wire"
)

// crashOp is one operation of TestCrash. Each round has ids of its own.
type crashOp struct {
	name    string
	scoped  bool                                                   // the systemd driver makes the container's cgroup
	prepare func(r *rig, id string)                                // makes what the operation needs; nil: nothing
	do      func(ctx context.Context, r *rig, id string) error     // may be called in another goroutine
	check   func(t *testing.T, r *rig, id string, o wire.Observed) // after do has succeeded
}

// TestCrash kills the executor, the keeper, or both, at a random moment of an
// operation, again and again: the operation is done, or it is as if it had not
// begun, and nothing is left of it that nobody knows of.
func TestCrash(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("BERTH_TEST_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("BERTH_TEST_SEED=%d", seed)
	rounds := 50
	if testing.Short() {
		rounds = 12
	}
	ops := crashOps()
	if len(drivers(t)) > 1 {
		ops = append(ops, crashInScope(ops, "create"), crashInScope(ops, "delete"))
	}
	for _, op := range ops {
		t.Run(op.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			r := newRig(t)
			if op.scoped {
				r.always = inScope(r, r.slice("crash", true))
				defer r.endSlices()
			}
			held := r.held()
			longest := r.measure(op)
			for n := range rounds {
				at := time.Duration(rng.Int64N(int64(longest)))
				v := [...]string{"executor", "keeper", "executor"}[n%3]
				switch n % 12 {
				case 5: // few, as a pid 1 that is no init takes seconds to reap their orphans
					v = "both"
				case 11:
					v = "keeper, then executor"
				}
				r.crash(t, op, fmt.Sprintf("%s-%d", strings.ReplaceAll(op.name, " ", "-"), n), v, at)
				r.settle(t, held)
				if t.Failed() {
					t.Fatalf("round %d: %s killed after %v of %v", n, v, at, longest)
				}
			}
		})
	}
}

func crashOps() []crashOp {
	return []crashOp{
		{
			name: "create",
			do: func(ctx context.Context, r *rig, id string) error {
				_, err := r.Create(ctx, r.request(id, []string{"exit", "7"}))
				return err
			},
			check: func(t *testing.T, r *rig, id string, _ wire.Observed) {
				if err := r.Start(t.Context(), id); err != nil {
					t.Errorf("start of %s: %v", id, err)
				} else if e := r.wait(id); e.Code != 7 {
					t.Errorf("exit = %+v, want code 7", e)
				}
			},
		},
		{
			name:    "start",
			prepare: func(r *rig, id string) { r.create(id, []string{"sleep", "7"}) },
			do:      func(ctx context.Context, r *rig, id string) error { return r.Start(ctx, id) },
			check: func(t *testing.T, r *rig, id string, o wire.Observed) {
				r.waitExec(t, id, o)
				if err := r.Start(t.Context(), id); err == nil {
					t.Error("a second start is no error")
				}
			},
		},
		{
			name:    "exec",
			prepare: func(r *rig, id string) { r.container(id, nil) },
			do: func(ctx context.Context, r *rig, id string) error {
				for {
					_, err := r.Exec(ctx, wire.Exec{ID: id, Exec: "e", OwnCgroup: true, Process: testSpec([]string{"sleep"}, "").Process}, nil)
					if !errors.Is(err, &wire.Error{Code: wire.Lost}) {
						return err
					}
					// Whether to do it again is for the caller to decide, once it is acknowledged.
					if err := r.Ack(ctx, id, "e"); err != nil {
						return err
					}
				}
			},
			check: func(t *testing.T, r *rig, id string, o wire.Observed) {
				if len(o.Execs) == 0 || o.Execs[0].Exit != nil {
					// It had a process when the executor died, which may have died with it on
					// its way to its program: then its end is told, as lost.
					if exit := r.wait(id + "/e"); !exit.Lost && exit.Signal == 0 {
						t.Errorf("exit = %+v, want one of a process that was lost or killed", exit)
					}
					return
				}
				if len(o.Execs) != 1 {
					t.Errorf("execs = %+v, want one that runs", o.Execs)
				}
				if err := errors.Join(r.ExecKill(t.Context(), id, "e"), r.Ack(t.Context(), id, "e")); err != nil {
					t.Error(err)
				}
			},
		},
		{
			name: "delete",
			prepare: func(r *rig, id string) {
				r.container(id, []string{"exit", "7"})
				if e := r.wait(id); e.Code != 7 {
					r.t.Errorf("exit = %+v, want code 7", e)
				}
			},
			do: func(ctx context.Context, r *rig, id string) error { return r.Delete(ctx, id) },
			check: func(t *testing.T, r *rig, id string, o wire.Observed) {
				if len(o.Containers) > 0 {
					t.Errorf("deleted, and still here: %+v", o.Containers)
				}
				r.exits.mu.Lock()
				defer r.exits.mu.Unlock()
				if e := r.exits.seen[id]; e.Code != 7 || e.Lost {
					t.Errorf("another exit was told: %+v", e)
				}
			},
		},
		{
			name: "podCreate",
			do: func(ctx context.Context, r *rig, id string) error {
				p := wire.PodCreate{ID: id, ShmSize: 1 << 20, Namespaces: []string{"ipc", "uts"}}
				return r.PodCreate(ctx, p, podNamespaces(r.t))
			},
			check: func(t *testing.T, r *rig, id string, _ wire.Observed) {
				r.runs(id+"-c", 0, []string{"write", "/dev/shm/note", "x"}, inPod(id))
			},
		},
		{
			name: "shared pod",
			do: func(ctx context.Context, r *rig, id string) error {
				return r.PodCreate(ctx, wire.PodCreate{ID: id, SharePID: true, PauseCgroup: "/" + r.name + "/pause-" + id}, nil)
			},
			check: func(_ *testing.T, r *rig, id string, _ wire.Observed) {
				r.runs(id+"-c", 7, []string{"exit", "7"}, inSharedPID(id))
			},
		},
		{
			name: "create with terminal",
			do: func(ctx context.Context, r *rig, id string) error {
				_, err := r.Create(ctx, r.request(id, []string{"size"}, func(c *wire.Create) {
					c.TTY, c.Stdin, c.Spec.Process.Terminal = true, true, true
					c.Console = wire.Size{Width: 91, Height: 17}
				}))
				return err
			},
			check: func(t *testing.T, r *rig, id string, _ wire.Observed) {
				if err := r.Start(t.Context(), id); err != nil {
					t.Error(err)
				}
				r.wait(id)
				if got := r.logLines(id, crilog.Stdout); len(got) == 0 || !strings.Contains(got[0], "91x17") {
					t.Errorf("log = %q, want the terminal's size", got)
				}
			},
		},
		{
			name:    "podDelete",
			prepare: func(r *rig, id string) { r.pod(id) },
			do:      func(ctx context.Context, r *rig, id string) error { return r.PodDelete(ctx, id) },
			check: func(t *testing.T, _ *rig, _ string, o wire.Observed) {
				if len(o.Pods) > 0 {
					t.Errorf("deleted, and still here: %+v", o.Pods)
				}
			},
		},
	}
}

// crashInScope is one of ops with the systemd driver.
func crashInScope(ops []crashOp, name string) crashOp {
	op := ops[slices.IndexFunc(ops, func(op crashOp) bool { return op.name == name })]
	op.name += " in a scope"
	op.scoped = true
	return op
}

// measure returns how long an operation takes, with some more for what it leaves
// to be done after its answer.
func (r *rig) measure(op crashOp) time.Duration {
	r.t.Helper()
	var longest time.Duration
	for n := range 3 {
		id := fmt.Sprintf("m%d", n)
		if op.prepare != nil {
			op.prepare(r, id)
		}
		began := time.Now()
		if err := op.do(r.t.Context(), r, id); err != nil {
			r.t.Fatal(err)
		}
		longest = max(longest, time.Since(began))
		r.clear(r.t)
	}
	return longest + longest/4 + 100*time.Microsecond
}

// crash does op and kills in the middle of it.
func (r *rig) crash(t *testing.T, op crashOp, id, victim string, at time.Duration) {
	t.Helper()
	if op.prepare != nil {
		op.prepare(r, id)
	}
	keeper, executor := r.keeperPID(), r.executorPID()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- op.do(ctx, r, id) }()
	time.Sleep(at) //nolint:forbidigo // a moment that nobody chose
	victims := map[string][]int{
		"executor": {executor}, "keeper": {keeper}, "both": {executor, keeper}, "keeper, then executor": {keeper, executor},
	}[victim]
	for _, pid := range victims {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	err := <-done
	for _, pid := range victims {
		waitGone(t, pid)
	}
	gone := errors.Is(err, oci.ErrGone)
	if len(victims) > 1 {
		r.startAgain()
	} else if victim == "keeper" {
		r.waitKeeper(executor)
	}
	if err != nil && !(gone && len(victims) > 1) {
		t.Errorf("%s: %v\n%s", op.name, err, r.said())
		return
	}
	o, oerr := r.Observe(t.Context())
	if oerr != nil {
		t.Error(oerr)
	}
	if err == nil && len(victims) == 1 { // what was done may be undone when both die
		op.check(t, r, id, o)
	}
}

// startAgain connects to whatever has become of keeper and executor after both
// were killed.
func (r *rig) startAgain() {
	r.t.Helper()
	r.Executor.Close()
	r.exits.stop()
	e, err := oci.Start(r.t.Context(), r.Config)
	if err != nil {
		r.t.Fatalf("start after both were killed: %v\n%s", err, r.said())
	}
	r.Executor, r.exits = e, watchExits(e)
}

// clear takes away what the executor holds.
func (r *rig) clear(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	o, err := r.Observe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range o.Containers {
		if err := errors.Join(r.KillAll(ctx, c.ID), r.Delete(ctx, c.ID)); err != nil {
			t.Errorf("clear %s: %v", c.ID, err)
		}
	}
	for _, id := range o.Pods {
		if err := r.PodDelete(ctx, id); err != nil {
			t.Errorf("clear pod %s: %v", id, err)
		}
	}
}

// settle clears, and then looks for what is left: names in the keeper, files,
// mounts, cgroups, processes.
func (r *rig) settle(t *testing.T, held int) {
	t.Helper()
	r.clear(t)
	var left []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) { //nolint:forbidigo // the kernel takes things down in its own time
		left = r.leftovers()
		for _, dir := range []string{"m", "c", "p", "lc"} { // what is being taken back is no longer observed
			for _, name := range r.namesIn(dir) {
				left = append(left, filepath.Join(dir, name))
			}
		}
		if n := r.held(); n != held {
			left = append(left, fmt.Sprintf("keeper holds %d names, want %d", n, held))
		}
		if len(left) == 0 {
			break
		}
	}
	r.checkEmpty(t)
	if len(left) > 0 {
		t.Errorf("left:\n%s\n%s", strings.Join(left, "\n"), r.said())
	}
}

func (r *rig) held() int {
	r.t.Helper()
	report, err := r.Report(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return report.Held
}

// leftovers names what belongs to r beside its keeper and executor.
func (r *rig) leftovers() []string {
	var left []string
	keeper, executor := r.keeperPID(), r.executorPID()
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + r.name + "/*", "/sys/fs/cgroup/" + r.name + "/*"} {
		dirs, _ := filepath.Glob(pattern)
		left = append(left, slices.DeleteFunc(dirs, func(d string) bool {
			info, err := os.Stat(d)
			return err != nil || !info.IsDir() || filepath.Base(d) == "keeper"
		})...)
	}
	for _, pid := range []int{keeper, executor} {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			left = append(left, err.Error()) // it is becoming, or giving way to, another
		}
		for line := range strings.Lines(string(table)) {
			if strings.Contains(line, filepath.Join(r.state, "m")+"/") || strings.Contains(line, r.base) {
				left = append(left, fmt.Sprintf("mount in process %d: %s", pid, line))
			}
		}
	}
	binary, err := exeOf(executor)
	if err != nil {
		return append(left, err.Error())
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return append(left, err.Error())
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == keeper || pid == executor {
			continue
		}
		// An init that libcontainer has begun runs our binary; a container is in a cgroup.
		exe, err := exeOf(pid)
		groups, _ := os.ReadFile("/proc/" + e.Name() + "/cgroup")
		if err == nil && exe == binary || strings.Contains(string(groups), r.name) && !isOrphanZombie(pid, keeper, executor) {
			command, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
			stat, _ := os.ReadFile("/proc/" + e.Name() + "/stat")
			left = append(left, fmt.Sprintf("process %d: %q, %.60s", pid, command, stat))
		}
	}
	return left
}

// isOrphanZombie says whether a process has ended and is neither keeper's nor
// executor's to reap: some machines' pid 1 takes seconds.
func isOrphanZombie(pid, keeper, executor int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	parent, err := strconv.Atoi(fields[1])
	return err == nil && fields[0] == "Z" && parent != keeper && parent != executor
}

type fileID struct{ dev, ino uint64 }

func exeOf(pid int) (fileID, error) {
	info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return fileID{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	return fileID{st.Dev, st.Ino}, nil
}

// waitExec waits until a container's own program runs.
func (r *rig) waitExec(t *testing.T, id string, o wire.Observed) {
	t.Helper()
	i := slices.IndexFunc(o.Containers, func(c wire.Container) bool { return c.ID == id })
	if i < 0 {
		t.Fatalf("no container %s", id)
	}
	c := o.Containers[i]
	if c.State != wire.Running {
		t.Errorf("%s is %s after its start: %+v", id, c.State, c.Exit)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { //nolint:forbidigo // an execve by another process has no event
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.Process.PID))
		if to == "/guest" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: its program does not run, but %s (%v)", id, to, err)
		}
	}
}
