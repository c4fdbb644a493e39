// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"iter"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// How long a writer waits before it tries again what has failed and nobody waits for.
const (
	retryFirst = 100 * time.Millisecond
	retryLast  = 5 * time.Second
)

// A writer owns one file. Its goroutine takes all that queued while the last commit ran and commits it
// together: a commit costs two fdatasync calls, whether it is of one write or of a hundred, and a lone
// caller waits for nobody.
//
// Locks: writer.mu before DB.mu (view).
type writer struct {
	file     *boltFile
	view     *sync.RWMutex        // DB.mu
	contents func() iter.Seq[put] // all that the file is to hold; view is held
	delay    time.Duration        // how long an asynchronous write may wait for company
	fault    func(error)          // told of each failed commit

	mu sync.Mutex
	// +checklocks:mu
	queue []*txn
	// +checklocks:mu
	seq uint64
	// +checklocks:mu
	closing bool // nothing more is accepted
	// +checklocks:mu
	killed bool // nothing more is written either

	lastErr error // of the last commit; of the goroutine, and of others when it has ended

	wake  chan struct{} // of one element: look at the queue
	ended chan struct{} // closed when the goroutine has ended
}

// A txn is one write, of one or more records.
type txn struct {
	seq uint64
	// stage makes the changes out of what is known when it is called; nil for one that was made when it
	// was queued. It may be called again, and then its last result counts.
	stage   func() (*changes, error)
	changes *changes
	job     func(error) error // instead: called between commits with the error of the one before
	done    chan error        // of one element; nil: nobody waits
	left    atomic.Bool       // who waited does not any more
	queued  time.Time
}

// changes are what a txn does.
type changes struct {
	list []change
	// valid holds the invariants of the records that are written, against what is visible and, if inBatch,
	// what the commit under way makes visible. view is held.
	valid func(inBatch bool) error
}

// panicked carries a panic of a caller's function from the writer's goroutine to the caller's.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("panic: %v\n%s", p.value, p.stack) }

// start starts the goroutine of a writer whose fields above mu are set.
func (w *writer) start() {
	w.wake = make(chan struct{}, 1)
	w.ended = make(chan struct{})
	go w.loop()
}

// do queues a write and waits until it is durable. The end of the context ends the waiting only.
func (w *writer) do(ctx context.Context, stage func() (*changes, error)) error {
	return w.wait(ctx, &txn{stage: stage})
}

// run has the goroutine call a function when the commit of all that was queued before has succeeded, or
// failed with the error that the function gets, and waits for its answer.
func (w *writer) run(ctx context.Context, job func(error) error) error {
	return w.wait(ctx, &txn{job: job})
}

func (w *writer) wait(ctx context.Context, t *txn) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.done = make(chan error, 1)
	w.mu.Lock()
	if w.closing {
		w.mu.Unlock()
		return ErrClosed
	}
	w.pushLocked(t)
	w.mu.Unlock()
	w.poke()
	select {
	case err := <-t.done:
		if p, ok := err.(*panicked); ok { //nolint:errorlint // ours, and never wrapped
			panic(p)
		}
		return err
	case <-ctx.Done():
		t.left.Store(true)
		return ctx.Err()
	}
}

// later queues a write for which nobody waits, and makes it visible.
func (w *writer) later(c *changes) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return ErrClosed
	}
	w.view.Lock()
	defer w.view.Unlock()
	// The commit under way may succeed or fail: what is made visible now must be right either way.
	for _, inBatch := range []bool{true, false} {
		if err := c.valid(inBatch); err != nil {
			return err
		}
	}
	t := &txn{changes: c, queued: time.Now()}
	w.pushLocked(t)
	for _, c := range c.list {
		c.pin(t.seq)
	}
	w.poke()
	return nil
}

// +checklocks:w.mu
func (w *writer) pushLocked(t *txn) {
	w.seq++
	t.seq = w.seq
	w.queue = append(w.queue, t)
}

func (w *writer) poke() {
	select {
	case w.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// close has everything written that was queued, and one last change, if there is one, and ends the
// goroutine. Its error is that of the last commit: what was queued and not waited for is lost then.
func (w *writer) close(last *changes) error {
	t := &txn{stage: func() (*changes, error) { return last, nil }, done: make(chan error, 1)}
	w.mu.Lock()
	if !w.closing && last != nil {
		w.pushLocked(t)
	}
	w.closing = true
	w.mu.Unlock()
	w.poke()
	<-w.ended
	return w.lastErr
}

// kill ends the goroutine when the commit under way, if there is one, has ended. What is queued is lost.
func (w *writer) kill() {
	w.mu.Lock()
	w.closing, w.killed = true, true
	w.mu.Unlock()
	w.poke()
	<-w.ended
}

// take empties the queue.
func (w *writer) take() (fresh []*txn, closing, killed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh, w.queue = w.queue, nil
	return fresh, w.closing, w.killed
}

// loop is the goroutine.
func (w *writer) loop() {
	defer close(w.ended)
	debug.SetPanicOnFault(true) // see boltFile
	var (
		pending []*txn // what is not in the file yet, the oldest first
		backoff time.Duration
		due     = time.NewTimer(time.Hour)
	)
	defer due.Stop()
	for {
		fresh, closing, killed := w.take()
		pending = append(pending, fresh...)
		if killed {
			tell(pending, ErrClosed)
			return
		}
		wait := w.patience(pending, backoff, closing)
		if wait > 0 {
			due.Reset(wait)
			select {
			case <-w.wake:
				continue
			case <-due.C:
			}
		}
		if len(pending) > 0 || w.file.suspect {
			pending = w.commit(pending)
		}
		switch {
		case closing:
			return
		case len(pending) == 0 && !w.file.suspect:
			backoff = 0
		case backoff == 0:
			backoff = retryFirst
		case wait > 0: // not because somebody waited
			backoff = min(2*backoff, retryLast)
		}
	}
}

// patience says how long the writer may wait for company before it commits what is pending.
func (w *writer) patience(pending []*txn, backoff time.Duration, closing bool) time.Duration {
	switch {
	case closing || slices.ContainsFunc(pending, func(t *txn) bool { return t.done != nil }):
		return 0
	case len(pending) == 0 && !w.file.suspect:
		return math.MaxInt64
	case backoff > 0:
		return backoff
	}
	return w.delay - time.Since(pending[0].queued)
}

// tell gives the waiters of a batch their answer.
func tell(batch []*txn, err error) {
	for _, t := range batch {
		if t.done != nil {
			t.done <- err
		}
	}
}

// commit commits a batch, which may be empty if the file is to be made anew, and returns what of it is to
// be tried again.
func (w *writer) commit(batch []*txn) (left []*txn) {
	var (
		puts []put
		in   []*txn // what takes part
	)
	for _, t := range batch {
		if t.job != nil {
			continue
		}
		if err := w.stage(t); err != nil {
			t.done <- err                                      // only who waits has a function that can fail
			if _, ok := err.(*panicked); ok && t.left.Load() { //nolint:errorlint // ours, and never wrapped
				w.fault(err)
			}
			continue
		}
		in = append(in, t)
		for _, c := range t.changes.list {
			puts = append(puts, c.puts()...)
		}
	}
	var err error
	if w.file.suspect {
		err = w.rewrite()
	}
	if err == nil && len(in) > 0 {
		err = w.file.commit(puts)
	}
	if err != nil {
		err = fmt.Errorf("store: %s: %w", w.file.path, err)
	}
	w.lastErr = err

	w.view.Lock()
	for _, t := range in {
		for _, c := range t.changes.list {
			c.unstage()
			switch {
			case err != nil:
			case t.done == nil:
				c.unpin(t.seq)
			default:
				c.show(t.seq)
			}
		}
	}
	w.view.Unlock()

	tell(in, err)
	if err != nil {
		left = slices.DeleteFunc(in, func(t *txn) bool { return t.done != nil })
		if len(left) > 0 || len(batch) == 0 {
			w.fault(err)
		}
	}
	for _, t := range batch {
		if t.job != nil {
			t.done <- t.job(err)
		}
	}
	return left
}

// stage calls the function of a write, if it has one, and adds its changes to the batch.
func (w *writer) stage(t *txn) (err error) {
	if t.stage != nil {
		if t.changes, err = safely(t.stage); err != nil {
			return err
		}
	}
	w.view.Lock()
	defer w.view.Unlock()
	if t.stage != nil {
		if err := t.changes.valid(true); err != nil {
			return err
		}
	}
	for _, c := range t.changes.list {
		c.stage(t.seq)
	}
	return nil
}

// safely calls a caller's function on this goroutine. A panic in it is the caller's.
func safely(stage func() (*changes, error)) (c *changes, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicked{p, debug.Stack()}
		}
	}()
	return stage()
}

// rewrite makes the file anew out of what was acknowledged.
func (w *writer) rewrite() error {
	w.view.RLock()
	all := slices.Collect(w.contents())
	w.view.RUnlock()
	return w.file.rewrite(slices.Values(all))
}
