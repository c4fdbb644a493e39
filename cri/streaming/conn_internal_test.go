// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// Bytes either way put the idle timeout off, and it ends the stream to the nanosecond.
func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, raw := net.Pipe()
		ctx, end := context.WithCancelCause(t.Context())
		const idle = 4 * time.Hour
		c := newConn(raw, raw, idle, end)
		defer c.kill()
		for i := range 6 {
			<-time.After(idle - time.Second)
			if i%2 == 0 {
				go func() { _, _ = client.Write([]byte("x")) }()
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			} else {
				go func() { _, _ = io.ReadFull(client, make([]byte, 1)) }()
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
		}
		<-time.After(idle - time.Nanosecond)
		if ctx.Err() != nil {
			t.Fatalf("ended early: %v", context.Cause(ctx))
		}
		<-time.After(time.Nanosecond)
		synctest.Wait()
		if !errors.Is(context.Cause(ctx), ErrIdle) {
			t.Errorf("ended by %v", context.Cause(ctx))
		}
	})
}

// A server that ends a stream gives its client some time to be told, and no more.
func TestFarewell(t *testing.T) {
	for name, tt := range map[string]struct {
		cause error
		after time.Duration
	}{
		"closed": {ErrClosed, farewell}, "idle": {ErrIdle, farewell}, "gone": {ErrClientGone, 0}, "finished": {errFinished, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, raw := net.Pipe() // nobody reads
				_, end := context.WithCancelCause(t.Context())
				c := newConn(raw, raw, time.Hour, end)
				defer c.kill()
				back := make(chan error, 2)
				go func() {
					_, err := c.Write([]byte("status"))
					back <- err
				}()
				go func() {
					_, err := c.Read(make([]byte, 1))
					back <- err
				}()
				synctest.Wait()
				start := time.Now()
				c.ended(tt.cause)
				for range 2 {
					if err := <-back; err == nil {
						t.Error("it worked")
					}
				}
				if took := time.Since(start); took != tt.after {
					t.Errorf("came back after %v, want %v", took, tt.after)
				}
			})
		})
	}
}
