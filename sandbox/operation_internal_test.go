// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestQueueJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q queue
		works, release := 0, make(chan struct{})
		work := func(context.Context) error {
			works++
			<-release
			return errRefused
		}
		results := make(chan error, 3)
		for range 3 {
			go func() { results <- q.run(t.Context(), "stop", work) }()
		}
		synctest.Wait()
		if works != 1 {
			t.Errorf("%d works for three callers, want 1", works)
		}
		close(release)
		for range 3 {
			if err := <-results; !errors.Is(err, errRefused) {
				t.Errorf("a joined caller got %v, want the result of the work", err)
			}
		}
		if works != 1 {
			t.Errorf("the work was done %d times in the end", works)
		}
	})
}

func TestQueueKeepsOthersOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			q     queue
			order []string
		)
		release, ended := make(chan struct{}), make(chan error, 2)
		go func() {
			ended <- q.run(t.Context(), "start", func(context.Context) error {
				<-release
				order = append(order, "start")
				return nil
			})
		}()
		synctest.Wait()
		go func() {
			ended <- q.run(t.Context(), "stop", func(context.Context) error {
				order = append(order, "stop")
				return nil
			})
		}()
		synctest.Wait()
		if len(order) != 0 {
			t.Errorf("%v came while the first was under way", order)
		}
		close(release)
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if len(order) != 2 || order[0] != "start" {
			t.Errorf("order = %v", order)
		}
	})
}

func TestQueueCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q queue
		ctx, cancel := context.WithCancel(t.Context())
		release, done := make(chan struct{}), false
		first := make(chan error, 1)
		go func() {
			first <- q.run(ctx, "create", func(ctx context.Context) error {
				<-release
				done = true
				return ctx.Err() // the caller's end must not be the work's
			})
		}()
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("caller that gave up got %v", err)
		}
		again := make(chan error, 1)
		go func() {
			again <- q.run(t.Context(), "create", func(context.Context) error {
				t.Error("the work was done a second time")
				return nil
			})
		}()
		synctest.Wait()
		close(release)
		if err := <-again; err != nil || !done {
			t.Errorf("caller that came back got %v, done %v", err, done)
		}
	})
}

func TestQueuePanic(t *testing.T) {
	var q queue
	err := q.run(t.Context(), "start", func(context.Context) error { panic("poison") })
	if pe, ok := errors.AsType[*PanicError](err); !ok || pe.Value != "poison" || len(pe.Stack) == 0 {
		t.Errorf("error = %#v, want a PanicError with value and stack", err)
	}
	if err := q.run(t.Context(), "start", func(context.Context) error { return nil }); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}
