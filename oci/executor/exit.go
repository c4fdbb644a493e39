// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/wire"
)

const (
	// drainTime is how long a process that outlived its container may still write
	// to the log.
	drainTime = 200 * time.Millisecond

	// killTime bounds a kill of all that is left of a container. A process that does
	// not go in this time is in an uninterruptible sleep.
	killTime = 10 * time.Second

	// reapedTime is how long somebody else may take to reap a process that has ended
	// and whose status we cannot read. A pid 1 that is no init takes seconds.
	reapedTime = 5 * time.Second
)

// ended deals with the end of a container's first process: first the exit file,
// then the message; all else comes after and delays neither.
func (x *Executor) ended(c *container) {
	defer x.recoverTo("end of container "+c.id, nil)
	c.mu.Lock()
	pidfd, process := c.pidfd, c.rec.Process
	c.mu.Unlock()
	if pidfd < 0 {
		return
	}
	exit := x.collect(pidfd, process)
	exit.ID = c.id
	exit.OOMKilled = x.oomKilled(c, exit) && exit.Code != 0
	x.settle(x.files.exit(c.id, ""), pidfd, process, exit)

	// What it wrote before it ended is in the pipe now. It belongs into the log
	// before anybody is told of the end, but a log on a dead disk must not hide it.
	c.tail.catchUpWithin(drainTime)

	c.mu.Lock()
	c.state, c.exit = wire.Exited, exit
	close(c.exited)
	c.mu.Unlock()
	x.publish(exit)
	x.afterEnd(c)
}

// afterEnd is what follows the message. It is done again by the next executor if
// this one dies in the middle.
func (x *Executor) afterEnd(c *container) {
	defer close(c.over)
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	if err := x.killGroup(ctx, c); err != nil {
		klog.ErrorS(err, "processes of an ended container are left", "container", c.id)
	}
	// What the killed ones wrote; and a pipe nobody has open is at its end.
	var wait time.Duration
	if c.tail.catchUpWithin(drainTime) {
		waitAtMost(c.tail.drained, drainTime)
		wait = drainTime
	}
	ended := c.tail.end()
	if waitAtMost(ended, wait) {
		x.letGoOfEnded(c)
		return
	}
	klog.InfoS("log of an ended container does not take what was written; that waits, and the container's end does not", "container", c.id)
	go func() {
		<-ended
		c.op.Lock() // it may be being deleted
		defer c.op.Unlock()
		x.letGoOfEnded(c)
	}()
}

// letGoOfEnded lets go of what was held for a container whose log has ended.
func (x *Executor) letGoOfEnded(c *container) {
	if c.tail.left() {
		klog.InfoS("a process outside the container's cgroup still has its output open: what it writes is thrown away", "container", c.id)
	}
	if err := x.release(c); err != nil {
		klog.ErrorS(err, "keeper still holds an ended container", "container", c.id)
		return // its descriptors stay open with it
	}
	c.tail.released()
	c.mu.Lock()
	defer c.mu.Unlock()
	x.closePidfdLocked(c)
	if c.stdin >= 0 {
		unix.Close(c.stdin)
		c.stdin = -1
	}
}

// +checklocks:c.mu
func (x *Executor) closePidfdLocked(c *container) {
	if c.pidfd < 0 {
		return
	}
	x.poller.forget(c.pidfd, c.token)
	unix.Close(c.pidfd)
	c.pidfd, c.token = -1, 0
}

// waitAtMost waits for done, and says whether it came.
func waitAtMost(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// settle makes an exit durable, then reaps the process if it is our child. A file
// that cannot be written leaves the zombie, which is then the only copy; one whose
// folder is gone is of a container that was deleted, and nobody will ask.
func (x *Executor) settle(path string, pidfd int, process wire.Created, exit *wire.Exit) {
	told := false
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := writeExit(path, exit)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			break
		}
		if !told {
			klog.ErrorS(err, "exit file cannot be written; the process stays a zombie until it can", "path", path)
		}
		told = true
		time.Sleep(wait) //nolint:forbidigo // there is no event for a tmpfs that has room again
	}
	if err := reap(pidfd); err != nil && !errors.Is(err, unix.ECHILD) {
		klog.ErrorS(err, "reap", "pid", process.PID)
	}
	_ = remove(x.files.keeperExit(key(process)))
}

// collect finds out how a process has ended, whoever its parent is.
//
// Preconditions: pidfd is readable. A child of ours stays a zombie.
func (x *Executor) collect(pidfd int, process wire.Created) *wire.Exit {
	if status, ended, err := peek(pidfd); err == nil && ended {
		return exitOf(process, status, time.Now())
	}
	// The child of an executor that has died is the keeper's, which writes a file
	// before it reaps: there is either a zombie that says it, or a file.
	if stat, err := readStat(process.PID); err == nil && stat.start == process.Start && stat.state == 'Z' {
		return exitOf(process, unix.WaitStatus(stat.code), time.Now())
	}
	if status, at, err := x.files.readKeeperExit(process); err == nil {
		return exitOf(process, status, at)
	}
	// The child of a keeper that has died is pid 1's. The kernel tells what became of
	// it, from 6.15 on, once it is reaped.
	if err := awaitReaped(pidfd); err != nil {
		klog.ErrorS(err, "process has ended, and nobody reaps it", "pid", process.PID)
	}
	if status, ok := exitInfo(pidfd); ok {
		return exitOf(process, status, time.Now())
	}
	return lost(process)
}

// gone is the exit of a process that was not there any more when this executor
// looked for it: the keeper may have written it down before it ended as well.
func (x *Executor) gone(process wire.Created) *wire.Exit {
	if status, at, err := x.files.readKeeperExit(process); err == nil {
		return exitOf(process, status, at)
	}
	return lost(process)
}

// lost is the exit of a process that nobody could ask.
func lost(process wire.Created) *wire.Exit {
	return &wire.Exit{
		PID: process.PID, Start: process.Start, Code: 255, At: time.Now(), Lost: true,
		Reason: fmt.Sprintf("process %d ended while both the executor and the keeper were dead, and the kernel no longer knows how", process.PID),
	}
}

// awaitReaped waits until the process is reaped: the pidfd hangs up then (kernel
// 6.9; before, the wait ends without effect).
func awaitReaped(pidfd int) error {
	deadline := time.Now().Add(reapedTime)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errors.New("not reaped in time")
		}
		fds := []unix.PollFd{{Fd: int32(pidfd)}} // no events asked: only the hang-up
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 && fds[0].Revents&unix.POLLHUP != 0 {
			return nil
		}
	}
}

func exitOf(process wire.Created, status unix.WaitStatus, at time.Time) *wire.Exit {
	e := &wire.Exit{PID: process.PID, Start: process.Start, At: at}
	if status.Signaled() {
		e.Signal = int(status.Signal())
		e.Code = 128 + e.Signal
	} else {
		e.Code = status.ExitStatus()
	}
	return e
}

// killGroup kills every process in a container's cgroup and below. A cgroup that
// is gone is no error.
func (x *Executor) killGroup(ctx context.Context, c *container) error {
	group, err := c.group()
	if err != nil || len(group.Paths()) == 0 {
		return err
	}
	return group.Kill(ctx)
}

func (c *container) group() (cgroup.Group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.rec.Cgroup) == 0 {
		return cgroup.Group{}, nil
	}
	return cgroup.FromPaths(c.rec.Cgroup)
}
