// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"testing"

	"github.com/berth-cri/berth/oci/cgroup"
)

func TestSub(t *testing.T) {
	root := tree(t, map[string]string{"freezer/x/": "", "memory/x/": "", "uni/x/": ""})
	tests := map[string]struct {
		group cgroup.Group
		dir   string
		paths map[string]string
		sub   map[string]string
	}{
		"v1": {
			fromPaths(t, map[string]string{"freezer": root + "/freezer/x", "memory": root + "/memory/x", "": root + "/uni/x"}),
			root + "/freezer/x/exec-1",
			map[string]string{"freezer": root + "/freezer/x/exec-1"},
			map[string]string{"freezer": "exec-1"},
		},
		"v2": {
			v2(t, root+"/uni/x"),
			root + "/uni/x/exec-1",
			map[string]string{"": root + "/uni/x/exec-1"},
			map[string]string{"": "exec-1"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := tt.group.Sub("exec-1")
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(s.Paths(), tt.paths) || !maps.Equal(s.SubCgroupPaths(), tt.sub) || s.Version() != tt.group.Version() {
				t.Errorf("%v, %v, %v", s.Paths(), s.SubCgroupPaths(), s.Version())
			}
			if _, err := os.Stat(tt.dir); err == nil {
				t.Error("made before Create")
			}
			if err := s.Create(); err != nil {
				t.Fatal(err)
			}
			if err := s.Create(); !errors.Is(err, fs.ErrExist) {
				t.Errorf("a second Create: %v", err)
			}
			if err := s.Remove(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(tt.dir); err == nil {
				t.Error("still there")
			}
			if err := os.Remove(tt.dir[:len(tt.dir)-len("/exec-1")]); err != nil {
				t.Fatal(err)
			}
			if err := s.Create(); !errors.Is(err, cgroup.ErrGone) {
				t.Errorf("Create in a group that is gone: %v", err)
			}
		})
	}
}

func TestSubNames(t *testing.T) {
	g := v2(t, "/x/y")
	for _, name := range []string{"", "exec", "exec-", "exec-/", "exec-a/b", "exec-..", "exec-a/../../b", "x", "4f2a", "../exec-1", "exec-\n", "exec-.x"} {
		if s, err := g.Sub(name); !errors.Is(err, cgroup.ErrBadPath) {
			t.Errorf("%q: %v, %v", name, s, err)
		}
	}
	for _, name := range []string{"exec-1", "exec-4f2a_b-c.d"} {
		if _, err := g.Sub(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := fromPaths(t, map[string]string{"memory": "/x/y"}).Sub("exec-1"); !errors.Is(err, cgroup.ErrNoController) {
		t.Errorf("v1 without a freezer: %v", err)
	}
}
