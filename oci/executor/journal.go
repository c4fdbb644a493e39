// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
)

const (
	// chunk is the most that is taken from a stream at once: what a pipe holds.
	chunk = 64 << 10

	// lineCap bounds a line in progress, and so LogMax.
	lineCap = 64 << 10

	// carryCap bounds what is kept of a stream that cannot be written: what was taken
	// last, what was there before, and an LF, see shed.
	carryCap = lineCap + chunk + 64
)

// journal makes the way of log bytes from a container's pipe to its log file
// survive SIGKILL at any instruction, without a lost, doubled or torn line.
//
// It is a private pipe, which the keeper holds too, and a page-aligned file in
// the state folder, mapped: what is written to it is there for the next executor.
// One visit to a container is
//
//	        pipe ---splice--> private pipe ---read--> slot.raw ---pwrite--> log
//	1 own    owner = none; slot = where the log stands, the lines in progress; owner = id
//	2 splice bytes move at once, in the kernel: they are in one pipe or the other
//	3 n      how many they are. Killed before: it is what the private pipe holds
//	4 read   n minus what is left in the private pipe has been read
//	5 ready  with the time: from here on the same records can be made again
//	6 write  at slot.off, so that a second time changes nothing
//	7 flip   the other slot, filled with where the log stands now, becomes the slot
//	...      2 to 7 again while there is something to read; 5 to 7 to try again to
//	         write what the log did not take, which stays with the line in progress
//	8 disown the container's tail file says where its log stands; owner = none
//
// so that one word decides at each point what was done. Journals are few, not one
// for a container: a container at rest has none.
type journal struct {
	n    int
	mem  *journalMem
	r, w int // private pipe, chunk bytes
	out  []byte

	// did is told of each step of the drawing that was done. A test stops there, as
	// SIGKILL would; nil otherwise.
	did func(step string)
}

func (j *journal) done(step string) {
	if j.did != nil {
		j.did(step)
	}
}

// journalMem is mapped, and lies between executors of different versions: fields
// are never moved; a change of layout needs another file name.
type journalMem struct {
	cur      atomic.Uint32
	ownerLen atomic.Uint32 // 0: nobody's
	owner    [120]byte
	slots    [2]slot
}

type slot struct {
	off    int64 // where in the log file the next record goes
	n      int64 // bytes that are being taken; 0: not known
	at     int64 // when they were read, Unix nanoseconds
	ready  int64 // 1: raw has carry[stream]+n bytes
	stream int64 // 0: stdout, 1: stderr
	carry  [2]int64
	moving int64             // 1: bytes may be on their way, and n is not known
	mark   [2]int64          // of each stream, see markLost
	line   [2][carryCap]byte // the line in progress of each stream
	raw    [carryCap + chunk]byte
}

// The marks of a stream.
const (
	markLost = 1 << iota // the next bytes are the end of a line whose beginning was lost
	markOpen             // the stream's last record is a P: its line has not ended in the log
)

func openJournal(path string, n int, r, w int) (*journal, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := int(unsafe.Sizeof(journalMem{}))
	// All of it now: a page that is not to be had later is a SIGBUS for us, and bytes
	// that are stuck on their way for the container.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		return nil, fmt.Errorf("allocate %s: %w", path, err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &journal{n: n, mem: (*journalMem)(unsafe.Pointer(&b[0])), r: r, w: w}, nil
}

// unmap gives up the file's memory: nothing of the journal is to be used any more.
func (j *journal) unmap() error {
	return unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(j.mem)), unsafe.Sizeof(journalMem{})))
}

func (j *journal) slot() *slot { return &j.mem.slots[j.mem.cur.Load()&1] }

// owner returns the id of the container whose visit was not ended, "" if none.
func (j *journal) owner() string {
	n := min(int(j.mem.ownerLen.Load()), len(j.mem.owner))
	return string(j.mem.owner[:n])
}

// own begins a visit (1). Until the slot is the new owner's the journal has none.
//
// +checklocks:t.io
func (j *journal) own(t *tail) {
	j.mem.ownerLen.Store(0)
	sl := j.slot()
	sl.off, sl.n, sl.ready, sl.moving = t.off, 0, 0, 0
	for s := range sl.carry {
		sl.mark[s] = t.mark[s]
		sl.carry[s] = int64(copy(sl.line[s][:], t.line[s]))
	}
	copy(j.mem.owner[:], t.id)
	j.done("slot")
	t.mu.Lock()
	if !t.deleted {
		t.owns = j
		j.mem.ownerLen.Store(uint32(len(t.id)))
	}
	t.mu.Unlock()
	j.done("own")
}

// disown ends a visit (8). The journal stays owned if it fails, and must not be
// another's then.
//
// +checklocks:t.io
func (j *journal) disown(t *tail) error {
	sl := j.slot()
	t.off = sl.off
	for s := range sl.carry {
		carry := sl.line[s][:sl.carry[s]]
		t.mark[s] = sl.mark[s]
		t.line[s] = append(t.line[s][:0], carry...)
		if len(carry) == 0 || cap(t.line[s]) > 2*len(carry)+4096 {
			t.line[s] = slices.Clone(carry) // a container at rest keeps no buffer
		}
		t.todo[s] = unwritten(carry, t.max)
	}
	t.mu.Lock()
	deleted := t.deleted
	t.mu.Unlock()
	if !deleted {
		if err := t.save(); err != nil {
			return err
		}
	}
	j.done("save")
	j.mem.ownerLen.Store(0)
	t.mu.Lock()
	t.owns = nil
	t.mu.Unlock()
	j.done("disown")
	return nil
}

// take moves what stream s has, at most a chunk, into its log (2 to 7). It returns
// EAGAIN when there is nothing now, zero and nil at the end, and errUnwritten with
// what was taken when the log does not take it.
//
// +checklocks:t.io
func (j *journal) take(t *tail, s int) (n int, err error) {
	sl := j.slot()
	sl.stream = int64(s)
	atomic.StoreInt64(&sl.moving, 1)
	j.done("moving")
	n, err = j.splice(t, s)
	if err != nil || n == 0 {
		atomic.StoreInt64(&sl.moving, 0)
		return 0, err
	}
	j.done("splice")
	atomic.StoreInt64(&sl.n, int64(n))
	j.done("n")
	return n, j.finish(t)
}

func (j *journal) splice(t *tail, s int) (n int, err error) {
	fd := t.stream(s)
	defer t.putBack(s)
	if fd < 0 {
		return 0, nil
	}
	for {
		n, err := unix.Splice(fd, nil, j.w, nil, chunk, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EIO):
			return 0, nil // a terminal whose other side is closed
		default:
			return int(n), err
		}
	}
}

// retry tries again to write what the log did not take of stream s (5 to 7).
//
// +checklocks:t.io
func (j *journal) retry(t *tail, s int) error {
	sl := j.slot()
	sl.stream, sl.n = int64(s), 0
	copy(sl.raw[:], sl.line[s][:sl.carry[s]])
	sl.at = time.Now().UnixNano()
	atomic.StoreInt64(&sl.ready, 1)
	return j.finish(t)
}

// resume completes what a dead executor had begun: t is the tail of owner().
//
// +checklocks:t.io
func (j *journal) resume(t *tail) error {
	sl := j.slot()
	if !sl.sound() {
		j.drain()
		return fmt.Errorf("journal %d: not written by any executor", j.n)
	}
	t.mu.Lock()
	t.owns = j
	t.mu.Unlock()
	// Not beyond the end of a file that somebody truncated since, or of another one
	// that is there now: what lies between would be zeros.
	file := t.file
	t.look()
	if file != (fileID{}) && t.file != file {
		sl.off = t.off
	}
	sl.off = min(sl.off, t.size())
	if sl.ready == 0 && sl.n == 0 {
		n, err := pending(j.r)
		if err != nil {
			return err
		}
		sl.n = int64(n)
	}
	if sl.n > 0 || sl.ready != 0 {
		if err := j.finish(t); err != nil && !errors.Is(err, errUnwritten) {
			return err
		}
	}
	return nil
}

// sound says whether the numbers are such as an executor writes.
func (sl *slot) sound() bool {
	within := func(n, most int64) bool { return 0 <= n && n <= most }
	return sl.off >= 0 && within(sl.n, chunk) &&
		within(sl.carry[0], carryCap) && within(sl.carry[1], carryCap)
}

// forget gives up what was in a private pipe that is gone, since the keeper died
// as well. The line that it was the middle of is given up as a whole: half a line
// is worse than none. It returns how many bytes are known to be lost, at least one
// if any may be.
func (j *journal) forget() (bytes int64) {
	sl := j.slot()
	if sl.ready != 0 || sl.moving == 0 {
		return 0
	}
	s := sl.stream & 1
	bytes = max(sl.n+sl.carry[s], 1)
	sl.n, sl.moving = 0, 0
	sl.carry[s] = 0
	sl.mark[s] |= markLost
	return bytes
}

// finish is 4 to 7, from wherever it stands. What the log does not take is kept
// with the line in progress: errUnwritten says so.
//
// +checklocks:t.io
func (j *journal) finish(t *tail) error {
	sl := j.slot()
	s := int(sl.stream & 1)
	if atomic.LoadInt64(&sl.ready) == 0 {
		copy(sl.raw[:], sl.line[s][:sl.carry[s]])
		if err := j.read(sl, s); err != nil {
			j.drain()
			return err
		}
		j.done("read")
		sl.at = time.Now().UnixNano()
		atomic.StoreInt64(&sl.ready, 1)
	}
	j.done("ready")
	raw := sl.raw[:sl.carry[s]+sl.n]
	t.deliver(s, raw[sl.carry[s]:])
	off, rest, mark, err := j.write(t, s, raw, sl)
	j.done("write")

	next := &j.mem.slots[(j.mem.cur.Load()+1)&1]
	next.off, next.n, next.ready, next.moving = off, 0, 0, 0
	next.carry, next.mark = sl.carry, sl.mark
	next.mark[s] = mark
	next.carry[s] = int64(copy(next.line[s][:], rest))
	copy(next.line[1-s][:], sl.line[1-s][:sl.carry[1-s]])
	j.mem.cur.Add(1)
	t.todo[s] = err != nil || unwritten(rest, t.max)
	j.done("flip")
	return err
}

func (j *journal) read(sl *slot, s int) error {
	for {
		left, err := pending(j.r)
		if err != nil || left == 0 {
			return err
		}
		at := sl.carry[s] + sl.n - int64(left)
		if at < sl.carry[s] {
			return fmt.Errorf("journal %d: %d bytes in the pipe, %d expected", j.n, left, sl.n)
		}
		n, err := unix.Read(j.r, sl.raw[at:at+int64(left)])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("journal %d: read: %w", j.n, err)
		}
		if n == left {
			return nil
		}
	}
}

// drain empties the private pipe after an error: what is left in it would come into
// the log of the next container.
func (j *journal) drain() {
	b := j.slot().raw[:]
	for {
		n, err := unix.Read(j.r, b)
		if !errors.Is(err, unix.EINTR) && n <= 0 {
			return
		}
	}
}

// write makes records of raw and puts them into the log at sl.off. It returns where
// the next record goes, what of raw is in none, and the stream's marks. That is a
// line in progress or, with errUnwritten, lines that the log did not take as well.
// When the log has not taken anything for too long, lines are dropped: a full disk
// must not stop the container.
//
// +checklocks:t.io
func (j *journal) write(t *tail, s int, raw []byte, sl *slot) (off int64, rest []byte, mark int64, err error) {
	mark = sl.mark[s]
	if mark&markLost != 0 {
		end := bytes.IndexByte(raw, '\n')
		lost := end + 1
		if end < 0 {
			lost = len(raw)
		} else if mark&markOpen != 0 {
			lost = end // the LF ends, as an empty record, the line whose beginning is in the log
		}
		if t.fail.dropped > 0 {
			t.drop(lost)
		}
		raw = raw[lost:]
		if end < 0 {
			return sl.off, nil, mark, nil
		}
		mark &^= markLost
	}
	j.out, rest = crilog.Append(j.out[:0], streamName(s), time.Unix(0, sl.at), raw, t.max)
	ended := len(raw) - len(rest)
	off = min(sl.off, t.size()) // somebody may have truncated it: no hole of zeros
	n, err := t.put(off, j.out)
	if err != nil {
		ended, rest = 0, raw
		if n > 0 {
			ended = contentOf(j.out[:n])
			rest = raw[ended:]
		}
	}
	if ended > 0 {
		mark &^= markOpen
		if raw[ended-1] != '\n' {
			mark |= markOpen
		}
	}
	if err != nil && t.patient() {
		err = errUnwritten
	} else if err != nil {
		err = nil
		var dropped int
		_, tail := crilog.Append(nil, streamName(s), time.Time{}, rest, t.max)
		rest, mark, dropped = shed(rest, len(rest)-len(tail), mark)
		t.drop(dropped)
	}
	if cap(j.out) > 512<<10 {
		j.out = nil // grown by a flood of empty lines
	}
	return off + int64(n), rest, mark, err
}

func streamName(s int) crilog.Stream {
	if s == 0 {
		return crilog.Stdout
	}
	return crilog.Stderr
}

// pending returns how many bytes a pipe holds.
func pending(fd int) (int, error) {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD
	if err != nil {
		return 0, fmt.Errorf("FIONREAD: %w", err)
	}
	return n, nil
}
