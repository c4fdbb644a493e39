// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/berth-cri/berth/store"
)

// ErrSlow ends a subscription whose reader does not keep up.
var ErrSlow = errors.New("events were not read in time")

// EventKind says what has happened to a pod or a container (CRI, ContainerEventType).
type EventKind int

// The kinds of events.
const (
	EventCreated EventKind = iota
	EventStarted
	EventStopped
	EventDeleted
)

// Event tells of a change, after it was recorded. Who reads it looks up the state,
// which may have gone on meanwhile.
type Event struct {
	Kind      EventKind
	Pod       store.PodID
	Container store.ContainerID // "" for the pod itself
	At        time.Time
}

// feedDepth is how far a reader of events may fall behind.
const feedDepth = 4096

// feed hands events to all who have subscribed.
type feed struct {
	mu     sync.Mutex
	subs   map[chan Event]bool // +checklocks:mu
	closed bool                // +checklocks:mu
}

func (f *feed) send(e Event) {
	e.At = time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.subs {
		select {
		case ch <- e:
		default: // nobody waits for a slow reader
			delete(f.subs, ch)
			close(ch)
		}
	}
}

func (f *feed) pod(p *pod, k EventKind) { f.send(Event{Kind: k, Pod: p.id}) }

func (f *feed) container(c *container, k EventKind) {
	f.send(Event{Kind: k, Pod: c.pod.id, Container: c.id})
}

func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for ch := range f.subs {
		delete(f.subs, ch)
		close(ch)
	}
}

// EndEvents ends all calls of Events, so that nobody waits for them when berth ends.
func (rt *Runtime) EndEvents() { rt.feed.close() }

// Events calls fn with each event from now on, until ctx ends or fn fails. It returns
// ErrSlow when fn did not keep up, and ErrClosed at the end of the runtime.
func (rt *Runtime) Events(ctx context.Context, fn func(Event) error) error {
	f, ch := &rt.feed, make(chan Event, feedDepth)
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return ErrClosed
	}
	if f.subs == nil {
		f.subs = make(map[chan Event]bool)
	}
	f.subs[ch] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.subs[ch] {
			delete(f.subs, ch)
			close(ch)
		}
	}()
	for {
		select {
		case e, ok := <-ch:
			if !ok {
				f.mu.Lock()
				defer f.mu.Unlock()
				if f.closed {
					return ErrClosed
				}
				return ErrSlow
			}
			if err := fn(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
