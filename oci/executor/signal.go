// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// signal sends a signal to a container's first process, by pidfd: it cannot reach
// another process, and it waits for no lock that is held over any work. To a
// container that has ended it is no error.
func (x *Executor) signal(ctx context.Context, id string, signal int) error {
	if signal < 0 || signal > 64 {
		return invalid("signal %d: want 0 to 64", signal)
	}
	c, err := x.find(ctx, id)
	if err != nil {
		return err
	}
	return c.signal(signal)
}

func (c *container) signal(signal int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		if c.state == wire.Creating {
			return badState(c.id, c.state, "it has no process yet")
		}
		return nil
	}
	err := unix.PidfdSendSignal(c.pidfd, unix.Signal(signal), nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %d to %s: %w", signal, c.id, err)
	}
	return nil
}

// killAll kills every process of a container and returns once none is left. A
// create that is under way is ended by it, too.
func (x *Executor) killAll(ctx context.Context, id string) error {
	c, err := x.find(ctx, id)
	if err != nil {
		return err
	}
	if err := x.killInit(ctx, c); err != nil {
		return err
	}
	if !x.isKnown(c) {
		return nil // its create failed of this, and was taken back
	}
	if err := c.signal(int(unix.SIGKILL)); err != nil {
		return err
	}
	if err := x.killGroup(ctx, c); err != nil {
		return err
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end of %s: %w", id, ctx.Err())
	}
}

// killInit kills what a create under way has made so far, until the create has come
// to its end. Its process has no pidfd of ours yet, but the cgroup is known.
func (x *Executor) killInit(ctx context.Context, c *container) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		t := time.NewTimer(wait)
		select {
		case <-c.made:
			t.Stop()
			return nil
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("create of %s is under way: %w", c.id, ctx.Err())
		case <-t.C: // it may have come into its cgroup only now
		}
		if err := x.killGroup(ctx, c); err != nil {
			return err
		}
	}
}
