// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
)

// errFinished is returned by what would add to a list that has its end.
var errFinished = errors.New("seal: list has ended")

// A Writer writes the list of one layer. Its methods may be called by one
// goroutine at a time.
type Writer struct {
	file  *os.File
	buf   []byte
	sum   uint32
	count uint64
	size  int64 // bytes in the file
	done  bool
}

// flushAt is how many bytes of records go to the file at once.
const flushAt = 32 << 10

// NewWriter begins a list in an empty file, which stays the caller's.
func NewWriter(file *os.File) *Writer {
	return &Writer{file: file, buf: append(make([]byte, 0, flushAt+maxRecord), magic...)}
}

// Append adds a record.
func (w *Writer) Append(r Record) error {
	if w.done {
		return errFinished
	}
	w.buf = r.append(w.buf)
	w.count++
	if len(w.buf) >= flushAt {
		return w.flush()
	}
	return nil
}

func (w *Writer) flush() error {
	n, err := w.file.WriteAt(w.buf, w.size)
	if err != nil {
		return err
	}
	w.sum = Sum(w.sum, w.buf[:n])
	w.size += int64(n)
	w.buf = w.buf[:0]
	return nil
}

// Records yields what has been appended up to the call, the oldest first. More may
// be appended meanwhile, and is not yielded. A last yield may carry an error.
func (w *Writer) Records() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if err := w.flush(); err != nil {
			yield(Record{}, err)
			return
		}
		r, err := newReader(io.NewSectionReader(w.file, 0, w.size))
		if err != nil {
			yield(Record{}, err)
			return
		}
		for range w.count {
			record, err := r.next()
			if !yield(record, err) || err != nil {
				return
			}
		}
	}
}

// Finish ends the list. It does not sync the file.
func (w *Writer) Finish() error {
	if w.done {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	body := binary.AppendUvarint([]byte{byte(end), 0}, w.count)
	body = binary.LittleEndian.AppendUint32(body, w.sum)
	w.buf = append(binary.AppendUvarint(w.buf, uint64(len(body))), body...)
	w.done = true
	return w.flush()
}

// reader reads a list, bytes and sum.
type reader struct {
	r     *bufio.Reader
	body  []byte
	sum   uint32
	count uint64
}

func newReader(r io.Reader) (*reader, error) {
	rd := &reader{r: bufio.NewReaderSize(r, 64<<10)}
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(rd.r, head); err != nil || string(head) != magic {
		return nil, fmt.Errorf("%w: its list has no beginning", ErrDamaged)
	}
	rd.sum = Sum(0, head)
	return rd, nil
}

// next returns the next record, or io.EOF after an end that is right.
func (r *reader) next() (Record, error) {
	length, err := binary.ReadUvarint(r.r)
	if err != nil || length < 2 || length > maxRecord {
		return Record{}, r.broken()
	}
	if uint64(cap(r.body)) < length {
		r.body = make([]byte, maxRecord)
	}
	r.body = r.body[:length]
	if _, err := io.ReadFull(r.r, r.body); err != nil {
		return Record{}, r.broken()
	}
	if Kind(r.body[0]) == end {
		f := fields{rest: r.body[2:], ok: true}
		count, sum := f.uvarint(), f.uint32()
		if _, err := r.r.ReadByte(); !f.ok || r.body[1] != 0 || count != r.count || sum != r.sum || !errors.Is(err, io.EOF) {
			return Record{}, r.broken()
		}
		return Record{}, io.EOF
	}
	var record Record
	if !record.parse(r.body) {
		return Record{}, r.broken()
	}
	r.sum = Sum(Sum(r.sum, binary.AppendUvarint(nil, length)), r.body)
	r.count++
	return record, nil
}

func (r *reader) broken() error {
	return fmt.Errorf("%w: its list ends after record %d", ErrDamaged, r.count)
}
