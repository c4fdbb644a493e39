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

// looks says how often to look at what is waited for, apart from the events. Soon at first,
// because most of what is waited for happens within a millisecond, and the kernel holds back a
// second notification of the same file for 10 ms. Then twice as late each time, up to a bound:
// the removal of a group cancels a notification that is held back, and a process may leave a v1
// group without ending.
type looks struct{ first, last time.Duration }

func usual() looks { return looks{200 * time.Microsecond, 100 * time.Millisecond} }

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
		return waitEvents(ctx, usual(), g.members[0].path, "populated", false)
	}
	for _, dir := range g.dirs() {
		if err := waitMembers(ctx, usual(), dir); err != nil {
			return err
		}
	}
	return nil
}

// waitEvents waits until a key of cgroup.events has the value. Gone counts as reached.
func waitEvents(ctx context.Context, l looks, dir, key string, want bool) error {
	path := dir + "/" + eventsFile
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		if isGone(err) {
			return nil
		}
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f, err := pollable(fd, path)
	if err != nil {
		return err
	}
	defer f.Close()
	// A change wakes pollers of the file after the new value is in place (kernfs_notify), so to
	// read and then to wait loses nothing.
	var failed error
	err = waitFile(ctx, l, f, func(fd int) bool {
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
func waitMembers(ctx context.Context, l looks, dir string) error {
	for look := l.first; ; look = min(2*look, l.last) {
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

// waitProcess waits for the end of a process that is listed in a group, at most d. It returns
// ctx's error, or nil.
func waitProcess(ctx context.Context, pid int, d time.Duration) error {
	if pid == 0 { // not in our PID namespace, so there is no pidfd of it
		return sleep(ctx, d)
	}
	// One that has ended already and yet is listed will not be for long: from Linux 6.19 on a
	// process leaves its group a moment after its end. Do not spin on it.
	const moment = time.Millisecond
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return sleep(ctx, moment)
	}
	f, err := pollable(fd, "pidfd")
	if err != nil {
		return err
	}
	defer f.Close()
	bound, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	calls, ended := 0, false
	err = waitFile(bound, looks{d, d}, f, func(fd int) bool {
		calls++
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(p, 0)
		ended = n > 0
		return ended
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && bound.Err() == nil:
		return err
	case ended && calls == 1:
		return sleep(ctx, moment)
	}
	return nil
}

// pollable takes over a descriptor and makes a file of it that the runtime's poller watches, so
// that who waits for it holds no thread.
func pollable(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// waitFile calls ready at once, whenever the file has an event, and now and then in between,
// until it returns true or ctx ends; then it returns ctx's error.
func waitFile(ctx context.Context, l looks, f *os.File, ready func(fd int) bool) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = f.SetReadDeadline(time.Unix(1, 0)) // fails if it is not watched, and then sleep ends
	})
	defer stop()
	for look := l.first; ; look = min(2*look, l.last) {
		watched := f.SetReadDeadline(time.Now().Add(look)) == nil
		// After setting the deadline: if ctx ends from here on, AfterFunc's deadline replaces ours.
		done := false
		if ctx.Err() != nil {
			// One look in any case: what is there already is not refused for the lack of time.
			if err := raw.Control(func(fd uintptr) { done = ready(int(fd)) }); err != nil || done {
				return err
			}
			return ctx.Err()
		}
		if watched {
			err = raw.Read(func(fd uintptr) bool {
				done = ready(int(fd))
				return done
			})
		} else { // a file that cannot be polled, such as a plain one
			err = raw.Control(func(fd uintptr) { done = ready(int(fd)) })
			if err == nil && !done {
				err = sleep(ctx, look)
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
