// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"strconv"
	"testing"

	"github.com/berth-cri/berth/oci/cgroup"
)

func events(kills int) string {
	return "low 0\nhigh 0\nmax 12\noom 3\noom_kill " + strconv.Itoa(kills) + "\noom_group_kill 1\n"
}

func control(kills int) string {
	return "oom_kill_disable 0\nunder_oom 0\noom_kill " + strconv.Itoa(kills) + "\n"
}

func TestOOMKills(t *testing.T) {
	v2root := tree(t, map[string]string{
		"memory.events": events(7), "memory.events.local": events(2), "inner/memory.events": events(5),
	})
	v1root := tree(t, map[string]string{
		"memory/memory.oom_control": control(2), "memory/a/memory.oom_control": control(4),
		"memory/a/b/memory.oom_control": control(1), "freezer/exec-1/cgroup.procs": "",
	})
	old := tree(t, map[string]string{"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"})
	empty := t.TempDir()
	v1 := func(root string) cgroup.Group {
		return fromPaths(t, map[string]string{"memory": root + "/memory", "freezer": root + "/freezer"})
	}
	tests := map[string]struct {
		group       cgroup.Group
		tree, local uint64
		err         error
	}{
		"v2":                {v2(t, v2root), 7, 2, nil},
		"v1":                {v1(v1root), 7, 2, nil},
		"v2, gone":          {v2(t, v2root+"/none"), 0, 0, cgroup.ErrGone},
		"v1, gone":          {v1(v1root + "/none"), 0, 0, cgroup.ErrGone},
		"v2, no controller": {v2(t, empty), 0, 0, cgroup.ErrNoController},
		"v1, no controller": {fromPaths(t, map[string]string{"freezer": v1root + "/freezer"}), 0, 0, cgroup.ErrNoController},
		"v1, before 4.13":   {v1(old), 0, 0, errors.ErrUnsupported},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if n, err := tt.group.OOMKills(); n != tt.tree || !errors.Is(err, tt.err) {
				t.Errorf("OOMKills = %d, %v; want %d, %v", n, err, tt.tree, tt.err)
			}
			if n, err := tt.group.OOMKillsLocal(); n != tt.local || !errors.Is(err, tt.err) {
				t.Errorf("OOMKillsLocal = %d, %v; want %d, %v", n, err, tt.local, tt.err)
			}
		})
	}
}

func TestAttribute(t *testing.T) {
	type scopes = map[string]uint64
	tests := map[string]struct {
		base, now cgroup.SliceCounts
		also      []string
		kills     uint64
		sure      bool
	}{
		"alone, killed":               {cgroup.SliceCounts{Slice: 0, Scopes: scopes{}}, cgroup.SliceCounts{Slice: 1, Scopes: scopes{}}, nil, 1, true},
		"alone, not killed":           {cgroup.SliceCounts{Slice: 4, Scopes: scopes{}}, cgroup.SliceCounts{Slice: 4, Scopes: scopes{}}, nil, 0, true},
		"its scope is still there":    {cgroup.SliceCounts{Slice: 5, Scopes: scopes{"x": 1}}, cgroup.SliceCounts{Slice: 9, Scopes: scopes{"x": 3}}, []string{"y"}, 2, true},
		"its scope is there, at zero": {cgroup.SliceCounts{Slice: 0, Scopes: scopes{}}, cgroup.SliceCounts{Slice: 4, Scopes: scopes{"x": 0}}, []string{"y"}, 0, true},
		"the sibling's":               {cgroup.SliceCounts{Slice: 0, Scopes: scopes{"x": 0, "y": 0}}, cgroup.SliceCounts{Slice: 2, Scopes: scopes{"y": 2}}, nil, 0, true},
		"the sibling's and its own":   {cgroup.SliceCounts{Slice: 0, Scopes: scopes{"x": 0, "y": 0}}, cgroup.SliceCounts{Slice: 3, Scopes: scopes{"y": 2}}, nil, 1, true},
		"a sibling started since":     {cgroup.SliceCounts{Slice: 0, Scopes: scopes{"x": 0}}, cgroup.SliceCounts{Slice: 2, Scopes: scopes{"z": 1}}, nil, 1, true},
		"a sibling's older kills":     {cgroup.SliceCounts{Slice: 5, Scopes: scopes{"y": 5}}, cgroup.SliceCounts{Slice: 6, Scopes: scopes{"y": 5}}, nil, 1, true},
		"x had some at the base":      {cgroup.SliceCounts{Slice: 2, Scopes: scopes{"x": 2, "y": 0}}, cgroup.SliceCounts{Slice: 3, Scopes: scopes{"y": 0}}, nil, 1, true},
		"two ended, one was killed":   {cgroup.SliceCounts{Slice: 0, Scopes: scopes{"x": 0, "y": 0}}, cgroup.SliceCounts{Slice: 1, Scopes: scopes{}}, []string{"y"}, 1, false},
		"two ended, none was":         {cgroup.SliceCounts{Slice: 1, Scopes: scopes{"x": 0, "y": 1}}, cgroup.SliceCounts{Slice: 1, Scopes: scopes{}}, []string{"y"}, 0, true},
		"the other is still there":    {cgroup.SliceCounts{Slice: 0, Scopes: scopes{"x": 0, "y": 0}}, cgroup.SliceCounts{Slice: 1, Scopes: scopes{"y": 0}}, []string{"y"}, 1, true},
		"it names itself":             {cgroup.SliceCounts{Slice: 0, Scopes: scopes{}}, cgroup.SliceCounts{Slice: 1, Scopes: scopes{}}, []string{"x"}, 1, true},
		"counters that went back":     {cgroup.SliceCounts{Slice: 9, Scopes: scopes{"y": 4}}, cgroup.SliceCounts{Slice: 1, Scopes: scopes{"y": 0}}, nil, 0, true},
		"siblings beyond the slice":   {cgroup.SliceCounts{Slice: 0, Scopes: scopes{}}, cgroup.SliceCounts{Slice: 1, Scopes: scopes{"y": 3}}, nil, 0, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			kills, sure := tt.base.Attribute(tt.now, "x", tt.also...)
			if kills != tt.kills || sure != tt.sure {
				t.Errorf("%d, %v; want %d, %v", kills, sure, tt.kills, tt.sure)
			}
		})
	}
}

// The whole life of a pod, as its keeper does it.
func TestAttributeAndSettle(t *testing.T) {
	type scopes = map[string]uint64
	base := cgroup.SliceCounts{Slice: 3, Scopes: scopes{"a": 1}} // taken over with two old kills of others
	step := func(now cgroup.SliceCounts, scope string, want uint64, also ...string) {
		t.Helper()
		kills, sure := base.Attribute(now, scope, also...)
		if kills != want || !sure {
			t.Fatalf("%s: %d, %v; want %d", scope, kills, sure, want)
		}
		before := maps.Clone(base.Scopes)
		next := base.Settle(scope, kills)
		if !maps.Equal(before, base.Scopes) {
			t.Fatalf("Settle changed its receiver to %v", base)
		}
		base = next
	}
	step(cgroup.SliceCounts{Slice: 5, Scopes: scopes{"a": 2}}, "b", 1)            // b killed, and a child of a
	step(cgroup.SliceCounts{Slice: 5, Scopes: scopes{"a": 2}}, "c", 0)            // c ended by itself
	step(cgroup.SliceCounts{Slice: 8, Scopes: scopes{"a": 2, "d": 3}}, "d", 3)    // d's scope could be read
	step(cgroup.SliceCounts{Slice: 8, Scopes: scopes{"a": 2}}, "e", 0)            // and is gone now
	step(cgroup.SliceCounts{Slice: 9, Scopes: scopes{}}, "a", 2)                  // a's child of before, and a
	step(cgroup.SliceCounts{Slice: 9, Scopes: scopes{}}, "f", 0, "g")             // two ended, nothing to explain
	step(cgroup.SliceCounts{Slice: 10, Scopes: scopes{"h": 1}}, "g", 0, "i", "h") // h explains it
	if base.Slice != 9 || len(base.Scopes) != 0 {
		t.Errorf("base at the end: %+v, want 9 explained and no scopes", base)
	}
}

func TestReadSlice(t *testing.T) {
	root := tree(t, map[string]string{
		"memory.events":         events(7),
		"a.scope/memory.events": events(2),
		"b.scope/memory.events": events(0),
		"c.scope/cgroup.procs":  "", // without the controller
	})
	got, err := cgroup.ReadSlice(v2(t, root))
	if err != nil || got.Slice != 7 || !maps.Equal(got.Scopes, map[string]uint64{"a.scope": 2, "b.scope": 0}) {
		t.Errorf("%+v, %v", got, err)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var back cgroup.SliceCounts
	if err := json.Unmarshal(text, &back); err != nil || back.Slice != got.Slice || !maps.Equal(back.Scopes, got.Scopes) {
		t.Errorf("%s gave %+v, %v", text, back, err)
	}

	if _, err := cgroup.ReadSlice(v2(t, root+"/none")); !errors.Is(err, cgroup.ErrGone) {
		t.Errorf("gone: %v", err)
	}
	if err := os.Remove(root + "/memory.events"); err != nil {
		t.Fatal(err)
	}
	if _, err := cgroup.ReadSlice(v2(t, root)); !errors.Is(err, cgroup.ErrNoController) {
		t.Errorf("no controller: %v", err)
	}
	if _, err := cgroup.ReadSlice(fromPaths(t, map[string]string{"memory": root})); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("v1: %v", err)
	}
}
