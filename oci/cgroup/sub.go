// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// subPrefix starts the name of every exec's group, so that nobody takes one for a container's.
const subPrefix = "exec-"

// Sub is an exec's own group below a container's, so that the whole tree of an exec can be
// killed, and nothing else. On v2 it is a child folder in which no controllers are enabled: its
// processes stay charged to the container, and the limits hold. On v1 it is a child in the
// freezer hierarchy only, where nothing is charged; elsewhere the exec is in the container's
// own groups.
//
// An exec gets a fresh one, removed after it: see the package's invariant on groups that were killed.
//
// Kill, Empty and Remove are Group's.
type Sub struct {
	Group
	name string
}

// Sub names a group below a container's; Create makes it. ErrBadPath for a name that does not
// start with "exec-" or that is not one plain folder name; ErrNoController on v1 without a freezer.
func (g Group) Sub(name string) (Sub, error) {
	rest, ok := strings.CutPrefix(name, subPrefix)
	if !ok || !isName(rest) || !isName(name) {
		return Sub{}, fmt.Errorf("%w: exec group %q", ErrBadPath, name)
	}
	key := ""
	switch g.version {
	case V1:
		key = "freezer"
	case V2:
	default:
		return Sub{}, errZero
	}
	dir, ok := g.path(key)
	if !ok {
		return Sub{}, fmt.Errorf("%s: %w: freezer", g, ErrNoController)
	}
	return Sub{newGroup(g.version, []member{{key, dir + "/" + name}}), name}, nil
}

// Create makes the group. fs.ErrExist if it is there: one that was used before is never used
// again. ErrGone if the container's group is gone. ErrThreaded if the container enabled a
// threaded controller in its own group: then the exec can only run in the container's group.
func (s Sub) Create() error {
	if s.version == 0 {
		return errZero
	}
	dir := s.members[0].path
	switch err := os.Mkdir(dir, 0o755); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", ErrGone, err)
	case err != nil:
		return err
	}
	if s.version == V1 {
		return nil
	}
	// The type of a child below a threaded domain is "domain invalid", and joining it fails
	// with EOPNOTSUPP. Found out here, the exec has not begun yet.
	var buf [32]byte
	kind, err := readFile(dir+"/cgroup.type", buf[:])
	if err == nil && string(kind) != "domain\n" {
		err = fmt.Errorf("%s: %w", dir, ErrThreaded)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the file is there since Linux 4.14
		return errors.Join(err, os.Remove(dir))
	}
	return nil
}

// SubCgroupPaths is the field of that name in libcontainer's Process.
func (s Sub) SubCgroupPaths() map[string]string {
	if s.version == V1 {
		return map[string]string{"freezer": s.name}
	}
	return map[string]string{"": s.name}
}
