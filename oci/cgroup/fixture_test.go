// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berth-cri/berth/oci/cgroup"
)

// tree makes files below a new folder; a name that ends in a slash is an empty folder.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if name[len(name)-1] == '/' {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir == path {
			continue
		}
		if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// put replaces a file as the kernel changes one: in place.
func put(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func fromPaths(t testing.TB, paths map[string]string) cgroup.Group {
	t.Helper()
	g, err := cgroup.FromPaths(paths)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// v2 is the group of one folder.
func v2(t testing.TB, dir string) cgroup.Group {
	t.Helper()
	return fromPaths(t, map[string]string{"": dir})
}
