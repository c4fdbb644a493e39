// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/oci/wire"
)

// victim says what a round of TestKill kills.
type victim int

const (
	killExecutor victim = iota
	killKeeper
	killEither // in turn: containers end up as children of each of the three
)

// TestKill kills the executor, the keeper, or each in turn, again and again while
// containers write numbered lines: none may be lost, doubled or torn, no
// container may notice, and each exit code must be exact.
func TestKill(t *testing.T) {
	tests := []struct {
		name              string
		victim            victim
		containers, kills int
		rate              int // lines a second for each; 0: as fast as it can
		fast              int // so many of the containers write as fast as they can
	}{
		{"executor at 1000 lines a second", killExecutor, 50, 50, 1000, 0},
		{"executor at full speed", killExecutor, 50, 50, 20, 3},
		{"keeper at 1000 lines a second", killKeeper, 50, 50, 1000, 0},
		{"keeper at full speed", killKeeper, 50, 50, 20, 3},
		{"either", killEither, 50, 50, 500, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			created := r.writers(tt.containers, tt.rate, tt.fast)
			var took []time.Duration
			for n := range tt.kills {
				time.Sleep(time.Duration(5+rand.IntN(40)) * time.Millisecond) //nolint:forbidigo // a moment that nobody chose
				v := tt.victim
				if v == killEither {
					v = victim(n % 2)
				}
				began := time.Now()
				if v == killExecutor {
					kill(t, r.executorPID())
				} else {
					r.killKeeper()
				}
				r.nextExecutor()
				took = append(took, time.Since(began))
			}
			r.checkUntouched(created)
			r.endWriters(created, false)
			t.Logf("until the next executor serves: %s", percentiles(took))
		})
	}
}

// killKeeper kills the keeper and waits until the executor has taken its place.
func (r *rig) killKeeper() {
	r.t.Helper()
	was := r.executorPID()
	kill(r.t, r.keeperPID())
	r.waitKeeper(was)
}

// waitKeeper waits until an executor has become the keeper.
func (r *rig) waitKeeper(was int) {
	r.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for r.keeperPID() != was {
		if time.Now().After(deadline) {
			r.t.Fatalf("executor %d does not become the keeper (it is %d)\n%s", was, r.keeperPID(), r.said())
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // the file is replaced by another process, at a time of its own
	}
}

// nextExecutor waits until an executor answers.
func (r *rig) nextExecutor() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := r.Report(ctx); err != nil {
		r.t.Fatalf("no executor after a kill: %v\n%s", err, r.said())
	}
}

// writers starts n containers that write numbered lines; the first fast ones as
// fast as they can. Container n ends with code n+1.
func (r *rig) writers(n, rate, fast int) map[string]wire.Created {
	r.t.Helper()
	created := make(map[string]wire.Created)
	var (
		mu sync.Mutex
		wg sync.WaitGroup
	)
	slots := make(chan struct{}, 4)
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			id, speed := fmt.Sprintf("w%d", i), rate
			if i < fast {
				speed = 0
			}
			c := r.container(id, []string{"lines", strconv.Itoa(speed), strconv.Itoa(i + 1)})
			mu.Lock()
			created[id] = c
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(created) != n {
		r.t.Fatalf("%d of %d containers started", len(created), n)
	}
	for id := range created {
		// Before that SIGTERM would be the end of it, and not what it does with it.
		r.waitFor("the first line of "+id, func() bool {
			st, err := os.Stat(r.logPath(id))
			return err == nil && st.Size() > 0
		})
	}
	return created
}

// checkUntouched compares pid and start time: a restarted one has others.
func (r *rig) checkUntouched(created map[string]wire.Created) {
	r.t.Helper()
	o, err := r.Observe(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	seen := make(map[string]wire.Container)
	for _, c := range o.Containers {
		seen[c.ID] = c
	}
	for id, want := range created {
		if c := seen[id]; c.Process != want || c.State != wire.Running {
			r.t.Errorf("%s is %s as %+v, want running as %+v", id, c.State, c.Process, want)
		}
		if start := startTime(r.t, want.PID); start != want.Start {
			r.t.Errorf("%s: process %d started at %d, want %d", id, want.PID, start, want.Start)
		}
	}
}

func startTime(t testing.TB, pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Errorf("process %d: %v", pid, err)
		return 0
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	n, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		t.Error(err)
	}
	return n
}

// endWriters ends the containers and checks their exit codes and logs. With gaps,
// lines may be missing (both executor and keeper were dead), but none may be
// doubled or torn; it returns how many were written and how many are missing.
func (r *rig) endWriters(created map[string]wire.Created, gaps bool) (lines, lost int) {
	r.t.Helper()
	for id := range created {
		if err := r.Signal(r.t.Context(), id, unix.SIGTERM); err != nil {
			r.t.Error(err)
		}
	}
	for id := range created {
		n, err := strconv.Atoi(id[1:])
		if err != nil {
			r.t.Fatal(err)
		}
		if e := r.wait(id); e.Code != n+1 || e.Lost {
			r.t.Errorf("%s: exit %+v, want code %d", id, e, n+1)
		}
	}
	for id := range created {
		n, missing := r.checkLines(id, gaps)
		lines, lost = lines+n, lost+missing
	}
	r.t.Logf("%d lines, %d lost", lines, lost)
	return lines, lost
}

// checkLines checks that a log has every line once, whole and in order.
func (r *rig) checkLines(id string, gaps bool) (lines, lost int) {
	r.t.Helper()
	f, err := os.Open(r.logPath(id))
	if err != nil {
		r.t.Error(err)
		return 0, 0
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	next, ended, bad := 1, false, 0
	for in.Scan() {
		rec, err := crilog.Parse(in.Bytes())
		if err != nil || rec.Partial {
			bad++
			continue
		}
		var n int
		if _, err := fmt.Sscanf(string(rec.Content), "END %d", &n); err == nil {
			ended = true
			lost += n - (next - 1)
			continue
		}
		if len(rec.Content) != 91 || !bytes.HasPrefix(rec.Content, []byte("line ")) {
			bad++
			continue
		}
		n, err = strconv.Atoi(string(rec.Content[5:17]))
		switch {
		case err != nil || n < next:
			bad++ // torn, or doubled
		case n > next:
			lost += n - next
			fallthrough
		default:
			next = n + 1
			lines++
		}
	}
	if err := in.Err(); err != nil || bad > 0 || !ended || lost > 0 && !gaps {
		r.t.Errorf("%s: %d lines, %d lost, %d torn or doubled, end seen: %v, %v", id, lines, lost, bad, ended, err)
	}
	return lines, lost
}

// TestKillBoth kills keeper and executor at once. The containers live on, since
// their own descriptors keep their pipes; what was between two pipes at that
// moment is lost, and an exit in the gap may be. What is told must be honest.
func TestKillBoth(t *testing.T) {
	r := newRig(t)
	created := r.writers(50, 200, 1)
	short := r.container("short", []string{"exit", "33", "30"})
	for range 3 {
		r.killBoth()
		waitGone(t, short.PID)
	}
	r.checkUntouched(created)
	lines, lost := r.endWriters(created, true)
	if lost*100 > lines {
		t.Errorf("%d of %d lines are lost", lost, lines+lost)
	}
	if e := r.wait("short"); !(e.Lost && e.Code == 255 && e.Reason != "") && e.Code != 33 {
		t.Errorf("exit in the gap = %+v, want the code, or that it is lost", e)
	}
}

// killBoth kills executor and keeper at once and starts them again.
func (r *rig) killBoth() {
	r.t.Helper()
	keeper, executor := r.keeperPID(), r.executorPID()
	// In this order: the executor must not become the keeper in between.
	if err := errors.Join(unix.Kill(executor, unix.SIGKILL), unix.Kill(keeper, unix.SIGKILL)); err != nil {
		r.t.Fatal(err)
	}
	waitGone(r.t, executor)
	waitGone(r.t, keeper)
	r.Executor.Close()
	r.exits.stop()
	e, err := oci.Start(r.t.Context(), r.Config)
	if err != nil {
		r.t.Fatalf("start after both were killed: %v\n%s", err, r.said())
	}
	r.Executor, r.exits = e, watchExits(e)
}

func percentiles(d []time.Duration) string {
	s := append([]time.Duration(nil), d...)
	for i := range s { // few: no need for more
		for j := i; j > 0 && s[j] < s[j-1]; j-- {
			s[j], s[j-1] = s[j-1], s[j]
		}
	}
	return fmt.Sprintf("p50 %v, max %v of %d", s[len(s)/2].Round(100*time.Microsecond), s[len(s)-1].Round(100*time.Microsecond), len(s))
}

// TestKillCreateLeavesNoChild: a create that is killed, at whichever of its steps,
// leaves no child that nobody waits for. One in the PID namespace of a pod would keep
// the pod's pause process from ending.
func TestKillCreateLeavesNoChild(t *testing.T) {
	r := newRig(t)
	for n := range 30 {
		pod, id := fmt.Sprint("p", n), fmt.Sprint("c", n)
		if err := r.PodCreate(t.Context(), wire.PodCreate{ID: pod, SharePID: true, PauseCgroup: "/" + r.name + "/" + pod}, nil); err != nil {
			t.Fatal(err)
		}
		created := make(chan error, 1)
		go func() {
			_, err := r.Create(t.Context(), r.request(id, []string{"sleep"}, func(c *wire.Create) {
				c.Pod = pod
				for i := range c.Spec.Linux.Namespaces {
					if c.Spec.Linux.Namespaces[i].Type == specs.PIDNamespace {
						c.Spec.Linux.Namespaces[i].Path = wire.FromPod
					}
				}
			}))
			created <- err
		}()
		time.Sleep(time.Duration(n) * 500 * time.Microsecond) //nolint:forbidigo // not to wait for anything: to be at another step each time
		kerr := r.KillAll(t.Context(), id)
		if kerr != nil && !errors.Is(kerr, &wire.Error{Code: wire.NotFound}) {
			t.Error(kerr)
		}
		err := <-created
		if err := r.KillAll(t.Context(), id); err != nil && !errors.Is(err, &wire.Error{Code: wire.NotFound}) {
			t.Error(err)
		}
		if derr := r.Delete(t.Context(), id); derr != nil {
			t.Error(derr)
		}
		if list := r.zombies(); len(list) > 0 {
			t.Errorf("try %d, create: %v: left are %q", n, err, list)
		}
		if err := r.PodDelete(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
}

// zombies lists the executor's children that have ended and were not waited for.
func (r *rig) zombies() (list []string) {
	r.t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		r.t.Fatal(err)
	}
	of := fmt.Sprintf(") Z %d ", r.executorPID())
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), of) {
			list = append(list, string(b[:min(len(b), 60)]))
		}
	}
	return list
}
