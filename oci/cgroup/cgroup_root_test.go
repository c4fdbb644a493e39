// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package cgroup_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/cgroup"
)

// inside starts a part in the group and lets it begin.
func inside(t testing.TB, g cgroup.Group, part ...string) *victim {
	t.Helper()
	v := start(t, nil, part...)
	join(t, g, v.pid())
	v.open()
	return v
}

// holding starts a process that stays until it is let go or killed.
func holding(t testing.TB, g cgroup.Group) *victim {
	t.Helper()
	v := inside(t, g, "hold")
	v.hears("held")
	return v
}

// killed fails unless the victim was killed, alive unless it can still end by itself.
func (v *victim) killed() {
	v.t.Helper()
	if got := v.ended(); got != "signal 9" {
		v.t.Errorf("victim %d ended with %s", v.pid(), got)
	}
}

func (v *victim) alive() {
	v.t.Helper()
	v.open()
	if got := v.ended(); got != "exit 7" {
		v.t.Errorf("bystander %d ended with %s", v.pid(), got)
	}
}

func mustKill(t testing.TB, g cgroup.Group) {
	t.Helper()
	begin := time.Now()
	if err := g.Kill(bounded(t)); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed in %v", time.Since(begin).Round(10*time.Microsecond))
	if left := members(t, g); len(left) > 0 {
		t.Fatalf("%v are left", left)
	}
}

// explode starts a fork bomb and returns when it fills the group's pids limit.
func explode(t testing.TB, g cgroup.Group) *victim {
	t.Helper()
	v := inside(t, g, "bomb")
	eventually(t, "the bomb reaches its limit", func() bool {
		return !strings.HasPrefix(get(t, dir(g, "pids")+"/pids.events"), "max 0\n") && len(members(t, g)) > 45
	})
	return v
}

func TestKillForkBomb(t *testing.T) {
	l := newLab(t)
	other := holding(t, l.group("other"))
	for range 3 {
		g := l.group("bomb")
		put(t, dir(g, "pids")+"/pids.max", "64")
		v := explode(t, g)
		mustKill(t, g)
		v.killed()
		if err := g.Remove(bounded(t)); err != nil {
			t.Fatal(err)
		}
	}
	other.alive()
}

// What forks all the time is caught in one round, because it is frozen first: a bomb, which has
// always forked again when its list has been read, and a relay, which is another process each
// time one looks. (With one CPU a relay may be caught unfrozen, with several a bomb.)
func TestOneRoundIsEnough(t *testing.T) {
	once, cancel := context.WithCancel(t.Context())
	cancel() // so that there is no second round
	for name, begin := range map[string]func(*testing.T, cgroup.Group) *victim{
		"bomb": func(t *testing.T, g cgroup.Group) *victim { return explode(t, g) },
		"relay": func(t *testing.T, g cgroup.Group) *victim {
			v := inside(t, g, "relay")
			v.hears("running")
			return v
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			for range 5 {
				g := l.group("c")
				put(t, dir(g, "pids")+"/pids.max", "64")
				v := begin(t, g)
				kill := g.Kill
				if g.Version() == cgroup.V2 {
					kill = g.KillByFreezing
				}
				if err := kill(once); err != nil && !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				if err := g.Empty(ctx); err != nil {
					t.Fatal(err)
				}
				cancel()
				v.killed()
				if err := g.Remove(bounded(t)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The way of v2 kernels that have no cgroup.kill.
func TestKillForkBombByFreezing(t *testing.T) {
	l := newLab(t)
	l.only(cgroup.V2)
	other := holding(t, l.group("other"))
	for range 3 {
		g := l.group("bomb")
		put(t, dir(g, "pids")+"/pids.max", "64")
		below := holding(t, l.group("bomb/below"))
		v := explode(t, g)
		begin := time.Now()
		if err := g.KillByFreezing(bounded(t)); err != nil {
			t.Fatal(err)
		}
		t.Logf("killed in %v", time.Since(begin).Round(10*time.Microsecond))
		if left := members(t, g); len(left) > 0 {
			t.Fatalf("%v are left", left)
		}
		if got := get(t, dir(g, "")+"/cgroup.freeze"); got != "0\n" {
			t.Errorf("cgroup.freeze is %q", got)
		}
		v.killed()
		below.killed()
		if err := g.Remove(bounded(t)); err != nil {
			t.Fatal(err)
		}
	}
	other.alive()
}

func TestKillTree(t *testing.T) {
	l := newLab(t)
	pod := l.group("pod")
	other := holding(t, pod)
	g := l.group("pod/c")
	victims := []*victim{holding(t, g), holding(t, l.group("pod/c/a")), holding(t, l.group("pod/c/a/b"))}
	sibling := holding(t, l.group("pod/c2"))
	mustKill(t, g)
	for _, v := range victims {
		v.killed()
	}
	mustKill(t, g) // again
	other.alive()
	sibling.alive()
}

func TestKillFrozen(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	below := l.group("c/a")
	victims := []*victim{holding(t, g), holding(t, below)}
	for _, d := range []string{dir(below, "freezer"), dir(g, "freezer")} {
		if l.host.Version() == cgroup.V2 {
			put(t, d+"/cgroup.freeze", "1")
			eventually(t, "frozen", func() bool { return strings.Contains(get(t, d+"/cgroup.events"), "frozen 1\n") })
			continue
		}
		put(t, d+"/freezer.state", "FROZEN")
		eventually(t, "frozen", func() bool { return get(t, d+"/freezer.state") == "FROZEN\n" })
	}
	mustKill(t, g)
	for _, v := range victims {
		v.killed()
	}
}

// Frozen from above, nothing can be done without touching another group: that is what the error says.
func TestKillBelowFrozenAncestor(t *testing.T) {
	l := newLab(t)
	l.only(cgroup.V1)
	pod, g, other := l.group("pod"), l.group("pod/c"), l.group("pod/other")
	v, bystander := holding(t, g), holding(t, other)
	state := dir(pod, "freezer") + "/freezer.state"
	put(t, state, "FROZEN")
	eventually(t, "frozen", func() bool { return get(t, state) == "FROZEN\n" })

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := g.Kill(ctx)
	remain, ok := errors.AsType[*cgroup.RemainError](err)
	if !ok || !errors.Is(err, context.DeadlineExceeded) || !remain.Frozen || len(remain.Processes) != 1 {
		t.Fatalf("%#v", err)
	}
	if p := remain.Processes[0]; p.PID != v.pid() || p.State != 'D' || p.Comm == "" {
		t.Errorf("%+v", p)
	}
	if got := get(t, state); got != "FROZEN\n" {
		t.Errorf("the pod is %s", got)
	}
	put(t, state, "THAWED")
	mustKill(t, g)
	v.killed()
	bystander.alive()
}

// An exec whose starter died half way through joining is in some hierarchies only.
func TestKillHalfJoined(t *testing.T) {
	l := newLab(t)
	l.only(cgroup.V1)
	for _, controller := range []string{"memory", "name=systemd", "freezer", ""} {
		g := l.group("half" + strconv.Itoa(len(controller)))
		if dir(g, controller) == "" {
			continue
		}
		v := start(t, nil, "hold")
		join(t, g, v.pid(), controller)
		v.open()
		v.hears("held")
		mustKill(t, g)
		v.killed()
	}
}

func TestKillRefusesItsOwnGroup(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	text, err := g.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	bystander := holding(t, g)
	v := start(t, nil, "kill", hex.EncodeToString(text))
	join(t, l.group("c/deep"), v.pid())
	v.open()
	v.hears("true")
	if got := v.ended(); got != "exit 7" {
		t.Errorf("ended with %s", got)
	}
	bystander.alive()
}

func TestSubKill(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	init := holding(t, g)
	for range 3 { // fresh each time, by the same name
		s, err := g.Sub("exec-1")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Create(); err != nil {
			t.Fatal(err)
		}
		v := start(t, nil, "sh", "sleep 1000 & (sleep 1000 & sleep 1000) & sh -c 'sleep 1000' & echo up; wait")
		join(t, g, v.pid())
		join(t, s.Group, v.pid())
		v.open()
		v.hears("up")
		eventually(t, "the whole family", func() bool { return len(members(t, s.Group)) >= 5 })
		mustKill(t, s.Group)
		v.killed()
		if err := s.Remove(bounded(t)); err != nil {
			t.Fatal(err)
		}
		if got := members(t, g); len(got) != 1 || got[0] != strconv.Itoa(init.pid()) {
			t.Errorf("in the container: %v, want %d", got, init.pid())
		}
	}
	init.alive()
}

// clone3(CLONE_INTO_CGROUP) into a group that was killed fails for ever from Linux 6.18 on. Into
// a fresh one of the same name it works.
func TestSubIsFreshForCloneIntoCgroup(t *testing.T) {
	l := newLab(t)
	l.only(cgroup.V2)
	g := l.group("c")
	into := func(s cgroup.Sub) *victim {
		d, err := os.Open(dir(s.Group, ""))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		return start(t, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}, "hold")
	}
	for i := range 3 {
		s, err := g.Sub("exec-1")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Create(); err != nil {
			t.Fatal(err)
		}
		v := into(s)
		v.open()
		v.hears("held")
		mustKill(t, s.Group)
		v.killed()
		if i == 0 { // for the record: not all kernels have the trap
			again := into(s)
			again.open()
			if err := again.cmd.Wait(); err != nil {
				t.Logf("an exec into the killed group: %v", err)
			}
		}
		if err := s.Remove(bounded(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSubOfThreadedDomain(t *testing.T) {
	l := newLab(t)
	l.only(cgroup.V2)
	g := l.group("c")
	init := holding(t, g)
	put(t, dir(g, "")+"/cgroup.subtree_control", "+cpu")
	s, err := g.Sub("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Create(); !errors.Is(err, cgroup.ErrThreaded) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(dir(s.Group, "")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	mustKill(t, g) // a threaded domain can still be killed
	init.killed()
}

// A group that is threaded itself lists no processes: to say that none is left would be wrong.
func TestKillRefusesAThreadedGroup(t *testing.T) {
	l := newLab(t)
	l.only(cgroup.V2)
	pod := l.group("pod")
	g := l.group("pod/c")
	put(t, dir(g, "")+"/cgroup.type", "threaded")
	v := holding(t, pod)
	put(t, dir(g, "")+"/cgroup.threads", strconv.Itoa(v.pid()))
	if err := g.Kill(bounded(t)); !errors.Is(err, cgroup.ErrThreaded) {
		t.Errorf("%v", err)
	}
	mustKill(t, pod)
	v.killed()
}

func TestEmptyWaits(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	a, b := holding(t, g), holding(t, l.group("c/below"))

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	remain, ok := errors.AsType[*cgroup.RemainError](g.Empty(ctx))
	if !ok || len(remain.Processes) != 2 || remain.Processes[0].State == 0 {
		t.Fatalf("%#v", remain)
	}

	done := make(chan error, 1)
	go func() { done <- g.Empty(bounded(t)) }()
	a.alive()
	select {
	case err := <-done:
		t.Fatalf("empty while one is below: %v", err)
	default:
	}
	begin := time.Now()
	b.alive()
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Logf("known %v after the end was asked for", time.Since(begin).Round(10*time.Microsecond))
	if left := members(t, g); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

// Without looking now and then, so by the kernel's events alone.
func TestEmptyByEvents(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	for range 5 {
		v := holding(t, g)
		done := make(chan error, 1)
		go func() { done <- g.EmptyByEvents(bounded(t)) }()
		v.alive()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestRemoveWaits(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	below := l.group("c/a")
	l.group("c/a/b")
	v := holding(t, below)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	err := g.Remove(ctx)
	remain, ok := errors.AsType[*cgroup.RemainError](err)
	if !ok || !errors.Is(err, context.DeadlineExceeded) || len(remain.Processes) != 1 || remain.Processes[0].PID != v.pid() {
		t.Fatalf("%#v", err)
	}
	z := l.group("c/z")
	done := make(chan error, 1)
	go func() { done <- g.Remove(bounded(t)) }()
	eventually(t, "the first attempt, which takes what it can", func() bool {
		_, err := os.Stat(dir(z, "memory"))
		return err != nil
	})
	v.alive()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, d := range g.Paths() {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", d, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Remove(ended); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestStatsOfLiveGroup(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	limitMemory(t, g, 512<<20)
	put(t, dir(g, "pids")+"/pids.max", "99")
	v := inside(t, g, "burn", "64")
	v.hears("burnt")
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s)
	if !s.CPU.OK || s.CPU.V.Usage < 40e6 || s.CPU.V.Usage > 60e9 {
		t.Errorf("CPU %+v", s.CPU)
	}
	m := s.Memory.V
	if !s.Memory.OK || m.RSS < 64<<20 || m.RSS > 200<<20 || m.Usage < m.RSS || m.WorkingSet > m.Usage || m.WorkingSet < 64<<20 ||
		m.PageFaults < 64<<20/uint64(os.Getpagesize())/512 { // huge pages
		t.Errorf("memory %+v", m)
	}
	if m.Limit.V != 512<<20 || !m.Available.OK || m.Available.V != 512<<20-m.WorkingSet {
		t.Errorf("limit %+v, available %+v", m.Limit, m.Available)
	}
	if s.Swap.OK && (s.Swap.V.Available.V != 0 || !s.Swap.V.Available.OK) {
		t.Errorf("swap %+v", s.Swap)
	}
	if !s.Pids.OK || s.Pids.V.Current < 1 || s.Pids.V.Current > 99 || s.Pids.V.Limit.V != 99 {
		t.Errorf("pids %+v", s.Pids)
	}
	_, noPSI := os.Stat("/proc/pressure/cpu")
	psi := l.host.Version() == cgroup.V2 && noPSI == nil
	if s.CPU.V.PSI.OK != psi || m.PSI.OK != psi || s.IO.OK != psi {
		t.Errorf("PSI %v, want %v", s.CPU.V.PSI.OK, psi)
	}
	v.alive()
	if err := g.Remove(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Stats(); !errors.Is(err, cgroup.ErrGone) {
		t.Errorf("of a removed group: %v", err)
	}
}

// Removal at any moment of the reading is ErrGone or a full answer, never half of one.
func TestStatsWhileRemoved(t *testing.T) {
	l := newLab(t)
	gone := 0
	for range 50 {
		g := l.group("c")
		first, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		removed := make(chan error, 1)
		go func() { removed <- g.Remove(t.Context()) }()
		for {
			s, err := g.Stats()
			if errors.Is(err, cgroup.ErrGone) {
				gone++
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.CPU.OK != first.CPU.OK || s.Memory.OK != first.Memory.OK || s.Pids.OK != first.Pids.OK || s.Swap.OK != first.Swap.OK || s.IO.OK != first.IO.OK {
				t.Fatalf("half an answer: %+v", s)
			}
		}
		if err := <-removed; err != nil {
			t.Fatal(err)
		}
	}
	if gone != 50 {
		t.Errorf("%d of 50", gone)
	}
}

// Host.Group leaves out no hierarchy of this machine.
func TestHostGroupIsComplete(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	v := holding(t, g)
	text, err := os.ReadFile("/proc/" + strconv.Itoa(v.pid()) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte(l.base+"/c\n")) {
			t.Errorf("not in a group of ours: %s", line)
		}
	}
	v.alive()
}

func BenchmarkStatsLive(b *testing.B) {
	l := newLab(b)
	g := l.group("c")
	v := inside(b, g, "burn", "16")
	v.hears("burnt")
	benchmarkStats(b, g)
}

func BenchmarkOOMKills(b *testing.B) {
	l := newLab(b)
	g := l.group("c")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.OOMKills(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkKill is the death of one process and the removal of its group.
func BenchmarkKill(b *testing.B) {
	l := newLab(b)
	var kill, remove time.Duration
	for b.Loop() {
		g := l.group("c")
		v := holding(b, g)
		begin := time.Now()
		if err := g.Kill(b.Context()); err != nil {
			b.Fatal(err)
		}
		killed := time.Now()
		if err := g.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
		kill, remove = kill+killed.Sub(begin), remove+time.Since(killed)
		v.killed()
	}
	b.ReportMetric(float64(kill.Nanoseconds())/float64(b.N), "ns/kill")
	b.ReportMetric(float64(remove.Nanoseconds())/float64(b.N), "ns/remove")
}
