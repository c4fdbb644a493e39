// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/berth-cri/berth/oci/cgroup"
)

func TestContainerLocation(t *testing.T) {
	leaf := cgroup.Leaf{Prefix: "berth", ID: "4f2a"}
	tests := map[string]struct {
		driver                    cgroup.Driver
		parent                    string
		path, up, slice, unit     string
		podPath, podUp, podAsName string
	}{
		"cgroupfs": {
			cgroup.Cgroupfs, "/kubepods/burstable/pod1",
			"/kubepods/burstable/pod1/4f2a", "/kubepods/burstable/pod1", "", "",
			"/kubepods/burstable/pod1", "/kubepods/burstable", "",
		},
		"cgroupfs, none":     {cgroup.Cgroupfs, "", "/berth/4f2a", "/berth", "", "", "/berth", "/", ""},
		"cgroupfs, relative": {cgroup.Cgroupfs, "a/b", "/a/b/4f2a", "/a/b", "", "", "/a/b", "/a", ""},
		"cgroupfs, untidy":   {cgroup.Cgroupfs, "//a/./b/", "/a/b/4f2a", "/a/b", "", "", "/a/b", "/a", ""},
		"cgroupfs, root":     {cgroup.Cgroupfs, "/", "/4f2a", "/", "", "", "/", "/", ""},
		"cgroupfs, slice further up": {
			cgroup.Cgroupfs, "/system.slice/pods",
			"/system.slice/pods/4f2a", "/system.slice/pods", "", "", "/system.slice/pods", "/system.slice", "",
		},
		"systemd, by path": {
			cgroup.Systemd, "/kubepods.slice/kubepods-pod1.slice",
			"/kubepods.slice/kubepods-pod1.slice/berth-4f2a.scope", "/kubepods.slice/kubepods-pod1.slice",
			"kubepods-pod1.slice", "berth-4f2a.scope",
			"/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice", "kubepods-pod1.slice",
		},
		"systemd, by name": {
			cgroup.Systemd, "kubepods-burstable-pod1_2.slice",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/berth-4f2a.scope",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
			"kubepods-burstable-pod1_2.slice", "berth-4f2a.scope",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice", "/kubepods.slice/kubepods-burstable.slice",
			"kubepods-burstable-pod1_2.slice",
		},
		"systemd, none": {
			cgroup.Systemd, "", "/berth.slice/berth-4f2a.scope", "/berth.slice", "berth.slice", "berth-4f2a.scope",
			"/berth.slice", "/", "berth.slice",
		},
		"systemd, root": {cgroup.Systemd, "-.slice", "/berth-4f2a.scope", "/", "-.slice", "berth-4f2a.scope", "/", "/", "-.slice"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l, err := tt.driver.Container(tt.parent, leaf)
			if err != nil {
				t.Fatal(err)
			}
			if l.Path() != tt.path || l.Parent() != tt.up || l.Slice() != tt.slice || l.Unit() != tt.unit {
				t.Errorf("container: %q in %q, slice %q, unit %q", l.Path(), l.Parent(), l.Slice(), l.Unit())
			}
			p, err := tt.driver.Pod(tt.parent)
			if err != nil {
				t.Fatal(err)
			}
			if p.Path() != tt.podPath || p.Parent() != tt.podUp || p.Slice() != tt.podAsName || p.Unit() != "" {
				t.Errorf("pod: %q in %q, slice %q, unit %q", p.Path(), p.Parent(), p.Slice(), p.Unit())
			}
		})
	}
}

func TestParentOfTheOtherDriver(t *testing.T) {
	for parent, driver := range map[string]cgroup.Driver{
		"/kubepods.slice/kubepods-pod1.slice": cgroup.Cgroupfs,
		"kubepods.slice":                      cgroup.Cgroupfs,
		"/kubepods/pod1":                      cgroup.Systemd,
		"/":                                   cgroup.Systemd,
		"/kubepods.slice/pod1":                cgroup.Systemd,
	} {
		_, err := driver.Pod(parent)
		if !errors.Is(err, cgroup.ErrDriver) {
			t.Errorf("%s of %q: %v", driver, parent, err)
			continue
		}
		for _, word := range []string{`"` + parent + `"`, `"` + string(driver) + `"`, "cgroup_parent", "[cgroup] driver", "cgroupDriver"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q does not name %s", err, word)
			}
		}
	}
	if _, err := cgroup.Driver("auto").Pod("/x"); err == nil {
		t.Error("an unknown driver places a pod")
	}
}

func TestBadLocations(t *testing.T) {
	good := cgroup.Leaf{Prefix: "berth", ID: "4f2a"}
	tests := map[string]struct {
		driver cgroup.Driver
		parent string
		leaf   cgroup.Leaf
	}{
		"climbs":                 {cgroup.Cgroupfs, "/kubepods/../../etc", good},
		"climbs, relative":       {cgroup.Cgroupfs, "../x", good},
		"climbs back":            {cgroup.Cgroupfs, "/a/b/..", good},
		"newline":                {cgroup.Cgroupfs, "/a\nb", good},
		"slice climbs":           {cgroup.Systemd, "/a.slice/../b.slice", good},
		"slice elsewhere":        {cgroup.Systemd, "/b.slice/a.slice", good},
		"slice not expanded":     {cgroup.Systemd, "/a.slice/a-b-c.slice", good},
		"slice, empty part":      {cgroup.Systemd, "a--b.slice", good},
		"slice, leading dash":    {cgroup.Systemd, "-a.slice", good},
		"slice, trailing dash":   {cgroup.Systemd, "a-.slice", good},
		"slice, no name":         {cgroup.Systemd, ".slice", good},
		"no id":                  {cgroup.Cgroupfs, "/a", cgroup.Leaf{}},
		"id climbs":              {cgroup.Cgroupfs, "/a", cgroup.Leaf{ID: ".."}},
		"id with a slash":        {cgroup.Cgroupfs, "/a", cgroup.Leaf{ID: "b/c"}},
		"id like a kernel file":  {cgroup.Cgroupfs, "/a", cgroup.Leaf{ID: ".procs"}},
		"id like an exec's":      {cgroup.Cgroupfs, "/a", cgroup.Leaf{ID: "exec-1"}},
		"id, control character":  {cgroup.Cgroupfs, "/a", cgroup.Leaf{ID: "a\n"}},
		"no prefix":              {cgroup.Systemd, "a.slice", cgroup.Leaf{ID: "b"}},
		"prefix with a slash":    {cgroup.Systemd, "a.slice", cgroup.Leaf{Prefix: "a/b", ID: "b"}},
		"prefix like an exec's":  {cgroup.Systemd, "a.slice", cgroup.Leaf{Prefix: "exec-a", ID: "b"}},
		"systemd, id with slash": {cgroup.Systemd, "a.slice", cgroup.Leaf{Prefix: "berth", ID: "../b"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if l, err := tt.driver.Container(tt.parent, tt.leaf); !errors.Is(err, cgroup.ErrBadPath) {
				t.Errorf("%q, %v", l.Path(), err)
			}
		})
	}
}

func TestExpandSlice(t *testing.T) {
	for slice, want := range map[string]string{
		"a.slice":     "/a.slice",
		"a-b.slice":   "/a.slice/a-b.slice",
		"a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice",
		"-.slice":     "/",
		"a.b.slice":   "/a.b.slice",
	} {
		if got, err := cgroup.ExpandSlice(slice); got != want || err != nil {
			t.Errorf("%q: %q, %v; want %q", slice, got, err, want)
		}
	}
	for _, slice := range []string{"", "a", ".slice", "a/b.slice", "--.slice", "a--b.slice", "-a.slice", "a-.slice"} {
		if got, err := cgroup.ExpandSlice(slice); !errors.Is(err, cgroup.ErrBadPath) {
			t.Errorf("%q: %q, %v", slice, got, err)
		}
	}
}

// No parent and no id, however made, leads out of the hierarchy or up in it.
func FuzzLocation(f *testing.F) {
	f.Add("/kubepods/pod1", "berth", "4f2a")
	f.Add("a-b.slice", "berth", "4f2a")
	f.Add("/a.slice/a-b.slice", "cri-containerd", "x")
	f.Add("../..", "..", "..")
	f.Fuzz(func(t *testing.T, parent, prefix, id string) {
		for _, d := range []cgroup.Driver{cgroup.Cgroupfs, cgroup.Systemd} {
			l, err := d.Container(parent, cgroup.Leaf{Prefix: prefix, ID: id})
			if err != nil {
				continue
			}
			p := l.Path()
			if p != path.Clean(p) || p[0] != '/' || strings.Contains(p+"/", "/../") || path.Dir(p) != l.Parent() || !strings.Contains(path.Base(p), id) {
				t.Errorf("%s %q %q %q: %q in %q", d, parent, prefix, id, p, l.Parent())
			}
			if d == cgroup.Systemd && (!strings.HasSuffix(l.Parent(), l.Slice()) && l.Slice() != "-.slice" || l.Unit() != path.Base(p)) {
				t.Errorf("%q: slice %q, unit %q", p, l.Slice(), l.Unit())
			}
		}
	})
}
