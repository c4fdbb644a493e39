// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package crilog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

const (
	// defaultLimit is the limit, in bytes, of a reader that names none.
	defaultLimit = 1 << 20

	// maxHead is how long all before the content of a record may be: a time
	// with an offset (35 bytes), the stream, and tags that are yet to be
	// invented.
	maxHead = 128
)

// Records returns the records of the log r, in order. Contents are valid until
// the next step of the iteration.
//
// No record may have more than limit bytes of content (0 or less: 1 MiB); one
// buffer of about that size is all the memory used.
//
// What is no record is yielded as an error that wraps [ErrRecord], and the
// iteration goes on after it; it ends after any other error: [ErrTorn] if r
// ends within a record, else that of r. Errors name the offset in r.
func Records(r io.Reader, limit int) iter.Seq2[Record, error] {
	if limit <= 0 {
		limit = defaultLimit
	}
	errLong := fmt.Errorf("%w: more than %d bytes of content", ErrRecord, limit)
	return func(yield func(Record, error) bool) {
		var (
			in       = bufio.NewReaderSize(r, limit+maxHead)
			next     int64 // offset behind what has been read
			skipping bool  // in the middle of a record that is too long
		)
		for {
			line, err := in.ReadSlice('\n')
			at := next
			next += int64(len(line))
			var rec Record
			switch {
			case errors.Is(err, bufio.ErrBufferFull):
				if skipping {
					continue
				}
				skipping = true
				err = errLong
			case errors.Is(err, io.EOF):
				if len(line) > 0 || skipping {
					yield(Record{}, fmt.Errorf("offset %d: %w", at, ErrTorn))
				}
				return
			case err != nil:
				yield(Record{}, fmt.Errorf("offset %d: %w", next, err))
				return
			case skipping:
				skipping = false
				continue
			default:
				rec, err = Parse(line)
				if len(rec.Content) > limit {
					err = errLong
				}
			}
			if err != nil {
				rec, err = Record{}, fmt.Errorf("offset %d: %w", at, err)
			}
			if !yield(rec, err) {
				return
			}
		}
	}
}

// A Line is a line of a stream, joined from its records.
type Line struct {
	// Time is that of the first record.
	Time   time.Time
	Stream Stream
	// Partial says that no LF ended the content: the line was too long and goes
	// on in the stream's next Line, or the log ended.
	Partial bool
	// Content is what the container wrote, without the LF.
	Content []byte
}

// Lines returns the lines of the log r, each stream's in order and both in the
// order of their ends. Contents are valid until the next step of the iteration.
// A log that was rotated within a line is read as a whole through
// [io.MultiReader].
//
// A line of more than limit bytes (0 or less: 1 MiB) is yielded in pieces.
// Whatever r holds, no more than about five times limit of memory is used. No
// record may have more than limit bytes of content either, so it must not be
// less than what the log was written with.
//
// Errors are those of [Records]. After all but ErrRecord the pieces of lines
// that have no end yet are yielded, so that nothing that was read is lost.
func Lines(r io.Reader, limit int) iter.Seq2[Line, error] {
	if limit <= 0 {
		limit = defaultLimit
	}
	return func(yield func(Line, error) bool) {
		var stdout, stderr pending
		for rec, err := range Records(r, limit) {
			if err != nil {
				if !yield(Line{}, err) {
					return
				}
				continue
			}
			p := &stdout
			if rec.Stream == Stderr {
				p = &stderr
			}
			if len(p.Content)+len(rec.Content) > limit { // so p.Content is not empty
				if !yield(p.take(), nil) {
					return
				}
			}
			p.add(rec)
			if !rec.Partial && !yield(p.take(), nil) {
				return
			}
		}
		for _, p := range []*pending{&stdout, &stderr} {
			if p.Partial && !yield(p.take(), nil) {
				return
			}
		}
	}
}

// pending is the part of a line that has been read. It is empty or has Partial
// set, except between add and take.
type pending Line

// add joins rec to p.
func (p *pending) add(rec Record) {
	if !p.Partial {
		p.Time, p.Stream = rec.Time, rec.Stream
	}
	p.Partial = rec.Partial
	p.Content = append(p.Content, rec.Content...)
}

// take returns p and empties it. The content stays in p's buffer.
func (p *pending) take() Line {
	l := Line(*p)
	p.Partial, p.Content = false, p.Content[:0]
	return l
}
