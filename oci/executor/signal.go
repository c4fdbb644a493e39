// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// signal sends a signal to a container's first process, by pidfd: it cannot reach
// another process, and it waits for no lock that is held over any work. To a
// container that has ended it is no error.
func (x *Executor) signal(id string, signal int) error {
	if signal < 0 || signal > 64 {
		return invalid("signal %d: want 0 to 64", signal)
	}
	c, err := x.find(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		if c.state == wire.Creating {
			return badState(id, c.state, "it has no process yet")
		}
		return nil
	}
	err = unix.PidfdSendSignal(c.pidfd, unix.Signal(signal), nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %d to %s: %w", signal, id, err)
	}
	return nil
}

// killAll kills every process of a container and returns once none is left.
func (x *Executor) killAll(ctx context.Context, id string) error {
	c, err := x.find(id)
	if err != nil {
		return err
	}
	if err := x.signal(id, int(unix.SIGKILL)); err != nil {
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
