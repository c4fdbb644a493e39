// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"path"
	"strings"
)

// Driver says who makes groups: we ourselves with mkdir, or systemd as units. It is fixed for
// the life of a node's runtime, and the kubelet's must be the same.
type Driver string

// The two drivers, spelled as in the configuration and in the kubelet's cgroupDriver.
const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

const (
	sliceSuffix = ".slice"
	scopeSuffix = ".scope"
)

// DefaultParent is the parent of a pod that came without a cgroup_parent.
func (d Driver) DefaultParent() string {
	if d == Systemd {
		return "berth.slice"
	}
	return "/berth"
}

// Location is where a pod's or a container's group is, or is to be. It is known before the group
// exists, so that a record of the intent can be written first. Host.Group makes a Group of its Path.
type Location struct {
	parent string // path of the parent within the hierarchy
	name   string // folder below it; empty for a pod
	slice  string // systemd: the unit name of the parent
}

// Path is the group's path within the hierarchy:
//
//	cgroupfs  /kubepods/burstable/pod1/<id>
//	systemd   /kubepods.slice/kubepods-pod1.slice/<prefix>-<id>.scope
func (l Location) Path() string { return path.Join(l.parent, l.name) }

// Parent is the path of the group above: for a container the pod's.
func (l Location) Parent() string {
	if l.name == "" {
		return path.Dir(l.parent)
	}
	return l.parent
}

// Slice is the systemd unit that holds the group, "kubepods-pod1.slice"; empty with cgroupfs.
func (l Location) Slice() string { return l.slice }

// Unit is the container's own systemd unit, "<prefix>-<id>.scope"; empty with cgroupfs and for a pod.
func (l Location) Unit() string {
	if l.slice == "" {
		return ""
	}
	return l.name
}

// Pod places a pod by the cgroup_parent of its PodSandboxConfig; an empty one is DefaultParent.
// With cgroupfs the parent is a path, and one without a leading slash is taken from the root.
// With systemd it is a slice, by name ("a-b.slice") or by full path ("/a.slice/a-b.slice").
//
// ErrDriver where the parent is written for the other driver, ErrBadPath where it climbs, or is
// no slice that systemd would accept, or a full path that is not where systemd keeps that slice.
func (d Driver) Pod(cgroupParent string) (Location, error) {
	if cgroupParent == "" {
		cgroupParent = d.DefaultParent()
	}
	parent := cgroupParent
	if !strings.HasPrefix(parent, "/") {
		parent = "/" + parent
	}
	parent, err := cleanAbs(parent)
	if err != nil {
		return Location{}, fmt.Errorf("cgroup_parent %q: %w", cgroupParent, err)
	}
	// The last element decides, as it does for the kubelet and the other runtimes: it is what
	// the group would be made in.
	slice := path.Base(parent)
	isSlice := strings.HasSuffix(slice, sliceSuffix)
	switch {
	case d == Cgroupfs && !isSlice:
		return Location{parent: parent}, nil
	case d == Cgroupfs:
		return Location{}, fmt.Errorf("%w: cgroup_parent %q is a systemd slice, but berth's [cgroup] driver is %q: set it and the kubelet's cgroupDriver to the same value",
			ErrDriver, cgroupParent, d)
	case d != Systemd:
		return Location{}, fmt.Errorf("cgroup driver %q: want %q or %q", d, Cgroupfs, Systemd)
	case !isSlice:
		return Location{}, fmt.Errorf("%w: cgroup_parent %q is no systemd slice, but berth's [cgroup] driver is %q: set it and the kubelet's cgroupDriver to the same value",
			ErrDriver, cgroupParent, d)
	}
	full, err := ExpandSlice(slice)
	if err != nil {
		return Location{}, fmt.Errorf("cgroup_parent %q: %w", cgroupParent, err)
	}
	// Else a Group would be read and killed in one folder while systemd works in another.
	if parent != "/"+slice && parent != full {
		return Location{}, fmt.Errorf("cgroup_parent %q: %w: systemd keeps that slice at %q", cgroupParent, ErrBadPath, full)
	}
	return Location{parent: full, slice: slice}, nil
}

// Leaf names a container's group below its pod's.
type Leaf struct {
	// Prefix goes before the id in a scope's name; agents know "cri-containerd" and "crio". Not used by cgroupfs.
	Prefix string
	ID     string
}

// Container places a container below its pod's cgroup_parent, with the errors of Pod and
// ErrBadPath for a prefix or an id that is empty or has a character other than letters, digits,
// '_', '-', ':' and '.', or that starts with "exec-" (those names are for Sub).
func (d Driver) Container(cgroupParent string, leaf Leaf) (Location, error) {
	l, err := d.Pod(cgroupParent)
	if err != nil {
		return Location{}, err
	}
	if !isName(leaf.ID) || strings.HasPrefix(leaf.ID, subPrefix) {
		return Location{}, fmt.Errorf("%w: id %q", ErrBadPath, leaf.ID)
	}
	l.name = leaf.ID
	if d == Systemd {
		if !isName(leaf.Prefix) || strings.HasPrefix(leaf.Prefix, subPrefix) {
			return Location{}, fmt.Errorf("%w: scope prefix %q", ErrBadPath, leaf.Prefix)
		}
		l.name = leaf.Prefix + "-" + leaf.ID + scopeSuffix
	}
	return l, nil
}

// ExpandSlice gives a slice's path in the hierarchy: "a-b.slice" is at "/a.slice/a-b.slice", and
// "-.slice" is the root (systemd.slice(5)). ErrBadPath for what systemd does not take as a slice.
func ExpandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, sliceSuffix)
	if !ok || strings.Contains(name, "/") {
		return "", fmt.Errorf("%w: slice %q", ErrBadPath, slice)
	}
	if name == "-" {
		return "/", nil
	}
	var full, prefix string
	for part := range strings.SplitSeq(name, "-") {
		// systemd takes neither a--b.slice nor -a.slice nor a-.slice.
		if part == "" {
			return "", fmt.Errorf("%w: slice %q", ErrBadPath, slice)
		}
		prefix += part
		full += "/" + prefix + sliceSuffix
		prefix += "-"
	}
	return full, nil
}

// isName says whether s can be one folder's name and part of a unit's.
func isName(s string) bool {
	if s == "" || s[0] == '.' || len(s) > 200 {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '_', c == '-', c == ':', c == '.':
		default:
			return false
		}
	}
	return true
}
