// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// OOMKills counts the processes of the group, and of groups below it, that the OOM killer ended,
// for whatever limit: the group's own, the pod's, or the machine's memory. It is the count to ask
// for "was this container OOM killed": read it after the container's end and before its folder is
// removed, and with a failure for an exit code (a child that is killed need not end the container).
//
//   - v2: oom_kill of memory.events, which counts the subtree.
//   - v1: oom_kill of memory.oom_control (Linux 4.13), which counts one folder, summed over the
//     group and what is below it.
//
// Why the subtree, and not memory.events.local: a container with an init system in it enables
// the memory controller for groups of its own, and on v2 may then have no process in its own
// folder. When the container's limit kills all of it (memory.oom.group, which the kubelet sets)
// every victim counts in one of the inner folders, and the local count stays 0. For a container
// without inner memory groups, execs in a Sub included, the two are the same.
//
// ErrGone if the group is gone, ErrNoController if it has no memory controller.
//
// With the systemd driver systemd removes the scope as soon as it is empty, mostly before this
// can be read: see ReadSlice.
func (g Group) OOMKills() (uint64, error) {
	if g.version != V1 {
		return g.oomKills("memory.events")
	}
	total, err := g.oomKills("memory.oom_control")
	if err != nil {
		return 0, err
	}
	dir, _ := g.path("memory")
	dirs, err := walk(dir)
	if err != nil || len(dirs) < 2 {
		return total, err
	}
	for _, d := range dirs[1:] {
		n, err := readCounter(d, "memory.oom_control")
		if err != nil && !errors.Is(err, ErrGone) {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// OOMKillsLocal counts the victims in the group's own folder only: memory.events.local (Linux
// 5.2) on v2, memory.oom_control on v1. Errors as for OOMKills.
func (g Group) OOMKillsLocal() (uint64, error) {
	if g.version == V1 {
		return g.oomKills("memory.oom_control")
	}
	return g.oomKills("memory.events.local")
}

func (g Group) oomKills(file string) (uint64, error) {
	key := ""
	switch g.version {
	case V1:
		key = "memory"
	case V2:
	default:
		return 0, errZero
	}
	dir, ok := g.path(key)
	if !ok {
		return 0, fmt.Errorf("%s: %w: memory", g, ErrNoController)
	}
	return readCounter(dir, file)
}

// readCounter reads oom_kill out of a file in dir. ErrGone if dir is gone, ErrNoController if
// only the file, or the line, is not there.
func readCounter(dir, file string) (uint64, error) {
	var buf [256]byte
	path := dir + "/" + file
	text, err := readFile(path, buf[:])
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT) && !exists(dir):
		return 0, fmt.Errorf("%s: %w", dir, ErrGone)
	case errors.Is(err, unix.ENOENT):
		return 0, fmt.Errorf("%s: %w: memory", dir, ErrNoController)
	case err != nil:
		return 0, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	n, ok := lookup(text, "oom_kill")
	if !ok {
		return 0, fmt.Errorf("%s has no oom_kill: %w", path, errors.ErrUnsupported)
	}
	return n, nil
}
