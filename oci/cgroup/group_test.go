// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/berth-cri/berth/oci/cgroup"
)

func TestDetect(t *testing.T) {
	tests := map[string]struct {
		files map[string]string
		want  cgroup.Version
		err   error
	}{
		"v2":                      {map[string]string{"cgroup.controllers": "cpu memory\n", "cgroup.procs": ""}, cgroup.V2, nil},
		"v2 with odd folders":     {map[string]string{"cgroup.controllers": "", "memory/cgroup.procs": ""}, cgroup.V2, nil},
		"v1":                      {map[string]string{"memory/cgroup.procs": ""}, cgroup.V1, nil},
		"hybrid":                  {map[string]string{"memory/cgroup.procs": "", "unified/cgroup.controllers": "", "unified/cgroup.procs": ""}, cgroup.V1, nil},
		"nothing":                 {map[string]string{}, 0, cgroup.ErrNotMounted},
		"folders, not mounted":    {map[string]string{"memory/": "", "freezer/": ""}, 0, cgroup.ErrNotMounted},
		"only named hierarchies":  {map[string]string{"systemd/cgroup.procs": "", "unified/cgroup.procs": ""}, 0, cgroup.ErrNotMounted},
		"only foreign hierarchy":  {map[string]string{"elogind/cgroup.procs": ""}, 0, cgroup.ErrNotMounted},
		"a file called like that": {map[string]string{"memory": ""}, 0, cgroup.ErrNotMounted},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := cgroup.Detect(tree(t, tt.files))
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("Detect = %v, %v; want %v, %v", got, err, tt.want, tt.err)
			}
		})
	}
	for _, root := range []string{"", "sys/fs/cgroup", "/sys/../sys/fs/cgroup"} {
		if _, err := cgroup.Detect(root); !errors.Is(err, cgroup.ErrBadPath) {
			t.Errorf("Detect(%q): %v", root, err)
		}
	}
	if _, err := cgroup.Detect(t.TempDir() + "/none"); !errors.Is(err, cgroup.ErrNotMounted) {
		t.Errorf("Detect of nothing: %v", err)
	}
}

// What libcontainer's managers make of the same path on such hosts.
func TestHostGroup(t *testing.T) {
	v1 := tree(t, map[string]string{
		"memory/cgroup.procs":      "",
		"freezer/cgroup.procs":     "",
		"cpu,cpuacct/cgroup.procs": "",
		"systemd/cgroup.procs":     "",
		"unified/cgroup.procs":     "",
		"elogind/cgroup.procs":     "",
		"pids/":                    "", // not mounted
	})
	h, err := cgroup.Open(v1)
	if err != nil {
		t.Fatal(err)
	}
	g, err := h.Group("/kubepods/pod1//x/")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"memory":       v1 + "/memory/kubepods/pod1/x",
		"freezer":      v1 + "/freezer/kubepods/pod1/x",
		"cpu":          v1 + "/cpu,cpuacct/kubepods/pod1/x",
		"cpuacct":      v1 + "/cpu,cpuacct/kubepods/pod1/x",
		"name=systemd": v1 + "/systemd/kubepods/pod1/x",
		"":             v1 + "/unified/kubepods/pod1/x",
	}
	if got := g.Paths(); !maps.Equal(got, want) {
		t.Errorf("v1 paths %v, want %v", got, want)
	}
	if g.Version() != cgroup.V1 || h.Version() != cgroup.V1 || h.Root() != v1 {
		t.Errorf("version %v of %v at %v", g.Version(), h.Version(), h.Root())
	}

	v2 := tree(t, map[string]string{"cgroup.controllers": ""})
	if h, err = cgroup.Open(v2); err != nil {
		t.Fatal(err)
	}
	if g, err = h.Group("/berth/x"); err != nil {
		t.Fatal(err)
	}
	if got, want := g.Paths(), map[string]string{"": v2 + "/berth/x"}; !maps.Equal(got, want) {
		t.Errorf("v2 paths %v, want %v", got, want)
	}

	for path, want := range map[string]error{
		"":        cgroup.ErrBadPath,
		"berth/x": cgroup.ErrBadPath,
		"/a/../b": cgroup.ErrBadPath,
		"/..":     cgroup.ErrBadPath,
		"/a\nb":   cgroup.ErrBadPath,
		"/":       cgroup.ErrRoot,
		"//":      cgroup.ErrRoot,
		"/.":      cgroup.ErrRoot,
	} {
		if g, err := h.Group(path); !errors.Is(err, want) {
			t.Errorf("Group(%q) = %v, %v; want %v", path, g, err, want)
		}
	}
	if _, err := (cgroup.Host{}).Group("/x"); !errors.Is(err, cgroup.ErrNotMounted) {
		t.Errorf("the zero Host: %v", err)
	}
}

func TestFromPaths(t *testing.T) {
	tests := map[string]struct {
		paths   map[string]string
		version cgroup.Version
		text    string
		name    string
	}{
		"v2":     {map[string]string{"": "/sys/fs/cgroup/berth/x"}, cgroup.V2, "v2\n /sys/fs/cgroup/berth/x", "/sys/fs/cgroup/berth/x"},
		"v1":     {map[string]string{"memory": "/c/memory/x", "freezer": "/c/freezer/x"}, cgroup.V1, "v1\nfreezer /c/freezer/x\nmemory /c/memory/x", "/c/freezer/x"},
		"sub":    {map[string]string{"freezer": "/c/freezer/x/exec-1"}, cgroup.V1, "v1\nfreezer /c/freezer/x/exec-1", "/c/freezer/x/exec-1"},
		"hybrid": {map[string]string{"": "/c/unified/x", "name=systemd": "/c/systemd/x"}, cgroup.V1, "v1\n /c/unified/x\nname=systemd /c/systemd/x", "/c/unified/x"},
		"blanks": {map[string]string{"memory": "/c/memory/a b"}, cgroup.V1, "v1\nmemory /c/memory/a b", "/c/memory/a b"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g := fromPaths(t, tt.paths)
			if g.Version() != tt.version || g.String() != tt.name {
				t.Errorf("%v %q, want %v %q", g.Version(), g, tt.version, tt.name)
			}
			if got := g.Paths(); !maps.Equal(got, tt.paths) {
				t.Errorf("Paths %v, want %v", got, tt.paths)
			}
			text, err := g.MarshalText()
			if err != nil || string(text) != tt.text {
				t.Errorf("text %q, %v; want %q", text, err, tt.text)
			}
			var back cgroup.Group
			if err := back.UnmarshalText(text); err != nil || !back.Equal(g) {
				t.Errorf("read back %v, %v", back.Paths(), err)
			}
		})
	}
	for name, paths := range map[string]map[string]string{
		"nil":        nil,
		"empty path": {"memory": ""},
		"relative":   {"memory": "berth/x"},
		"climbs":     {"memory": "/c/memory/../../etc"},
		"root":       {"memory": "/c/memory/x", "pids": "/"},
		"newline":    {"memory": "/c/memory/x\npids /c/y"},
		"controller": {"mem ory": "/c/memory/x"},
	} {
		if g, err := cgroup.FromPaths(paths); !errors.Is(err, cgroup.ErrBadPath) {
			t.Errorf("%s: %v, %v", name, g, err)
		}
	}
}

func TestGroupEqual(t *testing.T) {
	a := fromPaths(t, map[string]string{"memory": "/c/memory/x", "pids": "/c/pids/x"})
	for name, o := range map[string]map[string]string{
		"other path":   {"memory": "/c/memory/x", "pids": "/c/pids/y"},
		"one less":     {"memory": "/c/memory/x"},
		"other key":    {"memory": "/c/memory/x", "cpu": "/c/pids/x"},
		"other folder": {"": "/c/memory/x"},
	} {
		if a.Equal(fromPaths(t, o)) {
			t.Errorf("equal in spite of %s", name)
		}
	}
	if !a.Equal(fromPaths(t, map[string]string{"pids": "/c/pids/x/", "memory": "/c//memory/x"})) {
		t.Error("not equal in spite of the same folders")
	}
}

func TestUnmarshalTextRefuses(t *testing.T) {
	for _, text := range []string{
		"", "v1", "v2", "v2\n", "v1\n", "v2\n/c/x", "v1\n /c/x", "v2\nmemory /c/x", "v3\n /c/x", "V2\n /c/x",
		"v1\nmemory /c/x\nmemory /c/y", "v1\nmemory c/x", "v1\nmemory /c/../x", "v2\n /", "v2\n /c/x\n",
	} {
		var g cgroup.Group
		if err := g.UnmarshalText([]byte(text)); !errors.Is(err, cgroup.ErrBadPath) {
			t.Errorf("%q gave %v, %v", text, g.Paths(), err)
		}
		if g.Version() != 0 {
			t.Errorf("%q changed the group to %v", text, g.Paths())
		}
	}
}

func TestZeroGroup(t *testing.T) {
	var g cgroup.Group
	ctx := t.Context()
	_, stats := g.Stats()
	_, kills := g.OOMKills()
	_, local := g.OOMKillsLocal()
	_, text := g.MarshalText()
	_, sub := g.Sub("exec-1")
	_, slice := cgroup.ReadSlice(g)
	for name, err := range map[string]error{
		"Kill": g.Kill(ctx), "Empty": g.Empty(ctx), "Remove": g.Remove(ctx), "Create": cgroup.Sub{}.Create(),
		"Stats": stats, "OOMKills": kills, "OOMKillsLocal": local, "MarshalText": text, "Sub": sub, "ReadSlice": slice,
	} {
		if err == nil || !strings.Contains(err.Error(), "zero Group") {
			t.Errorf("%s of the zero Group: %v", name, err)
		}
	}
}

func FuzzGroupText(f *testing.F) {
	f.Add("v2\n /sys/fs/cgroup/berth/x")
	f.Add("v1\nfreezer /c/freezer/x\nmemory /c/memory/x")
	f.Add("v1\n /c/unified/a b\nname=systemd /c/systemd/a b")
	f.Fuzz(func(t *testing.T, text string) {
		var g cgroup.Group
		if g.UnmarshalText([]byte(text)) != nil {
			return
		}
		for _, p := range g.Paths() {
			if strings.Contains("/"+p+"/", "/../") || p[0] != '/' || p == "/" {
				t.Errorf("path %q", p)
			}
		}
		out, err := g.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back cgroup.Group
		if err := back.UnmarshalText(out); err != nil || !back.Equal(g) {
			t.Errorf("%q became %q: %v", text, out, err)
		}
	})
}
