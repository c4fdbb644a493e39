// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cgroup does everything about a container's or a pod's control groups but make and
// limit them (libcontainer does that, from a path that Driver gives): it names them, kills what
// is in them, waits for them to empty, counts OOM kills, reads statistics, gives an exec a group
// of its own, and removes them. It knows cgroup v1, where each controller has a hierarchy of its
// own (hybrid hosts count as v1), and v2, where there is one; it uses plain files only.
//
// # One group, one or many folders
//
//	v2  Group ── ""        /sys/fs/cgroup/kubepods/pod1/<id>
//	                            └─ exec-7             Sub: no controllers enabled
//	v1  Group ─┬ freezer   /sys/fs/cgroup/freezer/kubepods/pod1/<id>
//	           │                └─ exec-7             Sub: in this hierarchy only
//	           ├ memory    /sys/fs/cgroup/memory/kubepods/pod1/<id>
//	           ├ pids      …
//	           └ ""        /sys/fs/cgroup/unified/…   hybrid hosts
//
// # Invariants
//
//   - No process outside the group, and below it, is ever signalled. A process is signalled
//     through a pidfd that was opened between two readings of the group's member list, both of
//     which name its pid (see killProcs).
//   - The root of a hierarchy, and a group that holds the calling process, are refused: killing
//     the first ends the machine, freezing the second ends in a lock-up.
//   - A group that is already gone is a success for Kill, Empty and Remove, and ErrGone for
//     whoever reads a number from it.
//   - Kill and Remove may be called any number of times, and finish what a caller that died in
//     the middle began: a group left frozen is thawed by the next Kill.
//   - A group that was killed is removed and never used again. Linux 6.18 and later (and stable
//     branches that took the change) compare the kill counts of the caller's and of the
//     destination's cgroup in clone3(CLONE_INTO_CGROUP) and kill the child when they differ, so
//     every exec into such a group dies for as long as its folder exists. A pod's own cgroup,
//     which outlives its containers, is therefore for Stats and OOM counts, not for Kill.
//   - ctx ends the waiting. One round of work is done even when ctx has already ended.
//
// A Group is a value: it holds paths, no descriptors and no lock, and may be used by several
// goroutines at once.
package cgroup
