// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sandbox is the life of pods and containers: which states they have,
// what is done in each step from one to the next, and how all of it is taken back
// or taken up again after a crash at any point.
//
// # States
//
// One function and one table for each kind ([PodState.Next], [ContainerState.Next])
// decide every change. A state in passing is a state: it is stored, shown by our
// own tools, and keeps other operations out, so that no lock is held while a
// container takes half a minute to stop.
//
//	pod                                         container
//
//	            fell                                        fell
//	 creating --------> failed                   creating --------> failed
//	    | climbed        |  |                       | climbed          |
//	    v                |  |                       v                  |
//	  ready              |  |                    created ----------.   |
//	    | stop           |  |                       | start        |   |
//	    v       stop     |  |                       v              |   |
//	 stopping <----------'  |                    starting ------.  |   |
//	    | stopped           |                       | started   |  |   |
//	    v                   |                       v      exited  |   |
//	 notready <-. stop      |                    running --------. |   |
//	    |       '-stopping  |                       | stop      v v|   |
//	    | remove            | remove                v        .-> exited |
//	    v                   v                    stopping ---'   |     |
//	 removing <-------------'                           exited   |     |
//	    | gone                                             remove|     |
//	    v                                                        v     |
//	   (nothing)                                 (nothing) <- removing <'
//
// # Steps
//
// Whatever must be taken back one day is a step (steps.go): it is entered in the
// object's ledger before it is done, and it leaves the ledger after it was undone.
// A failed creation, a stop, a removal and the recovery from a crash all call the
// same unwind, so every crash point has the same answer. TestCrashAnywhere stops
// at each of them, and again at each of them during the recovery.
//
// # One home for each fact
//
//	live.db, the ledger     which steps were entered; the progress of the object: its state
//	                        and what goes with it, written before anybody is told
//	berth.db, the record    the same for after a reboot, written a little later; of what has
//	                        to be given back after one, the attachment, before it is made
//	executor                what runs, and how it ended until that is recorded
//	memory                  objects (object.go): what is under way, and nothing else
//
// So kill -9 loses nothing that somebody was told of, and of two records the one that
// is further on counts (recover.go). After a reboot, or where live.db is gone, an
// object gets a ledger with all steps: what may be left of it is taken back.
//
// # Where to find it
//
//	run.go create.go start.go stop.go remove.go   one verb each, of pods and containers
//	pod.go container.go                           their steps
//	exit.go                                       the end of a process
//	recover.go settle.go                          after a crash: a table says what becomes of each
//	retry.go                                      what could not be taken back is tried again
//	exec.go update.go stats.go list.go info.go    what else is asked
//	paths.go                                      paths of the host, any of which may hang
//	feed.go                                       events, after what they tell of was recorded
//
// # Locks
//
// An object has one operation at a time (operation.go): a state in passing and not a
// mutex, so nobody waits with a lock in hand while a container takes half a minute to
// stop. An object's mu orders changes of its record, since an exit comes whenever it
// does, and is held over writes to live.db, which is in memory, and once over the disk,
// when that is full. Runtime.mu guards the maps of objects and is held over nothing. No
// lock is taken while another is held but for the store's. Lists and statuses take none
// of an object's.
package sandbox
