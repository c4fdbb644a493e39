// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// endless is a connection over which bytes come when they are sent.
type endless struct {
	ctx   context.Context //nolint:containedctx // as a connection has its request's
	bytes chan byte
}

func (e *endless) Read(p []byte) (int, error) {
	select {
	case p[0] = <-e.bytes:
		return 1, nil
	case <-e.ctx.Done():
		return 0, e.ctx.Err()
	}
}

func (e *endless) Close() error { return nil }

// TestWatch counts the time for which a reader waits for bytes, since the last one, and not the time that
// it takes for itself.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		source := &endless{ctx, make(chan byte)}
		body := watch(ctx, source, 30*time.Second, cancel)
		defer body.Close()
		go func() {
			for range 5 {
				time.Sleep(29 * time.Second) //nolint:forbidigo // of synctest's clock
				source.bytes <- 'x'
			}
		}()
		p := make([]byte, 10)
		for i := range 5 {
			if n, err := body.Read(p); n != 1 || err != nil {
				t.Fatalf("byte %d: %d, %v", i, n, err)
			}
			time.Sleep(time.Hour) //nolint:forbidigo // of synctest's clock
		}
		if ctx.Err() != nil {
			t.Fatal("given up while nobody waited")
		}
		start := time.Now()
		n, err := body.Read(p)
		if n != 0 || !errors.Is(err, errStalled) || time.Since(start) != 30*time.Second {
			t.Errorf("%d, %v after %s", n, err, time.Since(start))
		}
	})
}

// TestWatchPassesErrors leaves alone what is no silence.
func TestWatchPassesErrors(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	body := watch(ctx, &endless{ctx, nil}, time.Hour, cancel)
	cancel(errClosed)
	if _, err := body.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) || errors.Is(err, errStalled) {
		t.Error(err)
	}
	end := watch(ctx, io.NopCloser(new(emptyReader)), time.Hour, cancel)
	if _, err := end.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // not wrapped is the point
		t.Error(err)
	}
}

type emptyReader struct{}

func (*emptyReader) Read([]byte) (int, error) { return 0, io.EOF }
