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
// # Locks
//
// In this order: an object's op (held over a whole operation, as a state in
// passing, not as a mutex), Runtime.mu, an object's mu. An object's mu may be held
// over a commit of the store and over nothing else that waits; lists and statuses
// never take it.
package sandbox
