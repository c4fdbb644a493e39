// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// queue lets one operation at a time work on an object.
//
// The work is not the caller's: it goes on when the caller has gone, and a caller
// who comes back and asks for the same joins it. A kubelet that has given up and
// asks again is the rule, not the exception.
type queue struct {
	mu  sync.Mutex
	now *operation // +checklocks:mu
}

// operation is work under way.
type operation struct {
	kind string
	done chan struct{} // closed at its end; then err is set and no longer changes
	err  error
}

// PanicError is the error of an operation that panicked. It counts as a crash at
// that step: what was entered is taken back by the next operation, or by a recovery.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("berth panicked: %v (see its log)", e.Value) }

// run joins the operation of this kind that is under way. If there is none it
// waits for the one of another kind, then does fn, and returns fn's error. The end
// of ctx ends the waiting and not the work; fn's context has ctx's values alone.
func (q *queue) run(ctx context.Context, kind string, fn func(ctx context.Context) error) error {
	for {
		op, joined := q.begin(ctx, kind, fn)
		select {
		case <-op.done:
		case <-ctx.Done():
			return fmt.Errorf("%s goes on: %w", op.kind, context.Cause(ctx))
		}
		if joined {
			return op.err
		}
	}
}

// begin returns the operation that is under way, or starts one; joined says that
// it is what the caller wants.
func (q *queue) begin(ctx context.Context, kind string, fn func(ctx context.Context) error) (op *operation, joined bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.now != nil {
		return q.now, q.now.kind == kind
	}
	op = &operation{kind: kind, done: make(chan struct{})}
	q.now = op
	go q.work(context.WithoutCancel(ctx), op, fn)
	return op, true
}

func (q *queue) work(ctx context.Context, op *operation, fn func(ctx context.Context) error) {
	defer func() {
		// Before the end is told: who waits for it must find the queue free.
		q.mu.Lock()
		q.now = nil
		q.mu.Unlock()
		close(op.done)
	}()
	op.err = guard(ctx, fn)
}

// guard is the one place of this package where a panic is recovered.
func guard(ctx context.Context, fn func(ctx context.Context) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return fn(ctx)
}
