// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const eventsFile = "cgroup.events"

// Waiting goes by events where the kernel has one, with a look in between: soon at first,
// because most of what is waited for happens within a millisecond and the kernel holds back a
// second notification of the same file for 10 ms; then at most every maxLook, because a removal
// by someone else can cancel a notification that is held back, and because a process may leave
// a v1 group without ending.
const (
	firstLook = 200 * time.Microsecond
	maxLook   = 100 * time.Millisecond
)

// Empty waits until no process is in the group or below it. A group that is gone is empty.
// When ctx ends first it returns a *RemainError that wraps ctx's error.
//
// On v2 the event is cgroup.events, whose "populated" covers the whole subtree and which can be
// polled. v1 has none: its release_agent is one program for the whole hierarchy, so it is the
// machine's and not ours, and cgroup.event_control knows memory only. There the end of a member,
// seen through its pidfd, is waited for, then the lists are read again.
func (g Group) Empty(ctx context.Context) error {
	if g.version == 0 {
		return errZero
	}
	err := g.waitEmpty(ctx)
	if err != nil && ctx.Err() != nil {
		return g.remain(ctx.Err())
	}
	return err
}

// emptyWithin is Empty with a bound of its own: false when that, or ctx, ended first.
func (g Group) emptyWithin(ctx context.Context, d time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err := g.waitEmpty(ctx)
	if err != nil && ctx.Err() != nil {
		return false, nil
	}
	return err == nil, err
}

func (g Group) waitEmpty(ctx context.Context) error {
	if g.version == V2 {
		return waitEvents(ctx, g.members[0].path, "populated", false)
	}
	for _, dir := range g.dirs() {
		if err := waitMembers(ctx, dir); err != nil {
			return err
		}
	}
	return nil
}

// waitEvents waits until a key of cgroup.events has the value. Gone counts as reached.
func waitEvents(ctx context.Context, dir, key string, want bool) error {
	path := dir + "/" + eventsFile
	fd, err := retry(func() (int, error) {
		// Not blocking, so that the runtime's poller takes it and no thread is held.
		return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	})
	if err != nil {
		if isGone(err) {
			return nil
		}
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	// A change wakes pollers of the file after the new value is in place (kernfs_notify), so to
	// read and then to wait loses nothing.
	var failed error
	err = waitFile(ctx, f, func(fd int) bool {
		var buf [128]byte
		text, err := readFD(fd, buf[:])
		if err != nil {
			if !isGone(err) {
				failed = &fs.PathError{Op: "read", Path: path, Err: err}
			}
			return true
		}
		v, ok := lookup(text, key)
		return ok && (v != 0) == want
	})
	return errors.Join(failed, err)
}

// waitMembers waits until a v1 folder and all below it list no process.
func waitMembers(ctx context.Context, dir string) error {
	for look := firstLook; ; look = min(2*look, maxLook) {
		pids, err := treeProcs(dir, 1)
		if err != nil || len(pids) == 0 {
			return err
		}
		// The group cannot be empty before this one has ended or left.
		if err := waitProcess(ctx, pids[0], look); err != nil {
			return err
		}
	}
}

// waitProcess waits for the end of a process, at most d. It returns ctx's error, or nil.
func waitProcess(ctx context.Context, pid int, d time.Duration) error {
	fd, err := -1, error(unix.ESRCH)
	if pid != 0 { // not in our PID namespace
		fd, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil || unix.SetNonblock(fd, true) != nil {
		// It has just ended, and the list will say so in a moment.
		return sleep(ctx, min(d, time.Millisecond))
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	bound, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	ended := false
	err = waitFile(bound, f, func(fd int) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(p, 0)
		ended = n > 0
		return ended
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && bound.Err() == nil {
		return err
	}
	if ended {
		// From Linux 6.19 on a process leaves its cgroup a moment after its pidfd says that it
		// ended; do not spin on a list that still names it.
		return sleep(ctx, 50*time.Microsecond)
	}
	return nil
}

// waitFile calls ready at once, whenever the file has an event, and now and then in between,
// until it returns true or ctx ends; then it returns ctx's error.
func waitFile(ctx context.Context, f *os.File, ready func(fd int) bool) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for look := firstLook; ; look = min(2*look, maxLook) {
		pollable := f.SetReadDeadline(time.Now().Add(look)) == nil
		// After setting the deadline: if ctx ends from here on, AfterFunc's deadline replaces ours.
		if err := ctx.Err(); err != nil {
			return err
		}
		done := false
		if pollable {
			err = raw.Read(func(fd uintptr) bool {
				done = ready(int(fd))
				return done
			})
		} else { // a file that cannot be polled, such as a plain one
			err = raw.Control(func(fd uintptr) { done = ready(int(fd)) })
			if err == nil && !done {
				err = sleep(ctx, min(look, 10*time.Millisecond))
			}
		}
		switch {
		case done:
			return nil
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
	}
}

// sleep returns ctx's error if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
