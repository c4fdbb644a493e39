// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
)

// reopenTime is how long a reopen waits for what is being written to the old file.
const reopenTime = 2 * time.Second

// tail is the end of a container's log: its streams, the file they go to and
// where that stands. At rest it is a few words; a line in progress is the only
// buffer it may have.
//
// It has two locks. Who moves bytes has the turn, and with it io: so there is one
// at a time, and it may hang in the log's file system for as long as that likes.
// mu is for all that must go on meanwhile, and is never held over I/O: sinks, the
// end of streams, the end of the container. What needs the turn waits for it with
// a deadline (catchUpWithin, reopen), or in a goroutine of its own that is left
// behind until the file system answers (end, free).
type tail struct {
	id   string
	path string // of its tail file
	max  int    // bytes of content in a record
	p    *pump

	turn turn
	io   sync.Mutex // locked by the one who has the turn, and by nobody else: see enter

	// -1: none
	log int // +checklocks:io
	// of log
	file fileID // +checklocks:io
	// where the next record goes
	off int64 // +checklocks:io
	// lines in progress, and records that the log did not take
	line [2][]byte // +checklocks:io
	// see markLost
	mark [2]int64 // +checklocks:io
	// there are such records in line
	todo [2]bool // +checklocks:io
	// behind off is a part of a record
	torn bool    // +checklocks:io
	fail failure // +checklocks:io
	// one that could not be ended, since the tail file could not be written
	kept *visit // +checklocks:io

	telling sync.Mutex // held while the keeper is told which descriptors to hold; before mu

	mu sync.Mutex
	// stdout and stderr, non-blocking; -1: none or ended
	in [2]int // +checklocks:mu
	// of the poller; 0: not watched
	token [2]int32 // +checklocks:mu
	// somebody reads from in
	using [2]bool // +checklocks:mu
	// to be closed when they have; -1: none
	used [2]int // +checklocks:mu
	// a visit will come by itself
	retry [2]bool // +checklocks:mu
	// attached clients
	sinks []*sink // +checklocks:mu
	// the log has ended
	over bool // +checklocks:mu
	// what still comes is thrown away
	discard bool // +checklocks:mu
	// see end; nil: not yet called
	ending chan struct{} // +checklocks:mu
	// the container has been forgotten
	deleted bool // +checklocks:mu
	// the journal of the visit under way
	owns *journal // +checklocks:mu
	// somebody waited in vain for the turn that is not yet over
	slow bool // +checklocks:mu
	// log, for the keeper
	shown int // +checklocks:mu
	// the keeper holds our descriptors: none may be closed
	held bool // +checklocks:mu
	// descriptors to close once it does not
	ended   []int         // +checklocks:mu
	drained chan struct{} // closed when both streams have ended or the log was closed
}

func newTail(p *pump, id, path string, lineMax int) *tail {
	if lineMax <= 0 || lineMax > lineCap {
		lineMax = crilog.MaxLine
	}
	return &tail{
		id: id, path: path, max: lineMax, p: p, turn: newTurn(),
		in: [2]int{-1, -1}, used: [2]int{-1, -1}, log: -1, shown: -1, drained: make(chan struct{}),
	}
}

// enter waits for the turn.
//
// +checklocksacquire:t.io
func (t *tail) enter() {
	t.turn.take()
	t.io.Lock() // free: it is locked by the turn's holder alone
}

// enterWithin waits for the turn at most d, and says whether it got it.
//
// +checklocksignore
func (t *tail) enterWithin(d time.Duration) bool {
	if !t.turn.takeWithin(d) {
		return false
	}
	t.io.Lock()
	return true
}

// leave gives the turn to the next.
//
// +checklocksrelease:t.io
func (t *tail) leave() {
	t.mu.Lock()
	t.slow = false
	t.mu.Unlock()
	t.io.Unlock()
	t.turn.give()
}

// open gives the tail what it is to move.
func (t *tail) open(in [2]int, log opened, held bool) {
	t.enter()
	defer t.leave()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.in, t.held = in, held
	t.log, t.shown, t.file, t.off = log.fd, log.fd, log.file, log.size
}

// start watches the streams. The descriptors stay the tail's. Again is no error:
// what could not be watched the last time is now.
func (t *tail) start() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.in {
		if t.in[s] < 0 || t.token[s] != 0 {
			continue
		}
		token, err := t.p.poller.watch(t.in[s], unix.EPOLLIN|unix.EPOLLONESHOT, func(uint32) { go t.visit(s) })
		if err != nil {
			return err
		}
		t.token[s] = token
	}
	t.endedLocked()
	return nil
}

// stream returns the descriptor of a stream for a while in which it is not closed,
// -1 if it has ended. See putBack.
func (t *tail) stream(s int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.using[s] = t.in[s] >= 0
	return t.in[s]
}

func (t *tail) putBack(s int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.using[s] = false
	if fd := t.used[s]; fd >= 0 {
		t.used[s] = -1
		unix.Close(fd)
	}
}

func (t *tail) endStream(s int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.endStreamLocked(s)
}

// +checklocks:t.mu
func (t *tail) endStreamLocked(s int) {
	fd := t.forgetLocked(s)
	if fd >= 0 {
		t.closeLocked(fd)
	}
	t.endedLocked()
}

// forgetLocked takes a stream from the tail. The descriptor is the caller's to close.
//
// +checklocks:t.mu
func (t *tail) forgetLocked(s int) int {
	fd := t.in[s]
	if t.token[s] != 0 {
		t.p.poller.forget(fd, t.token[s])
	}
	t.in[s], t.token[s] = -1, 0
	return fd
}

// closeLocked closes a stream's descriptor, or leaves it for later if the keeper
// holds it.
//
// +checklocks:t.mu
func (t *tail) closeLocked(fd int) {
	if t.held {
		t.ended = append(t.ended, fd)
		return
	}
	unix.Close(fd)
}

// dropLog gives up the log file.
//
// +checklocks:t.io
func (t *tail) dropLog() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.log < 0 {
		return
	}
	if t.held {
		t.ended = append(t.ended, t.log)
	} else {
		t.p.close(t.log)
	}
	t.log, t.shown = -1, -1
}

// released says that the keeper holds nothing of this container any more.
func (t *tail) released() {
	t.mu.Lock()
	list := t.ended
	t.held, t.ended = false, nil
	t.mu.Unlock()
	for _, fd := range list {
		t.p.close(fd)
	}
}

// +checklocks:t.mu
func (t *tail) endedLocked() {
	if t.in[0] < 0 && t.in[1] < 0 {
		t.drainedLocked()
	}
}

// +checklocks:t.mu
func (t *tail) drainedLocked() {
	select {
	case <-t.drained:
	default:
		close(t.drained)
		for _, k := range t.sinks {
			k.finish()
		}
	}
}

// hurry ends the waiting for streams to end.
func (t *tail) hurry() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drainedLocked()
}

// end ends the log: what was written before is moved, lines in progress are
// written as they are, and what still comes is thrown away until the last writer
// has gone. done is closed then. That takes as long as the file system likes, and,
// where the log cannot be written, until the pump's patience is over.
//
// Again is no error, neither in the same executor nor in the next.
func (t *tail) end() (done <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ending != nil {
		return t.ending
	}
	ending := make(chan struct{})
	t.ending = ending
	go func() {
		defer close(ending)
		for {
			t.enter()
			ended := t.endNow()
			t.leave()
			if ended {
				return
			}
			time.Sleep(retryMost) //nolint:forbidigo // there is no event for a disk that has room again
		}
	}()
	return ending
}

// endNow is false where the log has yet to take something.
//
// +checklocks:t.io
func (t *tail) endNow() bool {
	if !t.catchUp() && t.patient() {
		return false
	}
	// Not without a journal, though none is needed for it: they bound how many may
	// hang in a file system.
	v := t.kept
	if v == nil {
		v = t.p.borrow(t.id, t.file.Dev)
	}
	defer t.p.giveBack(v)
	t.kept = nil
	t.look()
	// The same place and, times having one length, the same bytes but for the time:
	// whoever does it again after a crash changes nothing else.
	for s := range t.line {
		records, rest := crilog.Append(nil, streamName(s), time.Now(), t.line[s], t.max)
		records = crilog.AppendRest(records, streamName(s), time.Now(), rest)
		n, err := t.put(t.off, records)
		t.off += int64(n)
		if err != nil {
			t.drop(len(t.line[s]) - contentOf(records[:n]))
		}
		t.line[s], t.todo[s] = nil, false
	}
	t.saveLast(v.j)
	t.dropLog()
	if t.fail.dropped > 0 {
		t.p.logf("log of container %s has ended; %d bytes were dropped", t.id, t.fail.dropped)
	}
	t.fail = failure{}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over, t.discard = true, true
	t.drainedLocked()
	return true
}

// saveLast writes the tail file of a log that has ended, unless nobody will read it.
//
// +checklocks:t.io
func (t *tail) saveLast(j *journal) {
	t.mu.Lock()
	deleted := t.deleted
	t.mu.Unlock()
	if !deleted {
		if err := t.save(); err != nil {
			t.p.logf("log of container %s: %v", t.id, err)
		}
	}
	j.mem.ownerLen.Store(0) // it may be one that could not be given back before
}

// left says whether a stream of a log that has ended is still open somewhere.
func (t *tail) left() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.in[0] >= 0 || t.in[1] >= 0
}

// free closes what is still open, for a container that is being deleted. What is
// being thrown away goes on being so until the last writer has gone; a log that
// does not take what is being written to it is left to itself: it is closed when
// it has taken it, or the disk is given up.
func (t *tail) free() {
	t.mu.Lock()
	t.deleted = true
	if t.owns != nil {
		// Another container may have this name by the time an executor looks for the owner.
		t.owns.mem.ownerLen.Store(0)
	}
	ending := t.ending
	t.mu.Unlock()
	if ending != nil {
		return // end does the rest
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.enter()
		defer t.leave()
		if t.kept != nil {
			t.kept.j.mem.ownerLen.Store(0)
			t.p.giveBack(t.kept)
			t.kept = nil
		}
		t.dropLog()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.over = true
		for s := range t.in {
			t.endStreamLocked(s)
		}
		t.drainedLocked()
	}()
	waitAtMost(done, drainTime)
}

// reopen makes the log go on in the file that path names now, at a boundary
// between records: no visit is under way. keep has the keeper hold the new file
// before the old one is given up. Where the old file does not take what is being
// written to it, or the new one cannot be opened, nothing is changed.
//
// +checklocksignore: see enterWithin
func (t *tail) reopen(path string, keep func(log int) error) error {
	o, err := t.p.within(openTime, func() (opened, error) { return openLog(path) }, nil)
	if err != nil {
		return err
	}
	if !t.enterWithin(reopenTime) {
		t.p.close(o.fd)
		return errLogStuck
	}
	defer t.leave()
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	over := t.over || t.ending != nil
	t.mu.Unlock()
	if over {
		t.p.close(o.fd)
		return errLogClosed
	}
	if err := keep(o.fd); err != nil {
		t.p.close(o.fd)
		return err
	}
	if t.log >= 0 {
		t.p.close(t.log)
	}
	t.mu.Lock()
	t.shown = o.fd
	t.mu.Unlock()
	t.log = o.fd
	t.file, t.off, t.torn = o.file, o.size, false
	if t.kept != nil {
		t.kept.j.slot().off = t.off
	}
	t.fail.next = time.Time{}
	return t.save()
}

// hold has the keeper hold the tail's descriptors, by keep, log being the file's.
func (t *tail) hold(keep func(log int) error) error {
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	t.held = true
	log := t.shown
	t.mu.Unlock()
	return keep(log)
}

// adoptLate gives the tail a log file that was long in coming. keep has the keeper
// hold it.
func (t *tail) adoptLate(o opened, keep func(log int) error) error {
	t.enter()
	defer t.leave()
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	over, held := t.over || t.deleted || t.log >= 0, t.held
	t.mu.Unlock()
	if over {
		t.p.close(o.fd)
		return errLogClosed
	}
	if held {
		if err := keep(o.fd); err != nil {
			t.p.close(o.fd)
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log, t.shown = o.fd, o.fd
	return nil
}

// deliver offers what a stream brought to the clients that are attached.
func (t *tail) deliver(s int, b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.sinks {
		if k.stream == s {
			k.offer(b)
		}
	}
}
