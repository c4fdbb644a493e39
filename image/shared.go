// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errAbandoned ends work that nobody waits for.
var errAbandoned = errors.New("nobody waits for it any more")

// shared is work that several wait for. It is cancelled when nobody has waited for it
// for a while.
type shared struct {
	ctx    context.Context //nolint:containedctx // of the work, which is nobody's
	cancel context.CancelCauseFunc
	linger time.Duration
	done   chan struct{}
	err    error // once done is closed

	mu      sync.Mutex
	waiting int         // +checklocks:mu
	over    bool        // +checklocks:mu
	timer   *time.Timer // +checklocks:mu
}

// newShared begins work that one waits for.
func newShared(ctx context.Context, linger time.Duration) *shared {
	w := &shared{linger: linger, done: make(chan struct{}), waiting: 1}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	return w
}

// join adds one who waits, unless it is too late for that.
func (w *shared) join() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return false
	}
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	w.waiting++
	return true
}

// leave is called once by each who waits.
func (w *shared) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting--
	if w.waiting > 0 || w.over {
		return
	}
	w.timer = time.AfterFunc(w.linger, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.waiting == 0 && !w.over {
			w.over = true
			w.cancel(errAbandoned)
		}
	})
}

// finish tells all that the work has ended.
func (w *shared) finish() {
	w.mu.Lock()
	w.over = true
	if w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Unlock()
	w.cancel(nil)
	close(w.done)
}

// await waits for the end of the work.
func (w *shared) await(ctx context.Context) error {
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// wait is await and leave.
func (w *shared) wait(ctx context.Context) error {
	defer w.leave()
	return w.await(ctx)
}

func isCanceled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, errAbandoned)
}
