// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrGone is returned where a number was asked of a group whose folder no longer exists.
	ErrGone = errors.New("cgroup is gone")
	// ErrRoot refuses the root of a hierarchy.
	ErrRoot = errors.New("cgroup is the root of a hierarchy")
	// ErrSelf refuses to kill a group that the calling process is in.
	ErrSelf = errors.New("cgroup holds the calling process")
	// ErrNotMounted is returned where no cgroup file system is found.
	ErrNotMounted = errors.New("no cgroup file system")
	// ErrNoController is returned where the file asked for belongs to a controller that the group lacks.
	ErrNoController = errors.New("controller is not enabled for the cgroup")
	// ErrThreaded is returned by Sub.Create below a group that was made a threaded domain, where no
	// process can join, and by Kill of a threaded group, which has threads but no processes.
	ErrThreaded = errors.New("cgroup is threaded")
	// ErrBadPath refuses a path or name that is empty, relative, climbs, or that the kernel could not show.
	ErrBadPath = errors.New("bad cgroup path")
	// ErrDriver refuses a cgroup_parent that is written for the other cgroup driver.
	ErrDriver = errors.New("cgroup_parent and cgroup driver do not match")

	errZero = errors.New("cgroup: the zero Group")
)

// Process is one process that would not go.
type Process struct {
	PID  int    // in the caller's PID namespace; 0 if it is not visible there
	Comm string // empty if the process ended while it was looked at
	// State is the letter of /proc/PID/stat: R, S, D (uninterruptible, or frozen on v1), Z, T, t, I;
	// 0 if unknown.
	State byte
}

// String gives "12 sh (D)".
func (p Process) String() string {
	if p.State == 0 {
		return fmt.Sprintf("%d", p.PID)
	}
	return fmt.Sprintf("%d %s (%c)", p.PID, p.Comm, p.State)
}

// RemainError says which processes were still in a group when the time was up.
type RemainError struct {
	Group     string    // as Group.String gives it
	Processes []Process // at most 64 of them
	// Frozen says that an ancestor of the group is frozen (v1 only): nothing in the group can end
	// before whoever froze that ancestor thaws it.
	Frozen bool
	Err    error // why the waiting ended: the context's error
}

// maxRemain bounds RemainError.Processes, maxNamed how many of them the message names.
const (
	maxRemain = 64
	maxNamed  = 8
)

// Error names the first few processes.
func (e *RemainError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cgroup %s: %d processes remain", e.Group, len(e.Processes))
	for i, p := range e.Processes {
		if i == maxNamed {
			b.WriteString(", …")
			break
		}
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		b.WriteString(sep + p.String())
	}
	if e.Frozen {
		b.WriteString("; an ancestor is frozen")
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the context's error.
func (e *RemainError) Unwrap() error { return e.Err }
