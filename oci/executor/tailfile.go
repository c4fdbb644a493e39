// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// The tail file: magic, file id, offset, length and bytes of both lines, marks in
// the length's highest bits. It is written while a journal still owns the container, so a torn write is repaired.
const (
	tailMagic = 0x6c696174 // "tail"
	markShift = 62
)

// +checklocks:t.io
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
	// Not by os.File, which costs twice as much: a container that says a line now
	// and then pays this with each.
	fd, err := unix.Open(t.path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "open", Path: t.path, Err: err}
	}
	defer unix.Close(fd)
	for at := 0; at < len(b); {
		n, err := unix.Pwrite(fd, b[at:], int64(at))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "write", Path: t.path, Err: err}
		}
		at += n
	}
	return nil
}

// load reads what save wrote. A tail that was never saved is no error.
//
// +checklocks:t.io
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
	if head[0] != tailMagic || head[3] > math.MaxInt64 || head[4] > carryCap || head[5] > carryCap || head[4]+head[5] > uint64(len(b)) {
		return fmt.Errorf("%s: %w", t.path, errTornTail)
	}
	t.file = fileID{Dev: head[1], Ino: head[2]}
	t.off, t.mark = int64(head[3]), mark
	for s, n := range head[4:6] {
		if n > 0 {
			t.line[s] = slices.Clone(b[:n])
			t.todo[s] = unwritten(t.line[s], t.max)
		}
		b = b[n:]
	}
	return nil
}
