// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
)

const (
	// retryFirst and retryMost are between tries to write to a log that takes nothing.
	retryFirst = 20 * time.Millisecond
	retryMost  = 320 * time.Millisecond

	// openTime is how long a log file may take to be opened.
	openTime = 10 * time.Second
)

// failure is what became of a log that cannot be written: the disk is full, or
// broken.
//
//	     a write fails                       patience is over
//	ok ----------------> the container waits -----------------> lines are dropped
//	 ^                      |        |tries again                  |      |tries again
//	 |                      |        +--<--+                       |      +--<--+
//	 +----a write comes through whole------------------------------+
//
// First nothing is lost: what was taken from the container and not written stays
// with its tail, in memory and in the tail file; no more is taken; so the
// container's pipe fills, and it waits. But it must not wait for ever, as it would
// on a disk that stays full: after the pump's patience its lines are dropped, whole
// ones, and counted, until a write comes through. A line of which a part is in the
// log already is ended there, and the rest of it dropped.
//
// Of a disk that does not answer at all no write comes back, and nothing here is
// reached: the container waits for it, as everybody does who writes to it.
type failure struct {
	since   time.Time // of the first write that failed since one came through; zero: none
	next    time.Time // no try before then
	wait    time.Duration
	err     error
	dropped int64 // bytes
}

// patient says whether the container still waits for its log.
//
// +checklocks:t.io
func (t *tail) patient() bool {
	return t.fail.since.IsZero() || time.Since(t.fail.since) < t.p.patience
}

// put writes records at off and returns how many bytes of whole records are in the
// file. No part of a record stays, since what comes next may be shorter.
//
// +checklocks:t.io
func (t *tail) put(off int64, records []byte) (n int, err error) {
	if t.log < 0 || len(records) == 0 {
		return len(records), nil
	}
	if time.Now().Before(t.fail.next) {
		return 0, t.fail.err
	}
	if t.torn {
		if err := unix.Ftruncate(t.log, off); err != nil {
			return 0, t.failed(fmt.Errorf("truncate: %w", err))
		}
		t.torn = false
	}
	for n < len(records) {
		k, err := t.p.pwrite(t.log, records[n:], off+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && k == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			whole := bytes.LastIndexByte(records[:n], '\n') + 1
			// Beyond may also be what an executor before us had written of the same.
			if end := off + int64(whole); t.size() > end {
				t.torn = unix.Ftruncate(t.log, end) != nil
			}
			return whole, t.failed(err)
		}
		n += k
	}
	t.wrote()
	return n, nil
}

// failed notes that a write did not come through, and returns err.
//
// +checklocks:t.io
func (t *tail) failed(err error) error {
	f := &t.fail
	if f.since.IsZero() {
		f.since, f.wait = time.Now(), retryFirst
		t.p.logf("log of container %s cannot be written; its output waits up to %v: %v", t.id, t.p.patience, err)
	} else {
		f.wait = min(2*f.wait, retryMost)
	}
	f.err = err
	f.next = time.Now().Add(f.wait)
	return err
}

// wrote notes that a write came through.
//
// +checklocks:t.io
func (t *tail) wrote() {
	f := &t.fail
	if f.since.IsZero() {
		return
	}
	t.p.logf("log of container %s can be written again; %d bytes were dropped", t.id, f.dropped)
	*f = failure{}
}

// drop counts bytes that will be in no log.
//
// +checklocks:t.io
func (t *tail) drop(n int) {
	if n == 0 {
		return
	}
	if t.fail.dropped == 0 {
		t.p.logf("log of container %s: what it writes is dropped until it can be written: %v", t.id, t.fail.err)
	}
	t.fail.dropped += int64(n)
	t.p.dropped.Add(uint64(n))
}

// unwritten says whether a stream's bytes in hand are more than a line in progress:
// there are records of them that the log did not take.
func unwritten(carry []byte, lineMax int) bool {
	return len(carry) > lineMax || bytes.IndexByte(carry, '\n') >= 0
}

// contentOf returns how many bytes of a stream whole records stand for.
func contentOf(records []byte) (n int) {
	for line := range bytes.Lines(records) {
		r, err := crilog.Parse(line)
		if err != nil {
			panic("executor: a record of our own: " + err.Error())
		}
		n += len(r.Content)
		if !r.Partial {
			n++
		}
	}
	return n
}

// shed drops whole lines of raw, of which ended bytes at its beginning would be
// records, and returns what is kept, the stream's marks, and how many bytes are not.
func shed(raw []byte, ended int, mark int64) (kept []byte, _ int64, dropped int) {
	switch {
	case ended == 0:
		return raw, mark, 0
	case raw[ended-1] != '\n':
		// The beginning of the last line goes, and so must its end, whenever it comes.
		return nil, mark | markLost, len(raw)
	case mark&markOpen != 0:
		ended-- // this LF ends the line of which a part is in the log
	}
	return raw[ended:], mark, ended
}

// look follows what others did to the log file. One that somebody truncated: to
// write on at the old place would leave a hole of zeros. Another one than the tail
// file names: an executor died between having the keeper hold it and saying so.
//
// +checklocks:t.io
func (t *tail) look() {
	var st unix.Stat_t
	if t.log < 0 || unix.Fstat(t.log, &st) != nil {
		return
	}
	if is := (fileID{Dev: st.Dev, Ino: st.Ino}); is != t.file {
		t.file, t.off = is, math.MaxInt64
	}
	t.off = min(t.off, st.Size)
}

// size returns how long the log file is, or, where nobody knows, more than that.
//
// +checklocks:t.io
func (t *tail) size() int64 {
	var st unix.Stat_t
	if t.log < 0 || unix.Fstat(t.log, &st) != nil {
		return math.MaxInt64
	}
	return st.Size
}

// opened is a log file.
type opened struct {
	fd   int // -1: none
	size int64
	file fileID
}

// openLog opens or creates a log file.
func openLog(path string) (opened, error) {
	f, size, err := crilog.Open(path, 0o640)
	if err != nil {
		return opened{fd: -1}, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 5)
	if err != nil {
		return opened{fd: -1}, fmt.Errorf("dup %s: %w", path, err)
	}
	return identify(fd, size)
}

// openExisting opens a log file if it is there.
func openExisting(path string) (opened, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return opened{fd: -1}, err
	}
	if !fi.Mode().IsRegular() {
		return opened{fd: -1}, &fs.PathError{Op: "open", Path: path, Err: crilog.ErrNotRegular}
	}
	// O_NONBLOCK, as something else may be there by now; it means nothing to a file.
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return opened{fd: -1}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return identify(fd, fi.Size())
}

func identify(fd int, size int64) (opened, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = crilog.ErrNotRegular
	}
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		unix.Close(fd)
		return opened{fd: -1}, fmt.Errorf("log: %w", err)
	}
	return opened{fd: fd, size: size, file: fileID{Dev: st.Dev, Ino: st.Ino}}, nil
}

// findLog opens the file of a log whose descriptor was lost: the one that has its
// id, at path or, if that has been rotated since, in the same folder. Only where
// there is none, and the container still runs, does the log go on in the file that
// path names: one that has ended has no use for a new file.
func findLog(path string, id fileID, runs bool) (opened, error) {
	if id != (fileID{}) {
		entries, _ := os.ReadDir(filepath.Dir(path))
		names := []string{path}
		for _, e := range entries {
			if e.Type().IsRegular() {
				names = append(names, filepath.Join(filepath.Dir(path), e.Name()))
			}
		}
		for _, name := range names {
			o, err := openExisting(name)
			if err != nil {
				continue
			}
			if o.file == id {
				return o, nil
			}
			unix.Close(o.fd)
		}
	}
	if !runs {
		return openExisting(path)
	}
	return openLog(path)
}

// within opens a log file by fn, which may take as long as a file system likes, in
// at most d. One that comes too late is given to late, or closed if that is nil.
func (p *pump) within(d time.Duration, fn func() (opened, error), late func(opened, error)) (opened, error) {
	if p.opening.Add(1) > stuckMax {
		p.opening.Add(-1)
		return opened{fd: -1}, errLogStuck
	}
	type result struct {
		o   opened
		err error
	}
	done, gone := make(chan result), make(chan struct{})
	go func() {
		o, err := fn()
		p.opening.Add(-1)
		select {
		case done <- result{o, err}:
		case <-gone:
			if late != nil {
				late(o, err)
			} else if err == nil {
				p.close(o.fd)
			}
		}
	}()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	select {
	case r := <-done:
		return r.o, r.err
	case <-deadline.C:
		close(gone)
		return opened{fd: -1}, errLogStuck
	}
}
