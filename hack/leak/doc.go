// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package leak finds what a test has left behind on the machine.
//
// It is the one leak checker of the project: a test calls [Check] before anything else, and when the
// test and its other clean-ups have ended, each thing that is new and the test's own is reported by
// name. A TestMain calls [Main] for the whole binary; a program that promises to leave nothing calls
// [Take] and [Snapshot.Settle].
//
// # Whose thing is it
//
// Other programs run on the same machine, and other tests beside this one. So a thing is reported
// only if it did not exist when the snapshot was taken, and one of these is true:
//
//	process     it descends from the test process or from a process that the options name; or its
//	            executable or one of its arguments lies under a folder of Under, or it is in a
//	            cgroup of Cgroups. Pid and start time identify it; zombies count
//	mount       it stands at or below a folder of Under or Mounts, or is made of one (a bind mount
//	            of a folder below, an overlay with a layer below). The mount namespaces of the test
//	            process and of pid 1 are read
//	netns       its pin matches a pattern of NetNS
//	cgroup      its path matches a pattern of Cgroups, in any hierarchy of v1 or v2
//	link        its name matches a pattern of Links, in the network namespace of the calling thread
//	rule        the line of iptables-save contains a word of Iptables
//	file        it lies below a folder of Files
//	goroutine,  always the test's own, looked at only where the test asks, because a package that
//	descriptor  keeps workers between tests is not at fault
//
// The package reads and compares. It never signals, unmounts or removes anything: a checker that
// tidies up hides the fault that it should show.
//
// # Waiting
//
// The kernel takes things down after the call that asks for it has returned: a network namespace and
// its veths go from a work queue, a cgroup can be removed only when its last process has been reaped,
// a killed process is there until then. No single event says that all of it has ended, so [Snapshot.Settle] looks
// again at growing distances (1 to 50 ms) until nothing is left or the grace period has passed. A
// clean test therefore never waits, and a leaking one waits once.
//
// Tests that run in parallel within one process see each other's children: do not mix Check and
// t.Parallel.
package leak
