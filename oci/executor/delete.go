// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// delete forgets a container that has ended or was never started. One that is
// not there is no error.
func (x *Executor) delete(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	x.mu.Lock()
	u := x.unread[id]
	x.mu.Unlock()
	if u != nil {
		return x.deleteUnread(u)
	}
	c, err := x.find(ctx, id)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		return nil //nolint:nilerr // again
	}
	c.mu.Lock()
	creating := c.state == wire.Creating
	c.mu.Unlock()
	if creating {
		// Whoever waited for it has given up. A create that hangs, because what it mounts
		// is on a dead file system, holds op until its process ends.
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
		defer cancel()
		if err := x.killGroup(kctx, c); err != nil {
			return err
		}
	}
	c.op.Lock()
	defer c.op.Unlock()
	if !x.isKnown(c) {
		return nil // another delete was quicker, and another container may have the id
	}
	c.mu.Lock()
	state := c.state
	c.mu.Unlock()
	if state == wire.Running {
		return badState(id, state, "stop it first")
	}
	return x.destroy(c)
}

// destroy takes back everything that create may have done, in the reverse order,
// whether it was done or not. What fails is tried again by the next delete: the
// record goes when all else is done.
//
// Preconditions: c.op is held, or c is not yet shared.
func (x *Executor) destroy(c *container) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	if err := x.endProcesses(ctx, c); err != nil {
		return err
	}
	if err := x.release(c); err != nil {
		return err
	}
	c.tail.free()
	c.tail.released()
	c.mu.Lock()
	x.closePidfdLocked(c)
	if c.stdin >= 0 {
		unix.Close(c.stdin)
		c.stdin = -1
	}
	c.acked = true // an ack that comes from here on writes nothing into the folder
	unfinished := c.state == wire.Creating
	c.mu.Unlock()
	if unfinished {
		if err := x.reapStrays(); err != nil {
			return err
		}
		x.oomKilled(c, &wire.Exit{}) // else what was killed in it would be put down to another
	}
	if err := x.removeCgroup(ctx, c); err != nil {
		return err
	}
	// libcontainer's own Destroy would do just this, but needs a state file, which
	// it writes late.
	if err := os.RemoveAll(filepath.Join(x.files.libcontainer(), c.id)); err != nil {
		return err
	}
	if err := x.unmountOf(c); err != nil {
		return err
	}
	_ = remove(x.files.keeperExit(key(c.rec.Process)))
	if err := x.removeFiles(c.id); err != nil {
		return err
	}
	x.mu.Lock()
	if x.containers[c.id] == c {
		delete(x.containers, c.id)
	}
	x.mu.Unlock()
	return x.oomEnd(c)
}

// removeFiles removes a container's folder, the record first: what is left without
// one is no container, while a record without its exit file is one whose end
// nobody has seen.
func (x *Executor) removeFiles(id string) error {
	if err := remove(x.files.in(id, "record")); err != nil {
		return err
	}
	return os.RemoveAll(x.files.container(id))
}

// endProcesses kills what runs in the container and waits until its end has been
// dealt with, by the same path as every other end.
func (x *Executor) endProcesses(ctx context.Context, c *container) error {
	c.mu.Lock()
	pidfd, watched := c.pidfd, c.token != 0
	var err error
	if pidfd >= 0 { // under the lock: it is closed, and its number another's, when all that follows an end is done
		err = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	}
	c.mu.Unlock()
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", c.id, err)
	}
	if err := x.killGroup(ctx, c); err != nil {
		return err
	}
	if err := c.awaitExecs(ctx); err != nil {
		return err
	}
	if pidfd >= 0 && !watched { // registered halfway: nobody else will reap it
		return reapWithin(ctx, pidfd)
	}
	if pidfd >= 0 {
		select {
		case <-c.exited:
		case <-ctx.Done():
			return fmt.Errorf("end of %s: %w", c.id, ctx.Err())
		}
	}
	select {
	case <-c.exited:
	default:
		return nil // it never had a process
	}
	// What follows an exit is done by us, too, where an executor before us has seen it.
	c.tail.hurry() // what still writes delays no delete
	select {
	case <-c.over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end of %s: %w", c.id, ctx.Err())
	}
}

// awaitExecs waits until the ends of all that was exec'd have been dealt with, and
// what was being started has been taken back: both use the container's folder.
func (c *container) awaitExecs(ctx context.Context) error {
	c.mu.Lock()
	list := slices.Collect(maps.Values(c.execs))
	c.mu.Unlock()
	for _, e := range list {
		select {
		case <-e.exited:
		case <-ctx.Done():
			return fmt.Errorf("end of exec %s in %s: %w", e.rec.Exec, c.id, ctx.Err())
		}
	}
	return nil
}

func reapWithin(ctx context.Context, pidfd int) error {
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			if err := reap(pidfd); err != nil && !errors.Is(err, unix.ECHILD) {
				return err
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// removeCgroup removes a container's cgroup. systemd has mostly removed a scope by
// now; where not, it must be told: a scope whose folder somebody else removes stays
// in its books as running.
func (x *Executor) removeCgroup(ctx context.Context, c *container) error {
	group, err := c.group()
	if err != nil || len(group.Paths()) == 0 {
		return err
	}
	if c.rec.Systemd && slices.ContainsFunc(slices.Collect(maps.Values(group.Paths())), exists) {
		scope, err := managerAt(c.id, c.rec.CgroupArg, true)
		if err != nil {
			return err
		}
		if err := scope.Destroy(); err != nil {
			return fmt.Errorf("end of scope: %w", err)
		}
	}
	return group.Remove(ctx)
}

// unmountOf detaches what a start may have left mounted.
func (x *Executor) unmountOf(c *container) error {
	if c.rec.OwnRoot {
		if err := x.mnt.unmountRoot(c.id); err != nil {
			return err
		}
	}
	path := x.mnt.path(c.id, "shm")
	if err := detach(path); err != nil {
		return err
	}
	return removeMountPoint(path)
}
