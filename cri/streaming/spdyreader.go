// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// maxSPDYData is the most that one frame of data carries to the library, which allocates whole frames
	// and queues up to 250 of them a connection. SPDY/3.1 allows 16 MiB each; its Go clients send 32 KiB.
	maxSPDYData = 32 << 10
	// maxSPDYControl is the most that a control frame may have. A stream's headers have some 100 bytes,
	// and inflate by up to 1,000.
	maxSPDYControl = 16 << 10
)

// errSPDYFrame ends a connection whose client sends a control frame that is too large.
var errSPDYFrame = errors.New("SPDY control frame is too large")

// A spdyReader bounds the memory that a SPDY client can make the library take (cf. CVE-2026-35469): it
// passes frames on, a large one of data as several small ones, and fails at a large one of control.
//
//	+-+-------------------+   +-+---------+----------+
//	|0| stream, 31 bits   |   |1| version | type     |   a header is 8 bytes;
//	+-+------+------------+   +-+------+--+----------+   the flag FIN of data
//	| flags  | length, 24 |   | flags  | length, 24  |   goes with the last part
//	+--------+------------+   +--------+-------------+
type spdyReader struct {
	in io.Reader

	head [8]byte
	todo []byte // of head, still to be passed on
	body int    // bytes of the frame, or of its part, still to be passed on
	rest int    // bytes of a frame of data, for the parts that come after
	fin  byte   // the flags of that frame
	err  error
}

// Read passes the next bytes on.
func (r *spdyReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case len(r.todo) > 0:
			n := copy(p, r.todo)
			r.todo = r.todo[n:]
			return n, nil
		case r.body > 0:
			n, err := r.in.Read(p[:min(len(p), r.body)])
			r.body -= n
			return n, err
		case r.rest > 0:
			r.part()
		case r.err != nil:
			return 0, r.err
		default:
			r.next()
		}
	}
}

// next reads a frame's header.
func (r *spdyReader) next() {
	if _, r.err = io.ReadFull(r.in, r.head[:]); r.err != nil {
		return
	}
	length := int(binary.BigEndian.Uint32(r.head[4:]) & 0xffffff)
	if control := r.head[0]&0x80 != 0; control {
		if length > maxSPDYControl {
			r.err = fmt.Errorf("%w: %d bytes", errSPDYFrame, length)
			return
		}
		r.todo, r.body = r.head[:], length
		return
	}
	r.fin = r.head[4]
	r.rest = length
	r.part()
}

// part makes the header of the next part of a frame of data.
func (r *spdyReader) part() {
	r.body = min(r.rest, maxSPDYData)
	r.rest -= r.body
	binary.BigEndian.PutUint32(r.head[4:], uint32(r.body))
	if r.rest == 0 {
		r.head[4] = r.fin
	}
	r.todo = r.head[:]
}
