// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package executor is the process that runs containers: their parent, and the
// only code that links libcontainer. There is one for the node. It serves
// requests of berth (package oci/wire) and is itself a child of the keeper
// (package oci/keeper).
//
// # Any moment may be its last
//
// SIGKILL, a crash, and the replacement by a newer binary are one and the same:
// the keeper starts the next executor, hands it all descriptors, and the next one
// takes over. Everything here is written for that:
//
//	what                          outlives the executor by
//	a container's process         being reparented to the keeper (a subreaper)
//	how it ended                  its zombie, then the keeper's exit file, then ours
//	stdout, stderr                FIFOs: held by the keeper, and open for reading in
//	                              the container itself, so the pipe never breaks
//	bytes on their way to a log   the pump's journal (journal.go)
//	where a log stands            its tail file (tailfile.go)
//	stdin, a terminal's master    the keeper
//	what is to be taken back      the record, written before anything is done
//
// # Invariants
//
//   - A record is written before what it tells of is done, and removed after it
//     was taken back; destroy succeeds whether a step was done or not.
//   - An exit is durable before anybody is told of it and before the process is
//     reaped; it is told again until it is acknowledged.
//   - Room for an exit is reserved before its process starts: a full state folder
//     refuses what would begin, and hides no end.
//   - An exec is run at most once. One that was being started when its executor died is
//     lost: it is ended, its exit says so, and so is whoever asks for it again told.
//   - A container at rest costs no goroutine, no thread and no object of
//     libcontainer: one epoll waits for all pidfds and pipes.
//   - No lock is held over a system call that may wait for a container, a file
//     system or the keeper, but those that are named below.
//   - A file system that does not answer costs a thread for each of the few visits
//     that hang in it (pump.go), and delays only what is on it: neither other logs,
//     nor the exit, the kill or the delete of a container whose log is there.
//   - A takeover waits for no container before it serves, and for each log that it has
//     to look for no more than findTime. What fails of it for one container is tried
//     again until it is done; its process is watched before all else.
//   - wait4(-1) is never called: libcontainer waits for children of its own. Those
//     that it forgets when a start fails are reaped one by one (stray.go).
//   - A descriptor that the keeper holds stays open here, under its number, until
//     the keeper has let go of it (see keeper.Client.Become).
//
// # Locks
//
// In this order: container.op, pod.op or unread.op, then the turn of a tail with
// tail.io, then tail.telling, then container.keep or execProc.keep, then Executor.mu
// or container.mu, then execProc.mu, then tail.mu, then those in which nothing else
// is taken: watcher.mu, sink.mu, pump.mu, poller.mu, gate.mu, starts.mu. Only a pod
// that nobody else has seen yet is locked under Executor.mu.
//
// These are held over what may take long:
//
//	container.op   create, start, update, delete. Nobody takes it to signal, kill, log,
//	               or note an end, but a takeover for an end that nobody has seen; what
//	               is left of a log that hung takes it at its end.
//	pod.op         while a pod is made or taken back, and while the end of its pause
//	               process is dealt with.
//	unread.op      while a container is taken back whose record cannot be read.
//	a tail's turn  over writes to the log, and the waiting for a journal. It is waited
//	               for with a deadline, or by a goroutine that nobody waits for.
//	tail.telling   until the keeper has answered which descriptors of a log it holds.
//	keep           of a container or an exec'd process, until the keeper has answered
//	               that it holds it, or holds it no more. Nobody takes it to signal,
//	               kill, log, or tell of an end.
//
// So a journal is taken by one who has the turn of its container, and no other
// lock; and whoever has a journal waits for nobody but the log's file system.
package executor
