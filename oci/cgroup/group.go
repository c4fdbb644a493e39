// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"slices"
	"strings"
)

// member is one folder of a group.
type member struct {
	controller string // as libcontainer names it: "memory", "name=systemd", "" for cgroup2
	path       string // absolute
}

// Group is the control group of one container or one pod: on v2 one folder, on v1 one in each
// hierarchy. The zero Group is refused by every method. Values are compared with Equal, or by
// the text that MarshalText gives.
type Group struct {
	version Version
	members []member // sorted by controller
}

func newGroup(v Version, members []member) Group {
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.controller, b.controller) })
	return Group{v, members}
}

// FromPaths takes the shape of libcontainer's CgroupPaths: a map from controller to absolute
// path. A map with the one key "" is v2; every other is v1, where "" may be among the keys: on a
// hybrid host libcontainer joins the controller-less cgroup2 hierarchy as well.
// ErrBadPath for an empty map, a path that is relative, climbs or is "/", or a key that is no
// controller's name.
func FromPaths(paths map[string]string) (Group, error) {
	if len(paths) == 0 {
		return Group{}, fmt.Errorf("%w: no paths", ErrBadPath)
	}
	members := make([]member, 0, len(paths))
	for c, p := range paths {
		p, err := cleanAbs(p)
		if err != nil {
			return Group{}, err
		}
		if p == "/" {
			return Group{}, fmt.Errorf("%w %q: %w", ErrBadPath, p, ErrRoot)
		}
		if strings.ContainsAny(c, " \n/\x00") {
			return Group{}, fmt.Errorf("%w: controller %q", ErrBadPath, c)
		}
		members = append(members, member{c, p})
	}
	v := V1
	if len(members) == 1 && members[0].controller == "" {
		v = V2
	}
	return newGroup(v, members), nil
}

// Paths gives what FromPaths took; the map is the caller's.
func (g Group) Paths() map[string]string {
	paths := make(map[string]string, len(g.members))
	for _, m := range g.members {
		paths[m.controller] = m.path
	}
	return paths
}

// Version is 0 for the zero Group.
func (g Group) Version() Version { return g.version }

// Equal says whether both are the same folders.
func (g Group) Equal(o Group) bool {
	return g.version == o.version && slices.Equal(g.members, o.members)
}

// String gives one path, for people: on v1 the freezer's, or the first.
func (g Group) String() string {
	if p, ok := g.path("freezer"); ok {
		return p
	}
	if len(g.members) > 0 {
		return g.members[0].path
	}
	return "none"
}

// MarshalText gives the form kept in records: the version, then a line "controller path" for
// each folder, sorted. Equal groups have equal texts. A line break cannot be part of a cgroup's
// name, as the kernel refuses it. The zero Group is an error.
//
//	v1
//	freezer /sys/fs/cgroup/freezer/kubepods/pod1/4f…
//	memory /sys/fs/cgroup/memory/kubepods/pod1/4f…
func (g Group) MarshalText() ([]byte, error) {
	if g.version == 0 {
		return nil, errZero
	}
	b := []byte(g.version.String())
	for _, m := range g.members {
		b = append(b, '\n')
		b = append(b, m.controller...)
		b = append(b, ' ')
		b = append(b, m.path...)
	}
	return b, nil
}

// UnmarshalText is the reverse of MarshalText and as strict as FromPaths.
func (g *Group) UnmarshalText(text []byte) error {
	head, rest, _ := strings.Cut(string(text), "\n")
	paths := make(map[string]string)
	for line := range strings.SplitSeq(rest, "\n") {
		c, p, ok := strings.Cut(line, " ")
		if _, twice := paths[c]; !ok || twice {
			return fmt.Errorf("%w: line %q", ErrBadPath, line)
		}
		paths[c] = p
	}
	n, err := FromPaths(paths)
	if err != nil {
		return err
	}
	if n.version.String() != head {
		return fmt.Errorf("%w: paths of %s under %q", ErrBadPath, n.version, head)
	}
	*g = n
	return nil
}

// path is the folder for one controller.
func (g Group) path(controller string) (string, bool) {
	for _, m := range g.members {
		if m.controller == controller {
			return m.path, true
		}
	}
	return "", false
}

// dirs is every folder once (controllers that are mounted together share one), the freezer's
// first, since on v1 that is where membership is settled.
func (g Group) dirs() []string {
	dirs := make([]string, 0, len(g.members))
	if p, ok := g.path("freezer"); ok {
		dirs = append(dirs, p)
	}
	for _, m := range g.members {
		if !slices.Contains(dirs, m.path) {
			dirs = append(dirs, m.path)
		}
	}
	return dirs
}
