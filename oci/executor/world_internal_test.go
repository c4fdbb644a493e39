// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// world is what outlives an executor: a container's pipes, the journal's private
// pipe, and files. open makes of it what an executor has in memory, as often as
// executors die.
type world struct {
	tb    testing.TB
	dir   string
	max   int // LogMax
	pump  *pump
	logFD int

	read, write [2]int // of the container's streams
	private     [2]int
}

func newWorld(tb testing.TB, dir string, pipeSize int) *world {
	tb.Helper()
	w := &world{tb: tb, dir: dir}
	w.newPump()
	for s := range w.read {
		w.read[s], w.write[s] = w.pipe(0)
		if err := unix.SetNonblock(w.read[s], true); err != nil {
			tb.Fatal(err)
		}
		if pipeSize > 0 {
			if _, err := unix.FcntlInt(uintptr(w.read[s]), unix.F_SETPIPE_SZ, pipeSize); err != nil {
				tb.Fatal(err)
			}
		}
	}
	w.renewPrivate()
	var err error
	if w.logFD, err = unix.Open(w.logPath(), unix.O_CREAT|unix.O_TRUNC|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err != nil {
		tb.Fatal(err)
	}
	// A journal that nobody owns has what its last owner left, and that counts for nothing.
	if err := os.RemoveAll(filepath.Join(dir, "tail")); err != nil {
		tb.Fatal(err)
	}
	return w
}

// newPump makes the pump of a new executor. It has no journal yet.
func (w *world) newPump() { w.pump = newPump(nil, -1, w.tb.Logf) }

func (w *world) logPath() string { return filepath.Join(w.dir, "0.log") }

func (w *world) pipe(flags int) (r, wr int) {
	w.tb.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|flags); err != nil {
		w.tb.Fatal(err)
	}
	return p[0], p[1]
}

// memory returns a folder on a tmpfs, as the state folder is, where the machine has one.
func memory(tb testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "berth-test-") //nolint:usetesting // TempDir is on a disk
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// close ends the world before its test does, which may make thousands.
func (w *world) close() {
	for _, fd := range []int{w.read[0], w.read[1], w.write[0], w.write[1], w.private[0], w.private[1], w.logFD} {
		unix.Close(fd)
	}
}

func (w *world) log() []byte {
	w.tb.Helper()
	b, err := os.ReadFile(w.logPath())
	if err != nil {
		w.tb.Fatal(err)
	}
	return b
}

func testTime() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC) }

// renewPrivate is what the death of the keeper does: the private pipe and what is
// in it are gone.
func (w *world) renewPrivate() {
	if w.private != [2]int{} {
		unix.Close(w.private[0])
		unix.Close(w.private[1])
	}
	w.private[0], w.private[1] = w.pipe(unix.O_NONBLOCK)
}

// open returns journal and tail as a new executor makes them.
func (w *world) open() (*journal, *tail) {
	w.tb.Helper()
	j, err := openJournal(filepath.Join(w.dir, "journal"), 0, w.private[0], w.private[1])
	if err != nil {
		w.tb.Fatal(err)
	}
	t := newTail(w.pump, "c1", filepath.Join(w.dir, "tail"), w.max)
	var st unix.Stat_t
	if err := unix.Fstat(w.logFD, &st); err != nil {
		w.tb.Fatal(err)
	}
	t.open(w.read, opened{fd: w.logFD, file: fileID{Dev: st.Dev, Ino: st.Ino}}, true)
	return j, t
}
