// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// lingerTime is how long a visit that is at full speed waits for more: less than it
// takes to end it and to begin the next.
const lingerTime = 300 * time.Microsecond

// visit moves what stream s has, and asks to be told of more.
func (t *tail) visit(s int) {
	t.enter()
	defer t.leave()
	again, err := t.move(s, share, true)
	if err != nil {
		t.p.logf("log of container %s: %v", t.id, err)
	}
	if again {
		t.comeAgain(s)
	}
	if again && t.patient() {
		return // the container waits, in its pipe
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.in[s] < 0 || t.token[s] == 0 {
		return
	}
	if err := t.p.poller.rearm(t.in[s], t.token[s], unix.EPOLLIN|unix.EPOLLONESHOT); err != nil {
		t.p.logf("log of container %s: %v", t.id, err)
	}
}

// comeAgain makes a visit without being asked.
//
// +checklocks:t.io
func (t *tail) comeAgain(s int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.retry[s] {
		return
	}
	t.retry[s] = true
	wait := t.fail.wait
	if wait == 0 {
		wait = retryMost // it is not the log
	}
	time.AfterFunc(wait, func() {
		t.mu.Lock()
		t.retry[s] = false
		t.mu.Unlock()
		t.visit(s)
	})
}

// catchUpWithin moves all that was written before it was called, and says whether
// that is done after d at most. Where a log hangs it is waited for once.
func (t *tail) catchUpWithin(d time.Duration) bool {
	t.mu.Lock()
	slow := t.slow
	t.mu.Unlock()
	if slow {
		return false
	}
	began := time.Now()
	if t.enterWithin(d) {
		done := make(chan bool, 1)
		go t.catchUpAndLeave(done)
		deadline := time.NewTimer(d - time.Since(began))
		defer deadline.Stop()
		select {
		case all := <-done:
			return all
		case <-deadline.C:
		}
	}
	t.mu.Lock()
	t.slow = true
	t.mu.Unlock()
	return false
}

// +checklocksrelease:t.io
func (t *tail) catchUpAndLeave(done chan<- bool) {
	defer t.leave()
	done <- t.catchUp()
}

// catchUp is false where the log did not take everything. No pipe holds more than
// 1 MiB, so a process that goes on writing does not keep it for ever.
//
// +checklocks:t.io
func (t *tail) catchUp() bool {
	all := true
	for s := range 2 {
		again, err := t.move(s, (1<<20)/chunk, false)
		if err != nil {
			t.p.logf("log of container %s: %v", t.id, err)
		}
		all = all && !again
	}
	return all
}

// move moves up to limit chunks of stream s, or, with goOn, more while that keeps
// nobody waiting. again says that it must be called again without being asked.
//
// +checklocks:t.io
func (t *tail) move(s, limit int, goOn bool) (again bool, err error) {
	t.mu.Lock()
	discard, none := t.discard, t.in[s] < 0
	t.mu.Unlock()
	switch {
	case discard:
		return false, t.throwAway(s, limit)
	case none && !t.todo[s] && t.kept == nil:
		return false, nil
	}
	v := t.begin()
	again, moved, err := t.moveBy(v, s, limit, goOn)
	t.p.written.Add(moved)
	if !t.finish(v) {
		again = true
	}
	return again, err
}

// begin begins a visit, or goes on with one that could not be ended.
//
// +checklocks:t.io
func (t *tail) begin() *visit {
	v := t.kept
	if v == nil {
		v = t.p.borrow(t.id, t.file.Dev)
	}
	t.look()
	if t.kept == nil {
		v.j.own(t)
	} else {
		v.j.slot().off = t.off // the file may have changed
	}
	t.kept = nil
	return v
}

// finish ends a visit and says whether it could. Without a tail file that says where
// the log stands the journal is the only one who knows: it stays with the tail.
//
// +checklocks:t.io
func (t *tail) finish(v *visit) bool {
	err := v.j.disown(t)
	if err == nil {
		t.p.giveBack(v)
		return true
	}
	if t.p.keep(v) {
		t.p.logf("log of container %s keeps a journal until its tail file can be written: %v", t.id, err)
	}
	t.kept = v
	return false
}

// +checklocks:t.io
func (t *tail) moveBy(v *visit, s, limit int, goOn bool) (again bool, moved uint64, err error) {
	for n := 0; n < limit || goOn && t.p.queued.Load() == 0 && t.turn.wanted.Load() == 0; n++ {
		v.beat.Store(t.p.now())
		if n%share == share-1 {
			// Who never yields is taken its processor away by the Go runtime at each system
			// call, after 10 ms, which costs two switches of threads.
			runtime.Gosched()
		}
		if t.todo[s] && t.patient() {
			// Nothing is taken while records wait to be written.
			if err := v.j.retry(t, s); err != nil {
				return true, moved, nil // told by failed
			}
			continue
		}
		k, err := v.j.take(t, s)
		moved += uint64(k)
		switch {
		case err == nil && k > 0:
		case errors.Is(err, unix.EAGAIN):
			if t.todo[s] {
				_ = v.j.retry(t, s) // told by failed
				return t.todo[s], moved, nil
			}
			if moved < chunk || !goOn || t.p.queued.Load() > 0 || t.turn.wanted.Load() > 0 || !t.linger(s) {
				return false, moved, nil
			}
		case err == nil:
			t.endStream(s)
			return t.todo[s], moved, nil
		case errors.Is(err, errUnwritten):
			return true, moved, nil // told by failed
		default:
			return true, moved, err // for want of memory, say: what is in the pipe stays there
		}
	}
	return false, moved, nil
}

// linger waits a moment for a stream that is at full speed.
//
// +checklocks:t.io
func (t *tail) linger(s int) bool {
	fd := t.stream(s)
	defer t.putBack(s)
	if fd < 0 {
		return false
	}
	wait := unix.NsecToTimespec(int64(lingerTime))
	n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &wait, nil)
	return err == nil && n > 0
}

// throwAway reads what a process that outlived the container writes: it would
// block for ever on a full pipe, since its own descriptor, opened for reading too,
// keeps the pipe from breaking.
//
// +checklocks:t.io
func (t *tail) throwAway(s, limit int) error {
	fd := t.stream(s)
	if fd < 0 {
		return nil
	}
	ended := false
	for n := 0; n < limit && !ended; n++ {
		n, err := unix.Splice(fd, nil, t.p.null, nil, chunk, unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		ended = err != nil || n == 0
		t.p.discarded.Add(uint64(max(n, 0)))
	}
	t.putBack(s)
	if ended {
		t.endStream(s)
	}
	return nil
}
