// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestBudget has three wait in a queue. Who gives up in front does not keep those behind, who comes first
// is served first, and in the end nothing is lost.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(10)
		if err := b.take(t.Context(), 6); err != nil {
			t.Fatal(err)
		}
		var order []int64
		wait := func(ctx context.Context, n int64) <-chan error {
			done := make(chan error, 1)
			go func() {
				err := b.take(ctx, n)
				if err == nil {
					order = append(order, n)
				}
				done <- err
			}()
			synctest.Wait()
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		first, second, third := wait(ctx, 10), wait(t.Context(), 3), wait(t.Context(), 2)
		if len(order) != 0 {
			t.Errorf("passed over the first: %v", order)
		}
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := <-second; err != nil { // 4 are free
			t.Error(err)
		}
		synctest.Wait()
		if len(order) != 1 {
			t.Errorf("served %v", order)
		}
		b.give(6)
		if err := <-third; err != nil {
			t.Error(err)
		}
		b.give(3)
		b.give(2)
		if err := b.take(t.Context(), 10); err != nil {
			t.Error(err)
		}
	})
}
