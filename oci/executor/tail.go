// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
)

// tail is the end of a container's log: its streams, the file they go to and
// where that stands. At rest it is a few words; a line in progress is the only
// buffer it may have.
type tail struct {
	id   string
	path string // of its tail file
	max  int    // bytes of content in a record
	p    *pump

	mu      sync.Mutex
	in      [2]int        // +checklocks:mu stdout and stderr, non-blocking; -1: none or ended
	token   [2]int32      // +checklocks:mu of the poller; 0: not watched
	log     int           // +checklocks:mu -1: none
	file    fileID        // +checklocks:mu of log
	off     int64         // +checklocks:mu where the next record goes
	line    [2][]byte     // +checklocks:mu lines in progress
	mark    [2]int64      // +checklocks:mu see markLost
	sinks   []*sink       // +checklocks:mu attached clients
	closed  bool          // +checklocks:mu the container has ended, and its log with it
	discard bool          // +checklocks:mu what still comes is thrown away
	drained chan struct{} // closed when both streams have ended or the log was closed
	failing bool          // +checklocks:mu the last write failed, and was reported
	held    bool          // +checklocks:mu the keeper holds our descriptors: none may be closed
	ended   []int         // +checklocks:mu descriptors to close once it does not
}

// pump moves what containers write into their logs.
type pump struct {
	poller   *poller
	journals chan *journal // free ones: as many visits at a time

	mu        sync.Mutex
	written   uint64 // +checklocks:mu bytes
	dropped   uint64 // +checklocks:mu bytes no log file would take
	discarded uint64 // +checklocks:mu bytes after the end
	null      int    // /dev/null
	logf      func(format string, args ...any)
}

// share is how many chunks one visit takes before others have their turn.
const share = 16

func newTail(p *pump, id, path string, lineMax int) *tail {
	if lineMax <= 0 || lineMax > lineCap {
		lineMax = crilog.MaxLine
	}
	return &tail{
		id: id, path: path, max: lineMax, p: p,
		in: [2]int{-1, -1}, log: -1, drained: make(chan struct{}),
	}
}

// start watches the streams. The descriptors stay the tail's.
func (t *tail) start() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.in {
		if t.in[s] < 0 {
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

// visit moves what stream s has, and asks to be told of more.
func (t *tail) visit(s int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.in[s] < 0 {
		return
	}
	if _, err := t.moveLocked(s, share); err != nil {
		t.p.logf("log of container %s: %v", t.id, err)
	}
	if t.in[s] < 0 {
		return
	}
	if err := t.p.poller.rearm(t.in[s], t.token[s], unix.EPOLLIN|unix.EPOLLONESHOT); err != nil {
		t.p.logf("log of container %s: %v", t.id, err)
	}
}

// moveLocked moves up to limit chunks of stream s and says whether there is more.
//
// +checklocks:t.mu
func (t *tail) moveLocked(s, limit int) (more bool, err error) {
	if t.discard {
		return t.discardLocked(s, limit)
	}
	j := <-t.p.journals
	defer func() { t.p.journals <- j }()
	t.shrunkLocked()
	j.own(t)
	more = true
	var moved uint64
	for range limit {
		var n int
		n, err = j.take(t, s)
		moved += uint64(n)
		if errors.Is(err, unix.EAGAIN) {
			more, err = false, nil
			break
		}
		if n == 0 {
			more = false
			t.closeStreamLocked(s) // at its end, or of no further use
			break
		}
		if err != nil {
			break // these bytes are lost; the container must not wait for ever with the next
		}
	}
	t.p.mu.Lock()
	t.p.written += moved
	t.p.mu.Unlock()
	return more, errors.Join(err, j.disown(t))
}

// shrunkLocked follows a file that somebody truncated: to write on at the old
// place would leave a hole of zeros.
//
// +checklocks:t.mu
func (t *tail) shrunkLocked() {
	t.off = min(t.off, t.size())
}

// size returns how long the log file is, or, where nobody knows, more than that.
//
// Preconditions: t.mu is held, or the tail is not yet shared.
func (t *tail) size() int64 {
	var st unix.Stat_t
	if t.log < 0 || unix.Fstat(t.log, &st) != nil {
		return math.MaxInt64
	}
	return st.Size
}

// discardLocked throws away what a process that outlived the container writes:
// it would block for ever on a full pipe, since its own descriptor, opened for
// reading too, keeps the pipe from breaking.
//
// +checklocks:t.mu
func (t *tail) discardLocked(s, limit int) (bool, error) {
	for range limit {
		n, err := unix.Splice(t.in[s], nil, t.p.null, nil, chunk, unix.SPLICE_F_NONBLOCK)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case err != nil || n == 0:
			t.closeStreamLocked(s)
			return false, nil
		default:
			t.p.mu.Lock()
			t.p.discarded += uint64(n)
			t.p.mu.Unlock()
		}
	}
	return true, nil
}

// +checklocks:t.mu
func (t *tail) closeStreamLocked(s int) {
	if t.in[s] < 0 {
		return
	}
	if t.token[s] != 0 {
		t.p.poller.forget(t.in[s], t.token[s])
	}
	fd := t.in[s]
	t.in[s], t.token[s] = -1, 0
	t.closeLocked(fd)
	t.endedLocked()
}

// closeLocked closes a descriptor, or leaves it for later if the keeper holds it.
//
// +checklocks:t.mu
func (t *tail) closeLocked(fd int) {
	if t.held {
		t.ended = append(t.ended, fd)
		return
	}
	unix.Close(fd)
}

// released says that the keeper holds nothing of this container any more.
func (t *tail) released() {
	t.mu.Lock()
	t.held = false
	t.mu.Unlock()
	t.closeEnded()
}

// closeEnded closes what was left open for the keeper's sake.
func (t *tail) closeEnded() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, fd := range t.ended {
		unix.Close(fd)
	}
	t.ended = nil
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

// catchUpWithin is catchUp, but does not wait for a dead disk longer than d.
func (t *tail) catchUpWithin(d time.Duration) {
	done := make(chan struct{})
	go func() {
		t.catchUp()
		close(done)
	}()
	waitAtMost(done, d)
}

// catchUp moves all that was written before it was called: no pipe holds more
// than 1 MiB, so a process that goes on writing does not keep it for ever.
func (t *tail) catchUp() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.in {
		if t.in[s] < 0 {
			continue
		}
		if _, err := t.moveLocked(s, (1<<20)/chunk); err != nil {
			t.p.logf("log of container %s: %v", t.id, err)
		}
	}
}

// close ends the log: lines in progress are written as they are, and what still
// comes is thrown away until the last writer has gone. It says whether one is left.
func (t *tail) close() (left bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.closed = true
	t.shrunkLocked()
	// The same place and, times having one length, the same bytes but for the time:
	// whoever does it again after a crash changes nothing else.
	for s := range t.line {
		records := crilog.AppendRest(nil, streamName(s), time.Now(), t.line[s])
		t.off = t.write(t.off, records)
		t.line[s] = nil
	}
	if err := t.save(); err != nil {
		t.p.logf("log of container %s: %v", t.id, err)
	}
	if t.log >= 0 {
		t.closeLocked(t.log)
		t.log = -1
	}
	t.discard = true
	left = t.in[0] >= 0 || t.in[1] >= 0
	t.drainedLocked()
	return left
}

// free closes what is still open, for a container that is being deleted. What is
// being thrown away goes on being so until the last writer has gone.
func (t *tail) free() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for s := range t.in {
		if !t.discard {
			t.closeStreamLocked(s)
		}
	}
	if t.log >= 0 {
		t.closeLocked(t.log)
		t.log = -1
	}
	t.drainedLocked()
}

// write puts records at off and returns the offset after those that could be
// written; the others are counted.
//
// Preconditions: t.mu is held, or the tail is not yet shared.
func (t *tail) write(off int64, records []byte) int64 {
	if t.log < 0 {
		return off
	}
	at := off
	for rest := records; len(rest) > 0; {
		n, err := unix.Pwrite(t.log, rest, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return t.writeFailed(off, records[:at-off], len(records), err)
		}
		rest, at = rest[n:], at+int64(n)
	}
	if len(records) > 0 {
		t.failing = false
	}
	return at
}

// writeFailed deals with a write at off of which only a part was done: no part of a
// record stays, since what comes next may be shorter.
func (t *tail) writeFailed(off int64, written []byte, all int, err error) int64 {
	whole := bytes.LastIndexByte(written, '\n') + 1
	end := off + int64(whole)
	if whole < len(written) {
		err = errors.Join(err, unix.Ftruncate(t.log, end))
	}
	t.p.mu.Lock()
	t.p.dropped += uint64(all - whole)
	t.p.mu.Unlock()
	if !t.failing {
		t.failing = true
		t.p.logf("log of container %s: %d bytes dropped, and more until it can be written again: %v", t.id, all-whole, err)
	}
	return end
}

// reopen makes the log go on in the file that path names now, at a boundary
// between records: no visit is under way while the lock is held. keep has the
// keeper hold the new file before the old one is given up.
func (t *tail) reopen(path string, keep func(log int) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errLogClosed
	}
	fd, size, id, err := openLog(path)
	if err != nil {
		return err
	}
	if err := keep(fd); err != nil {
		unix.Close(fd)
		return err
	}
	if t.log >= 0 {
		unix.Close(t.log)
	}
	t.log, t.file, t.off = fd, id, size
	return t.save()
}

// openLog opens or creates a log file.
func openLog(path string) (fd int, size int64, id fileID, err error) {
	f, size, err := crilog.Open(path, 0o640)
	if err != nil {
		return -1, 0, id, err
	}
	defer f.Close()
	fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 5)
	if err != nil {
		return -1, 0, id, fmt.Errorf("dup %s: %w", path, err)
	}
	id, err = idOf(fd)
	return fd, size, id, err
}

func idOf(fd int) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fileID{}, fmt.Errorf("fstat: %w", err)
	}
	return fileID{Dev: st.Dev, Ino: st.Ino}, nil
}

// findLog opens the file of a log whose descriptor was lost: the one at path, or,
// if that has been rotated since, the one in the same folder that has its id.
func findLog(path string, id fileID) (fd int, size int64, err error) {
	fd, size, now, err := openLog(path)
	if err != nil || now == id || id == (fileID{}) {
		return fd, size, err
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	for _, e := range entries {
		if e.Type()&fs.ModeType != 0 {
			continue
		}
		other, otherSize, is, err := openLog(filepath.Join(filepath.Dir(path), e.Name()))
		if err != nil {
			continue
		}
		if is == id {
			unix.Close(fd)
			return other, otherSize, nil
		}
		unix.Close(other)
	}
	return fd, size, nil
}

// The tail file: magic, file id, offset, length and bytes of both lines, marks in
// the length's highest bits. It is written while a journal still owns the container, so a torn write is repaired.
const (
	tailMagic = 0x6c696174 // "tail"
	markShift = 62
)

func (t *tail) save() error {
	b := make([]byte, 0, 48+len(t.line[0])+len(t.line[1]))
	b = binary.LittleEndian.AppendUint64(b, tailMagic)
	b = binary.LittleEndian.AppendUint64(b, t.file.Dev)
	b = binary.LittleEndian.AppendUint64(b, t.file.Ino)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.off))
	for s, l := range t.line {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(l))|uint64(t.mark[s])<<markShift)
	}
	b = append(append(b, t.line[0]...), t.line[1]...)
	f, err := os.OpenFile(t.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Close())
}

// load reads what save wrote. A tail that was never saved is no error.
//
// Preconditions: the tail is not yet shared.
func (t *tail) load() error {
	b, err := os.ReadFile(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var head [6]uint64
	for i := range head {
		if len(b) < 8 {
			return fmt.Errorf("%s: %w", t.path, errTornTail)
		}
		head[i], b = binary.LittleEndian.Uint64(b), b[8:]
	}
	var mark [2]int64
	for s := range mark {
		mark[s] = int64(head[4+s] >> markShift)
		head[4+s] &^= 3 << markShift
	}
	if head[0] != tailMagic || head[3] > math.MaxInt64 || head[4] > lineCap || head[5] > lineCap || head[4]+head[5] > uint64(len(b)) {
		return fmt.Errorf("%s: %w", t.path, errTornTail)
	}
	t.file = fileID{Dev: head[1], Ino: head[2]}
	t.off, t.mark = int64(head[3]), mark
	for s, n := range head[4:6] {
		if n > 0 {
			t.line[s] = slices.Clone(b[:n])
		}
		b = b[n:]
	}
	return nil
}

// deliver offers what a stream brought to the clients that are attached.
//
// Preconditions: t.mu is held, or the tail is not yet shared.
func (t *tail) deliver(s int, b []byte) {
	for _, k := range t.sinks {
		if k.stream == s {
			k.offer(b)
		}
	}
}
