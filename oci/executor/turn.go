// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"sync/atomic"
	"time"
)

// turn is a lock for which one can wait with a deadline. It is held over what may
// take as long as a file system likes. Who waits gets it in the order of asking.
type turn struct {
	c      chan struct{} // of capacity 1, full while somebody has the turn
	wanted atomic.Int32  // so many wait
}

func newTurn() turn { return turn{c: make(chan struct{}, 1)} }

func (t *turn) take() {
	t.wanted.Add(1)
	t.c <- struct{}{}
	t.wanted.Add(-1)
}

func (t *turn) takeWithin(d time.Duration) bool {
	select {
	case t.c <- struct{}{}:
		return true
	default:
	}
	t.wanted.Add(1)
	defer t.wanted.Add(-1)
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	select {
	case t.c <- struct{}{}:
		return true
	case <-deadline.C:
		return false
	}
}

func (t *turn) give() { <-t.c }
