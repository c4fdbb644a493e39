// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-cri/berth/oci/wire"
)

// TestGate: what does not come to its end in one pod keeps out that pod's, and
// nobody else's, until the node is full of them.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		enter := func(pod, what string) (func(), time.Duration, error) {
			began := time.Now()
			leave, err := g.enter(t.Context(), pod, what)
			return leave, time.Since(began), err
		}
		var leave func()
		for n := range perPod {
			l, took, err := enter("a", fmt.Sprint("stuck", n))
			if err != nil || took != 0 {
				t.Fatalf("stuck%d: %v after %v", n, err, took)
			}
			leave = l
			time.Sleep(time.Second) //nolint:forbidigo // of the bubble
		}
		_, took, err := enter("a", "one more")
		if !errors.Is(err, &wire.Error{Code: wire.Failed}) || took != gateTime {
			t.Errorf("one more: %v after %v", err, took)
		} else if text := err.Error(); !strings.Contains(text, "stuck0") || !strings.Contains(text, "4 execs in a") || !strings.Contains(text, "for 4s") {
			t.Errorf("error %q does not say who is in the way, and since when", text)
		}
		if _, took, err := enter("b", "other pod"); err != nil || took != 0 {
			t.Errorf("another pod: %v after %v", err, took)
		}
		time.AfterFunc(time.Second, leave)
		if _, took, err := enter("a", "waits"); err != nil || took != time.Second {
			t.Errorf("when there is room again: %v after %v", err, took)
		}
		for n := range perNode - perPod - 1 {
			if _, _, err := enter(fmt.Sprint("pod", n/perPod), "more"); err != nil {
				t.Fatal(err)
			}
		}
		if _, took, err := enter("new", "too many"); err == nil || took != gateTime || !strings.Contains(err.Error(), "64 execs on this node") {
			t.Errorf("one more than the node takes: %v after %v", err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.enter(ctx, "new", "gives up"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who does not wait: %v", err)
		}
	})
}
