// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"maps"
)

// SliceCounts are the OOM kills of a pod's slice and of the scopes in it, at one moment or, as a
// base, as far as they have been explained. It is for the systemd driver on v2, where a
// container's scope is removed by systemd as soon as it is empty, so that its own counter mostly
// cannot be read when its end is seen; the slice stays, and its counter is hierarchical.
//
// The keeper of a pod does this, under the pod's lock:
//
//	start of a pod          base = ReadSlice(slice)
//	start of a container    nothing: what base does not name began at 0
//	end of container x      now = ReadSlice(slice); kills, sure = base.Attribute(now, x, alsoEnded…)
//	                        if !sure: ask the kernel log who was killed, by pid
//	                        base = base.Settle(x, kills)
type SliceCounts struct {
	// Slice is oom_kill of the slice's memory.events: everything that is or was below it. In a
	// base: what was already put down to somebody who has ended, or that was there at first.
	Slice uint64 `json:"slice"`
	// Scopes has, by folder name, oom_kill of each group in the slice that existed.
	Scopes map[string]uint64 `json:"scopes,omitempty"`
}

// Attribute says how many OOM kills there were in a container that has ended since base, given
// what is counted now.
//
// If its scope can still be read, that is the answer. Else it is what the slice counts beyond
// the base, less what the scopes that are still there count beyond it: living siblings explain
// their own kills, those that ended are only explained by others' absence. So sure is false if
// something is left to explain and there is more than one to whom it could belong: alsoEnded
// names the other containers of the pod that may have ended by now and are not settled. Then
// kills is what they share.
//
// A kill is counted before its signal is sent (__oom_kill_process), so by the time that an end
// can be seen it is in the count.
func (base SliceCounts) Attribute(now SliceCounts, scope string, alsoEnded ...string) (kills uint64, sure bool) {
	if n, ok := now.Scopes[scope]; ok {
		return subSat(n, base.Scopes[scope]), true
	}
	rest := subSat(now.Slice, base.Slice)
	for name, n := range now.Scopes {
		rest = subSat(rest, subSat(n, base.Scopes[name]))
	}
	if rest == 0 {
		return 0, true
	}
	for _, other := range alsoEnded {
		if _, there := now.Scopes[other]; !there && other != scope {
			return rest, false
		}
	}
	return rest, true
}

// Settle gives the base for the next container: kills are put down to scope, which has ended.
func (base SliceCounts) Settle(scope string, kills uint64) SliceCounts {
	next := SliceCounts{Slice: base.Slice + kills, Scopes: maps.Clone(base.Scopes)}
	delete(next.Scopes, scope)
	return next
}

// sliceTries bounds how often ReadSlice looks for two equal readings.
const sliceTries = 16

// ReadSlice reads the counters of a pod's slice and of every group directly in it. It reads
// until two readings in a row are equal, for a kill between the reading of a sibling and that of
// the slice would be put down to the wrong one.
//
// errors.ErrUnsupported on v1, whose counters are not hierarchical. ErrGone if the slice is gone,
// ErrNoController if it has no memory controller.
func ReadSlice(slice Group) (SliceCounts, error) {
	switch slice.version {
	case V1:
		return SliceCounts{}, fmt.Errorf("OOM kills of a slice on cgroup v1: %w", errors.ErrUnsupported)
	case V2:
	default:
		return SliceCounts{}, errZero
	}
	dir := slice.members[0].path
	last, err := readSlice(dir)
	for range sliceTries {
		if err != nil {
			return SliceCounts{}, err
		}
		var next SliceCounts
		if next, err = readSlice(dir); err == nil && next.Slice == last.Slice && maps.Equal(next.Scopes, last.Scopes) {
			return next, nil
		}
		last = next
	}
	// Someone is killed all the time: the latest is as good as any.
	return last, err
}

func readSlice(dir string) (SliceCounts, error) {
	total, err := readCounter(dir, "memory.events")
	if err != nil {
		return SliceCounts{}, err
	}
	names, err := childDirs(dir)
	if err != nil {
		return SliceCounts{}, err
	}
	c := SliceCounts{Slice: total, Scopes: make(map[string]uint64, len(names))}
	for _, name := range names {
		n, err := readCounter(dir+"/"+name, "memory.events")
		switch {
		case errors.Is(err, ErrGone), errors.Is(err, ErrNoController):
			continue // the one has ended, the other is charged to the slice itself
		case err != nil:
			return SliceCounts{}, err
		}
		c.Scopes[name] = n
	}
	return c, nil
}
