// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

var (
	// ErrRecord is returned for a line that is no record.
	ErrRecord = errors.New("malformed log record")

	// ErrTorn is returned for a log that ends within a record.
	ErrTorn = errors.New("log ends within a record")

	// ErrNotRegular is returned for a path at which there is something else
	// than a regular file.
	ErrNotRegular = errors.New("not a regular file")
)

// A Record is one line of a log: a line of a stream, or a piece of one.
type Record struct {
	// Time is when the content was read from the container, in UTC.
	Time   time.Time
	Stream Stream
	// Partial says that the line goes on in the stream's next record, or that
	// the stream ended without an LF.
	Partial bool
	// Content is what the container wrote, without the LF.
	Content []byte
}

// AppendTo appends r to dst in the form that [Append] writes.
//
// Preconditions:
//   - r.Stream is Stdout or Stderr; AppendTo panics otherwise.
//   - r.Content holds no LF.
func (r Record) AppendTo(dst []byte) []byte {
	h := newHead(r.Stream, r.Time)
	if r.Partial {
		h = h.partial()
	}
	dst = append(dst, h[:]...)
	dst = append(dst, r.Content...)
	return append(dst, '\n')
}

// Parse parses one line of a log, with or without its LF. The content of the
// record is a part of line, not a copy. Errors wrap [ErrRecord].
//
// Other runtimes' records are read too: the time is RFC3339Nano with any number
// of digits and any offset, and tags after the first, separated by colons, are
// ignored, as the kubelet does. Unlike the kubelet, which takes a first tag it
// does not know for F, Parse refuses it.
func Parse(line []byte) (Record, error) {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	if bytes.IndexByte(line, '\n') >= 0 {
		return Record{}, fmt.Errorf("%w: more than one line", ErrRecord)
	}
	stamp, line, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return Record{}, fmt.Errorf("%w: no space after the time", ErrRecord)
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		// The offset has moved it out of what a record can say.
		return Record{}, fmt.Errorf("%w: time %q is in year %d of UTC", ErrRecord, stamp, y)
	}
	name, line, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return Record{}, fmt.Errorf("%w: no space after the stream", ErrRecord)
	}
	var s Stream
	switch string(name) {
	case string(Stdout):
		s = Stdout
	case string(Stderr):
		s = Stderr
	default:
		return Record{}, fmt.Errorf("%w: unknown stream %q", ErrRecord, name)
	}
	tags, content, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return Record{}, fmt.Errorf("%w: no space after the tag", ErrRecord)
	}
	tag, _, _ := bytes.Cut(tags, []byte{tagDelimiter})
	if len(tag) != 1 || tag[0] != tagPartial && tag[0] != tagFull {
		return Record{}, fmt.Errorf("%w: unknown tag %q", ErrRecord, tag)
	}
	return Record{Time: t, Stream: s, Partial: tag[0] == tagPartial, Content: content}, nil
}
