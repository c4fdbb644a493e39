// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// errUnknownStep is returned for a ledger that has a step of another version.
var errUnknownStep = errors.New("unknown step in ledger")

// ledger is an object's record of the steps that have been entered and not left.
// Enter and leave return once the change would survive the death of this process.
type ledger interface {
	// enter adds a step at the end. One that is there already stays where it is.
	enter(ctx context.Context, name string) error
	// leave takes a step out. One that is not there is no error.
	leave(ctx context.Context, name string) error
	// entered returns the steps in the order in which they were entered.
	entered() []string
}

// step is one thing that is done for an object and taken back one day.
type step[T ledger] struct {
	name  string        // stored: never changed, never used for something else
	limit time.Duration // of do, and of undo; 0: none
	// The object comes first: do and undo are method expressions.
	do func(object T, ctx context.Context) error
	// undo succeeds whether do was done, done in part, or not at all, and however
	// often it is called.
	undo func(object T, ctx context.Context) error
}

// within runs do or undo within the step's limit.
func (s step[T]) within(ctx context.Context, object T, fn func(T, context.Context) error) error {
	if s.limit == 0 {
		return fn(object, ctx)
	}
	limited, cancel := context.WithTimeoutCause(ctx, s.limit, fmt.Errorf("%w: more than %v", ErrTimeout, s.limit))
	defer cancel()
	err := fn(object, limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil && !errors.Is(err, ErrTimeout) {
		err = fmt.Errorf("%w (%w)", context.Cause(limited), err)
	}
	return err
}

// climb enters and does the steps in order. When one fails, all that were entered
// are taken back, in the reverse order; the error says so if that fails, too, and
// the ledger then holds what is left to take back.
func climb[T ledger](ctx context.Context, object T, steps []step[T]) error {
	return climbFrom(ctx, object, steps, "")
}

// climbFrom is climb above a step that has been done and stays, with all below it.
func climbFrom[T ledger](ctx context.Context, object T, steps []step[T], stays string) error {
	above := 1 + slices.IndexFunc(steps, func(s step[T]) bool { return s.name == stays })
	for _, s := range steps[above:] {
		if err := object.enter(ctx, s.name); err != nil {
			return withUndo(fmt.Errorf("%s: %w", s.name, err), unwindTo(ctx, object, steps, stays))
		}
		if err := s.within(ctx, object, s.do); err != nil {
			return withUndo(fmt.Errorf("%s: %w", s.name, err), unwindTo(ctx, object, steps, stays))
		}
	}
	return nil
}

// unwind takes back every step that was entered, the last one first. It stops at
// the first that fails: those below may be needed by it.
func unwind[T ledger](ctx context.Context, object T, steps []step[T]) error {
	return unwindTo(ctx, object, steps, "")
}

// unwindTo is unwind down to a step that stays, with all below it.
func unwindTo[T ledger](ctx context.Context, object T, steps []step[T], stays string) error {
	entered := object.entered()
	for _, name := range slices.Backward(entered) {
		if name == stays {
			return nil
		}
		i := slices.IndexFunc(steps, func(s step[T]) bool { return s.name == name })
		if i < 0 {
			return fmt.Errorf("%s: %w", name, errUnknownStep)
		}
		if err := steps[i].within(ctx, object, steps[i].undo); err != nil {
			return fmt.Errorf("undo %s: %w", name, err)
		}
		if err := object.leave(ctx, name); err != nil {
			return fmt.Errorf("leave %s: %w", name, err)
		}
	}
	return nil
}

// fallError is the error of a climb whose steps could not all be taken back.
type fallError struct{ first, undo error }

func (e *fallError) Error() string {
	return fmt.Sprintf("%v (and while taking it back: %v)", e.first, e.undo)
}

func (e *fallError) Unwrap() []error { return []error{e.first, e.undo} }

func withUndo(first, undo error) error {
	if undo == nil {
		return first
	}
	return &fallError{first: first, undo: undo}
}
