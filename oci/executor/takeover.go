// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"io/fs"
	"time"

	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/wire"
)

const (
	// settlers is how many containers are settled at a time after a takeover. One may
	// take killTime, and most take microseconds.
	settlers = 8

	// insistMost bounds the wait between two attempts at what a takeover could not do.
	insistMost = 5 * time.Second
)

// takeover is what is still to be done for one container or pod of an executor that
// has died. Its steps do not depend on one another: one that fails is tried again,
// until it is done, and the others are not held up by it.
type takeover struct {
	what, id string
	steps    []func() error // each may be called again after it has failed
	slow     bool           // a step may wait for processes to end
	settled  chan struct{}  // closed after the first attempt
	told     bool           // that it failed
}

// attempt does the steps that are left and says whether none is.
func (t *takeover) attempt(x *Executor) bool {
	var left []func() error
	var errs []error
	for _, step := range t.steps {
		if err := x.guarded(t, step); err != nil {
			left, errs = append(left, step), append(errs, err)
		}
	}
	t.steps = left
	switch {
	case len(left) > 0 && !t.told:
		t.told = true
		klog.ErrorS(errors.Join(errs...), "not taken over completely; it is tried again until it is", t.what, t.id)
	case len(left) == 0 && t.told:
		klog.InfoS("taken over at last", t.what, t.id)
	}
	return len(left) == 0
}

// guarded makes a panic of a step its error: the others are not to blame.
func (x *Executor) guarded(t *takeover, step func() error) (err error) {
	defer x.recoverTo("takeover of "+t.what+" "+t.id, func(text string) {
		err = &wire.Error{Code: wire.Crashed, Message: text}
	})
	return step()
}

// settleAll makes the first attempt at each, several at a time, and then goes on
// with what has failed. Requests for others are served meanwhile.
func (x *Executor) settleAll(list []*takeover) {
	queue := make(chan *takeover, len(list))
	for _, slow := range []bool{false, true} { // so that the slow ones keep nobody waiting but each other
		for _, t := range list {
			if t.slow == slow {
				queue <- t
			}
		}
	}
	close(queue)
	for range min(settlers, len(list)) {
		go func() {
			for t := range queue {
				done := t.attempt(x)
				close(t.settled)
				if !done {
					go x.insist(t)
				}
			}
		}()
	}
}

// insist tries what is left of a takeover until it is done.
func (x *Executor) insist(t *takeover) {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, insistMost) {
		time.Sleep(wait) //nolint:forbidigo // there is no event for memory or room that is free again
		if t.attempt(x) {
			return
		}
	}
}

// takeOver is what there is to do for an adopted container. Its process is watched
// first: whatever else fails, its end is seen.
//
// Preconditions: c is not yet shared.
func (x *Executor) takeOver(c *container) *takeover {
	t := &takeover{what: "container", id: c.id, settled: c.settled}
	switch {
	case c.state == wire.Creating:
		t.slow = true
		t.add(func() error { return x.takeBack(c) })
	case c.exit != nil:
		x.atOnce(t, c.tail.start)
		t.add(func() error {
			go x.afterEnd(c) // whatever of it was done before
			return nil
		})
	case c.pidfd < 0:
		x.atOnce(t, c.tail.start)
		t.add(func() error { return x.endedUnseen(c) })
	default:
		x.atOnce(t, func() error { return x.watchProcess(c) })
		x.atOnce(t, c.tail.start)
		if c.held == "" {
			t.add(func() error { return x.holdAgain(c) })
		}
	}
	return t
}

// takeOverExec adds what there is to do for an exec'd process.
//
// Preconditions: e is not yet shared.
func (x *Executor) takeOverExec(t *takeover, e *execProc) {
	switch {
	case e.pidfd >= 0:
		x.atOnce(t, func() error { return x.watchExec(e) })
		if !e.held {
			t.add(func() error { return x.holdExec(e) })
		}
	case e.exit == nil:
		t.add(func() error { return x.execEndedUnseen(e) })
	}
}

func (t *takeover) add(step func() error) { t.steps = append(t.steps, step) }

// atOnce does a step that waits for nothing, and leaves it for later if it fails.
func (x *Executor) atOnce(t *takeover, step func() error) {
	if err := x.guarded(t, step); err != nil {
		t.add(step)
	}
}

// takeBack undoes a create that was under way.
func (x *Executor) takeBack(c *container) error {
	c.op.Lock()
	defer c.op.Unlock()
	if !x.isKnown(c) {
		return nil // deleted meanwhile
	}
	klog.InfoS("an unfinished create is taken back", "container", c.id)
	return x.destroy(c)
}

// endedUnseen notes the end of a container that ended while nobody was there.
func (x *Executor) endedUnseen(c *container) error {
	c.op.Lock()
	defer c.op.Unlock()
	if !x.isKnown(c) {
		return nil // deleted meanwhile
	}
	exit := x.gone(c.rec.Process)
	exit.ID = c.id
	exit.OOMKilled = x.oomKilled(c, exit)
	if err := writeExit(x.files.exit(c.id, ""), exit); err != nil {
		return err
	}
	c.mu.Lock()
	c.exit, c.state = exit, wire.Exited
	close(c.exited)
	c.mu.Unlock()
	x.publish(exit)
	go x.afterEnd(c)
	return nil
}

// execEndedUnseen is endedUnseen for an exec'd process.
func (x *Executor) execEndedUnseen(e *execProc) error {
	exit := x.gone(e.rec.Process)
	exit.ID, exit.Exec = e.c.id, e.rec.Exec
	return x.noteExec(e, exit)
}

func (x *Executor) noteExec(e *execProc, exit *wire.Exit) error {
	err := writeExit(x.files.exit(e.c.id, e.rec.Exec), exit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // not there: its container was deleted meanwhile
		return err
	}
	e.mu.Lock()
	e.exit = exit
	close(e.exited)
	e.mu.Unlock()
	x.publish(exit)
	return nil
}

// holdAgain has the keeper hold a container of which it held nothing, unless that
// has ended meanwhile.
func (x *Executor) holdAgain(c *container) error {
	return c.tail.hold(func(log int) error {
		c.keep.Lock()
		defer c.keep.Unlock()
		c.mu.Lock()
		held, stdin := c.held, c.stdin
		c.mu.Unlock()
		if c.letGo {
			c.tail.released() // it was before it was held again
			return nil
		}
		if held != "" {
			return nil
		}
		if stdin >= 0 {
			if err := x.keeper.Put(stdinName(c.id), stdin); err != nil {
				return err
			}
		}
		return x.holdLocked(c, log)
	})
}

// holdExec has the keeper hold an exec'd process of which it held nothing.
func (x *Executor) holdExec(e *execProc) error {
	e.keep.Lock()
	defer e.keep.Unlock()
	if e.held || e.letGo {
		return nil
	}
	e.mu.Lock()
	pidfd := e.pidfd
	e.mu.Unlock()
	if err := x.keeper.Put(execName(e.rec), pidfd); err != nil {
		return err
	}
	e.held = true
	return nil
}
