// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package cgroup_test

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-cri/berth/oci/cgroup"
)

const small = 32 << 20 // the limit that a hog of 256 MiB exceeds

func wantKills(t testing.TB, g cgroup.Group, tree, local uint64) {
	t.Helper()
	if n, err := g.OOMKills(); n != tree || err != nil {
		t.Errorf("OOMKills = %d, %v; want %d", n, err, tree)
	}
	if n, err := g.OOMKillsLocal(); n != local || err != nil {
		t.Errorf("OOMKillsLocal = %d, %v; want %d", n, err, local)
	}
}

// Right each time, read at once after the end and before the removal.
func TestOOMKillIsCounted(t *testing.T) {
	l := newLab(t)
	for range 10 {
		g := l.group("c")
		limitMemory(t, g, small)
		wantKills(t, g, 0, 0)
		inside(t, g, "hog", "256").killed()
		wantKills(t, g, 1, 1)
		if err := g.Remove(bounded(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := g.OOMKills(); !errors.Is(err, cgroup.ErrGone) {
			t.Errorf("of a removed group: %v", err)
		}
	}
}

func TestOOMKillOfAChild(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	limitMemory(t, g, 2*small)
	v := inside(t, g, "parent", "256")
	v.hears("signal: killed")
	wantKills(t, g, 1, 1)
	v.alive()
}

func TestOtherEndsAreNoOOMKills(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	limitMemory(t, g, 2*small)
	inside(t, g, "exit").alive()
	v := holding(t, g)
	mustKill(t, g)
	v.killed()
	wantKills(t, g, 0, 0)
}

// An exec in a group of its own is charged to the container, and its kills count as the container's own.
func TestOOMKillInSub(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	limitMemory(t, g, small)
	s, err := g.Sub("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Create(); err != nil {
		t.Fatal(err)
	}
	v := start(t, nil, "hog", "256")
	join(t, g, v.pid())
	join(t, s.Group, v.pid())
	v.open()
	v.killed()
	wantKills(t, g, 1, 1)
}

// A container with memory groups of its own inside: only the count of the whole tree knows.
func TestOOMKillInInnerGroup(t *testing.T) {
	l := newLab(t)
	g := l.group("c")
	limitMemory(t, g, small)
	inner := dir(g, "memory") + "/inner"
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if l.host.Version() == cgroup.V2 {
		put(t, dir(g, "")+"/cgroup.subtree_control", "+memory")
	}
	v := start(t, nil, "hog", "256")
	put(t, inner+"/cgroup.procs", strconv.Itoa(v.pid()))
	v.open()
	v.killed()
	wantKills(t, g, 1, 0)
}

// The rule for scopes, with groups that are removed before anyone can read them.
func TestSliceKnowsWhoWasKilled(t *testing.T) {
	l := newLab(t)
	l.only(cgroup.V2)
	slice := l.group("pod")
	l.enable(dir(slice, ""))
	base, err := cgroup.ReadSlice(slice)
	if err != nil {
		t.Fatal(err)
	}
	sibling := l.group("pod/sibling.scope")
	limitMemory(t, sibling, 2*small)
	other := inside(t, sibling, "parent", "256")
	other.hears("signal: killed")

	for i := range 10 {
		name := "x" + strconv.Itoa(i) + ".scope"
		g := l.group("pod/" + name)
		limitMemory(t, g, small)
		want := uint64(i % 2)
		if want == 1 {
			inside(t, g, "hog", "256").killed()
		} else {
			inside(t, g, "exit").alive()
		}
		if err := g.Remove(bounded(t)); err != nil {
			t.Fatal(err)
		}
		now, err := cgroup.ReadSlice(slice)
		if err != nil {
			t.Fatal(err)
		}
		kills, sure := base.Attribute(now, name)
		if kills != want || !sure {
			t.Errorf("%s: %d, %v; want %d (%+v, then %+v)", name, kills, sure, want, base, now)
		}
		base = base.Settle(name, kills)
	}
	other.alive()
}

// The same with scopes that systemd makes and removes.
func TestSliceOfSystemd(t *testing.T) {
	l := newLab(t)
	l.only(cgroup.V2)
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Skip("systemd does not run here")
	}
	name := "berthtestcgroup" + strings.ToLower(rand.Text()[:10])
	loc, err := cgroup.Systemd.Pod(name + "-pod1.slice")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, unit := range []string{loc.Slice(), name + ".slice"} {
			if out, err := exec.Command("systemctl", "stop", unit).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}
	})
	slice, err := l.host.Group(loc.Path())
	if err != nil {
		t.Fatal(err)
	}
	// scope starts a part in a scope of its own; systemd-run becomes the part.
	scope := func(id string, part string) *victim {
		c, err := cgroup.Systemd.Container(loc.Slice(), cgroup.Leaf{Prefix: name, ID: id})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("systemd-run", "--quiet", "--scope", "--collect", "--slice="+c.Slice(), "--unit="+c.Unit(),
			"-p", "MemoryMax=33554432", "-p", "MemorySwapMax=0", "--", "/proc/"+strconv.Itoa(os.Getpid())+"/exe")
		v := startCommand(t, cmd, part)
		v.open()
		return v
	}
	sibling := scope("sibling", "hold")
	sibling.hears("held")
	base, err := cgroup.ReadSlice(slice)
	if err != nil {
		t.Fatal(err)
	}
	early := 0
	for i := range 20 {
		id := "x" + strconv.Itoa(i)
		want := uint64(i % 2)
		if want == 1 {
			scope(id, "hog 256").killed()
		} else {
			scope(id, "exit").alive()
		}
		now, err := cgroup.ReadSlice(slice)
		if err != nil {
			t.Fatal(err)
		}
		unit := name + "-" + id + ".scope"
		if _, there := now.Scopes[unit]; !there {
			early++
		}
		kills, sure := base.Attribute(now, unit)
		if kills != want || !sure {
			t.Errorf("%s: %d, %v; want %d (%+v, then %+v)", unit, kills, sure, want, base, now)
		}
		base = base.Settle(unit, kills)
	}
	t.Logf("systemd was faster %d of 20 times", early)
	sibling.alive()
}
