// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// DefaultRoot is where every distribution mounts cgroups.
const DefaultRoot = "/sys/fs/cgroup"

// Version says how the kernel's controllers are mounted.
type Version int

// V1 has a hierarchy for each controller, V2 has one for all. A hybrid host (controllers mounted
// separately, with a cgroup2 mount that has none of them beside) is V1.
const (
	V1 Version = 1 + iota
	V2
)

// String gives "v1" or "v2".
func (v Version) String() string {
	switch v {
	case V1:
		return "v1"
	case V2:
		return "v2"
	}
	return fmt.Sprintf("Version(%d)", int(v))
}

// knownController says whether libcontainer joins the v1 hierarchy of that controller. Others
// (elogind's, a container manager's own) are not ours to make groups in.
func knownController(name string) bool {
	switch name {
	case "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc",
		"net_cls", "net_prio", "perf_event", "pids", "rdma":
		return true
	}
	return false
}

// Detect tells which version is mounted at root, which is normally DefaultRoot.
// ErrNotMounted where neither is.
//
// The unified hierarchy is known by its root file cgroup.controllers (Linux 4.5); a v1 root is a
// folder of mounts, each with a cgroup.procs.
func Detect(root string) (Version, error) {
	h, err := Open(root)
	return h.version, err
}

// Host is the cgroup file systems of this machine. Its zero value is of no use; see Open.
type Host struct {
	root    string
	version Version
	mounts  []member // v1: controller and the path of its hierarchy's root
}

// Open looks at what is mounted at root, which is normally DefaultRoot. It keeps nothing open.
func Open(root string) (Host, error) {
	root, err := cleanAbs(root)
	if err != nil {
		return Host{}, err
	}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return Host{root: root, version: V2}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return Host{}, fmt.Errorf("%w at %s: %w", ErrNotMounted, root, err)
	}
	h := Host{root: root, version: V1}
	for _, e := range entries {
		// Controllers that are mounted together (cpu,cpuacct) have symbolic links with
		// their single names beside them: those are skipped here and found by splitting.
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(root, e.Name())
		if _, err := os.Stat(filepath.Join(dir, procsFile)); err != nil {
			continue
		}
		switch e.Name() {
		case "systemd":
			h.mounts = append(h.mounts, member{"name=systemd", dir})
		case "unified":
			h.mounts = append(h.mounts, member{"", dir})
		default:
			for c := range strings.SplitSeq(e.Name(), ",") {
				if knownController(c) {
					h.mounts = append(h.mounts, member{c, dir})
				}
			}
		}
	}
	// A folder that holds only named hierarchies has no controllers at all.
	for _, m := range h.mounts {
		if knownController(m.controller) {
			return h, nil
		}
	}
	return Host{}, fmt.Errorf("%w at %s", ErrNotMounted, root)
}

// Version says which one the host has.
func (h Host) Version() Version { return h.version }

// Root is the folder that Open was given.
func (h Host) Root() string { return h.root }

// Group gives the group at a path within the hierarchies, such as "/kubepods/pod1/<id>", as
// Location.Path gives it. On v1 it spans every hierarchy that libcontainer joins. Whether it
// exists is not looked at. ErrBadPath for a path that is not absolute or climbs, ErrRoot for "/".
func (h Host) Group(path string) (Group, error) {
	if h.version == 0 {
		return Group{}, ErrNotMounted
	}
	path, err := cleanAbs(path)
	if err != nil {
		return Group{}, err
	}
	if path == "/" {
		return Group{}, ErrRoot
	}
	if h.version == V2 {
		return newGroup(V2, []member{{"", h.root + path}}), nil
	}
	members := make([]member, 0, len(h.mounts))
	for _, m := range h.mounts {
		members = append(members, member{m.controller, m.path + path})
	}
	return newGroup(V1, members), nil
}

// cleanAbs cleans an absolute path. It refuses one that climbs instead of resolving it, for
// nobody who means well writes one, and a newline, which the kernel refuses as well.
func cleanAbs(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%w %q: not absolute", ErrBadPath, path)
	}
	if strings.ContainsAny(path, "\n\x00") {
		return "", fmt.Errorf("%w %q: control character", ErrBadPath, path)
	}
	for e := range strings.SplitSeq(path, "/") {
		if e == ".." {
			return "", fmt.Errorf("%w %q: climbs", ErrBadPath, path)
		}
	}
	return filepath.Clean(path), nil
}
