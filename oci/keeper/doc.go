// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package keeper is the parent of the executor: a process so small that it has
// nothing to crash with.
//
// It is C, run by a constructor before Go starts, when the binary's first
// argument is "keeper": one thread, half a megabyte. This package is both that
// C code and the executor's end of the conversation, [Client].
//
// # What it does, and nothing else
//
//   - It holds descriptors under names, so that they outlive the executor: pidfds,
//     the read ends of stdout and stderr, log files, the pump's pipes, the
//     listening socket, namespaces.
//   - It starts the executor, and starts it again when it ends, and hands it
//     everything it holds. One that was asked for by "exe", and has not put its own
//     binary under "exe" after 15 s, which says that it serves, is killed, and the one
//     before it is started.
//   - It is the subreaper: containers whose parent, the executor, has died become
//     its children. It waits for them and writes the exit file of each that has a
//     name ending in "/PID-START", before it reaps it. A file that cannot be
//     written leaves the zombie in place: it is the only copy of the exit status.
//   - It replaces itself by execve, which keeps its pid and so its children.
//   - At its first start it joins a cgroup of its own, whose cgroup.procs files it
//     is given as descriptors (BERTH_KEEPER_JOIN says how many, from 3 on): a
//     starter's cgroup may be killed as a whole.
//   - SIGTERM, and the message "quit", end the executor and then the keeper; the
//     containers are left alone.
//
// # When it dies
//
// The executor is the parent of the containers it started and holds every
// descriptor that the keeper held. A new keeper process would be no ancestor of
// those containers, so the executor itself becomes the keeper, by execve in
// place ([Client.Become]), and starts a new executor.
//
//	       keeper -----------starts----------> executor ---> containers
//	          |  SIGKILL                          |  SIGKILL
//	          v                                   v
//	(executor execs the keeper's image)   keeper adopts the containers,
//	keeper -----> new executor            starts a new executor, sends
//	   \--------> containers              "have" for each name, then "go"
//
// # The protocol
//
// SOCK_SEQPACKET on descriptor 3 of the executor; one packet, one message, text:
//
//	executor                         keeper
//	   | <--- have NAME + fds -------- |   for each name, at the start
//	   | <--- go --------------------- |
//	   | ---- put NAME + fds --------> |   replaces what the name held
//	   | <--- ok NAME ---------------- |   (or: no NAME, for want of memory)
//	   | ---- del NAME --------------> |
//	   | <--- gone ------------------- |   in the order of the dels
//	   | ---- exe PATH --------------> |   what to start as the next executor
//	   | ---- replace PATH ----------> |   become this keeper binary
//	   | ---- quit ------------------> |
//
// # Invariants
//
//   - The keeper never blocks but in poll: it sends without waiting, and what has
//     no room is sent when there is some. Exit files, not messages, are the truth.
//   - It reads all that the executor has sent before it reaps: a name that was
//     put before the executor died counts for its orphans.
//   - A descriptor under a name stays open in the executor, under the same number,
//     until the name is put anew or deleted; [Client.Become] relies on it.
//   - There is one keeper for a state folder: flock on keeper.lock. Who cannot have it
//     ends, and says who has it; an executor that becomes the keeper waits for 5 s.
//   - A "no" is the only answer that the keeper has no memory to remember: until it is
//     sent nothing more is read.
package keeper
