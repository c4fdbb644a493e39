// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"fmt"
	"sync"

	"github.com/berth-cri/berth/oci/wire"
)

// container is what the executor keeps in memory for one: a few hundred bytes.
// libcontainer's own object is loaded for each operation that needs one.
type container struct {
	id string

	// op is held by create, start, update and delete, over their whole work. What
	// must never wait for them (signal, kill all, exits, logs) does not take it.
	op sync.Mutex

	keep sync.Mutex // held over what the keeper is told of this container, until it has answered
	// the keeper was told to hold it no more
	letGo bool // +checklocks:keep

	mu    sync.Mutex
	rec   record     // +checklocks:mu
	state wire.State // +checklocks:mu
	// -1: none, or the process was waited for
	pidfd int // +checklocks:mu
	// of the poller, for pidfd
	token int32 // +checklocks:mu
	// a pipe's write end or a terminal's master; -1: none
	stdin int // +checklocks:mu
	// stdout and stderr as the keeper holds them; the tail's to close
	out [2]int // +checklocks:mu
	// name in the keeper; "": not held
	held string     // +checklocks:mu
	exit *wire.Exit // +checklocks:mu
	// the exit was acknowledged
	acked bool                 // +checklocks:mu
	execs map[string]*execProc // +checklocks:mu

	settled chan struct{} // closed when it was made by this executor, or taken over as far as that can be done at once

	made   chan struct{} // closed when create has come to its end, whichever
	tail   *tail         // set once, before the container is seen by others
	exited chan struct{} // closed when exit is set
	over   chan struct{} // closed when all that follows an exit is done
}

// execProc is an exec'd process.
type execProc struct {
	c   *container
	rec execRecord // not changed once the process runs

	// lost says that it was being started when its executor died: it may have run, and
	// does so no more.
	lost bool

	keep sync.Mutex // held over what the keeper is told of it, until it has answered
	held bool       // +checklocks:keep
	// the keeper was told to hold it no more
	letGo bool // +checklocks:keep

	mu sync.Mutex
	// -1: not yet, or waited for
	pidfd int        // +checklocks:mu
	token int32      // +checklocks:mu
	exit  *wire.Exit // +checklocks:mu

	exited chan struct{} // closed when exit is set
}

func newContainer(id string) *container {
	return &container{
		id: id, state: wire.Creating, pidfd: -1, stdin: -1, out: [2]int{-1, -1},
		settled: make(chan struct{}), made: make(chan struct{}), execs: make(map[string]*execProc), exited: make(chan struct{}), over: make(chan struct{}),
	}
}

func (c *container) snapshot() wire.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.Container{
		ID: c.id, Pod: c.rec.Pod, State: c.state, Process: c.rec.Process,
		Cgroup: c.rec.Cgroup, Exit: c.exit,
	}
}

// find returns the container id. One that was taken over, and for which there is
// still something to be done, is waited for: others are not.
func (x *Executor) find(ctx context.Context, id string) (*container, error) {
	for {
		x.mu.Lock()
		c, u := x.containers[id], x.unread[id]
		x.mu.Unlock()
		if u != nil {
			return nil, u.refuse(wire.BadState, "it can only be deleted")
		}
		if c == nil {
			return nil, notFound("container", id)
		}
		if c.isSettled() {
			return c, nil
		}
		select {
		case <-c.settled: // and it may be gone
		case <-ctx.Done():
			return nil, fmt.Errorf("container %s is being taken over: %w", id, ctx.Err())
		}
	}
}

func (c *container) isSettled() bool {
	select {
	case <-c.settled:
		return true
	default:
		return false
	}
}

// isKnown says whether c has not been deleted. Another may have its id.
func (x *Executor) isKnown(c *container) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.containers[c.id] == c
}

// all returns the containers, in no order.
func (x *Executor) all() []*container {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := make([]*container, 0, len(x.containers))
	for _, c := range x.containers {
		list = append(list, c)
	}
	return list
}
