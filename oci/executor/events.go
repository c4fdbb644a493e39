// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"sync"

	"github.com/berth-cri/berth/oci/wire"
)

// watcher is one connection's wish to be told of exits.
type watcher struct {
	mu    sync.Mutex
	queue []*wire.Exit // +checklocks:mu
	wake  chan struct{}
}

func (w *watcher) push(e *wire.Exit) {
	w.mu.Lock()
	w.queue = append(w.queue, e)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default: // already awake
	}
}

func (w *watcher) take() []*wire.Exit {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queue
	w.queue = nil
	return q
}

// publish tells everybody who watches. The exit file is there by now: who is not
// watching will be told when it does.
func (x *Executor) publish(e *wire.Exit) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for w := range x.watchers {
		w.push(e)
	}
}

// events sends every exit that is not acknowledged, and then each new one, until
// ctx ends. One may come twice, if it happens in between; none is left out.
func (x *Executor) events(ctx context.Context, send func(*wire.Exit) error) error {
	w := &watcher{wake: make(chan struct{}, 1)}
	x.mu.Lock()
	x.watchers[w] = true // before the replay
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		delete(x.watchers, w)
		x.mu.Unlock()
	}()
	for _, c := range x.all() {
		c.mu.Lock()
		if c.exit != nil && !c.acked {
			w.push(c.exit)
		}
		for _, e := range c.execs {
			e.mu.Lock()
			if e.exit != nil {
				w.push(e.exit)
			}
			e.mu.Unlock()
		}
		c.mu.Unlock()
	}
	for {
		for _, e := range w.take() {
			if err := send(e); err != nil {
				return err
			}
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ack forgets an exit. For an exec'd process that is all there is to forget; a
// container stays until it is deleted. An unknown one is no error.
func (x *Executor) ack(ctx context.Context, a *wire.Ack) error {
	c, err := x.find(ctx, a.ID)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		return nil //nolint:nilerr // deleted: nothing will be told again
	}
	if a.Exec == "" {
		c.mu.Lock()
		due := c.exit != nil && !c.acked
		c.acked = c.acked || due
		c.mu.Unlock()
		if !due {
			return nil
		}
		return write(x.files.in(c.id, "acked"), true)
	}
	c.mu.Lock()
	e := c.execs[a.Exec]
	c.mu.Unlock()
	if e == nil {
		return nil
	}
	e.mu.Lock()
	done := e.exit != nil
	e.mu.Unlock()
	if !done {
		return nil
	}
	if err := remove(x.files.exec(c.id, a.Exec)); err != nil {
		return err
	}
	if err := remove(x.files.exit(c.id, a.Exec)); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.execs, a.Exec)
	c.mu.Unlock()
	return nil
}
