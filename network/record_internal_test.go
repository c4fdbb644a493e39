// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// The lock of a record is waited for, but not for ever: some plugins leave a process that has it.
func TestLockOfOrphans(t *testing.T) {
	r, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.lock(t.Context(), "p1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lock without a record = %v", err)
	}
	if err := r.write(&record{Pod: "p1", Networks: []attachment{{Config: []byte("{}")}}}); err != nil {
		t.Fatal(err)
	}
	first, err := r.lock(t.Context(), "p1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if f, err := r.lock(ctx, "p1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second lock = %v, %v; want the caller's deadline", f, err)
	}
	r.orphanWait = 20 * time.Millisecond
	passed, err := r.lock(t.Context(), "p1")
	if err != nil {
		t.Fatalf("a lock that never comes = %v", err)
	}
	unlock(passed, false) // it has none to let go of
	ctx2, cancel2 := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel2()
	r.orphanWait = time.Hour
	if _, err := r.lock(ctx2, "p1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the first lock was let go of by another: %v", err)
	}
	time.AfterFunc(10*time.Millisecond, func() { unlock(first, false) })
	second, err := r.lock(t.Context(), "p1")
	if err != nil {
		t.Fatal(err)
	}
	unlock(second, true)
}
