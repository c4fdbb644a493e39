// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package crilog

import (
	"bytes"
	"time"
)

// MaxLine is how many bytes of content a record has at most where the
// configuration does not say otherwise: containerd's
// max_container_log_line_size.
const MaxLine = 16 * 1024

// A Stream names one of the two outputs of a container.
type Stream string

// The two streams, as they are written in a record. (CRI, LogStreamType.)
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// The tags of a record. (CRI, LogTag.)
const (
	tagPartial   = 'P'
	tagFull      = 'F'
	tagDelimiter = ':'
)

const (
	// timeLayout is RFC3339Nano with nine digits and for times in UTC only.
	timeLayout = "2006-01-02T15:04:05.000000000Z"

	// headLen is the length of all before the content: time, stream and tag,
	// each with the space that follows it.
	headLen = len(timeLayout) + 1 + len(Stdout) + 1 + 1 + 1

	// tagAt is where in the head the tag is.
	tagAt = headLen - 2
)

// head is all of a record that comes before the content.
type head [headLen]byte

// newHead returns the head of a record with tag F.
//
// It panics if s is neither Stdout nor Stderr: the record would be one that no
// kubelet reads.
func newHead(s Stream, t time.Time) (h head) {
	if s != Stdout && s != Stderr {
		panic("crilog: unknown stream " + string(s))
	}
	t = t.UTC()
	// Outside these years the text would be longer and no RFC 3339 time. A
	// clock that wrong must not overflow a buffer sized by Bound.
	if y := t.Year(); y < 0 {
		t = time.Date(0, time.January, 1, 0, 0, 0, 0, time.UTC)
	} else if y > 9999 {
		t = time.Date(9999, time.December, 31, 23, 59, 59, 999_999_999, time.UTC)
	}
	// RFC3339 is the one layout that package time writes without interpreting
	// it; the nanoseconds by hand make this twice as fast as timeLayout does.
	b := t.AppendFormat(h[:0], time.RFC3339)
	b[len(b)-1] = '.' // instead of the Z
	b = b[:len(timeLayout)]
	for i, ns := len(b)-2, t.Nanosecond(); i > len(b)-2-9; i-- {
		b[i] = byte('0' + ns%10)
		ns /= 10
	}
	b[len(b)-1] = 'Z'
	b = append(b, ' ')
	b = append(b, s...)
	_ = append(b, ' ', tagFull, ' ')
	return h
}

// partial returns h with tag P.
func (h head) partial() head {
	h[tagAt] = tagPartial
	return h
}

// Append appends to dst the records of raw, the next bytes of stream s, and
// returns the extended dst and the tail of raw that is no record yet. All
// records carry the time t, of which the instant counts and not the location.
//
// A line of up to maxLine bytes becomes one record with tag F. A longer one
// becomes records of exactly maxLine bytes with tag P and, for its last 1 to
// maxLine bytes, one with tag F. A maxLine of 0 or less means [MaxLine].
//
// Whether maxLine bytes are a whole line shows only in the byte after them, as
// in containerd. So rest holds no LF and is up to maxLine bytes long,
// maxLine included. It is a part of raw, not a copy; the caller puts it before
// the stream's next bytes, or, at the end of the stream, calls [AppendRest].
//
// Append allocates only where the capacity of dst does not suffice; see
// [Bound]. It writes nothing beyond the length of the slice it returns.
//
// Preconditions:
//   - s is Stdout or Stderr; Append panics otherwise.
//   - dst, up to its capacity, and raw do not overlap.
func Append(dst []byte, s Stream, t time.Time, raw []byte, maxLine int) (out, rest []byte) {
	if maxLine <= 0 {
		maxLine = MaxLine
	}
	full := newHead(s, t)
	partial := full.partial()
	for len(raw) > 0 {
		// To look no farther than a record can reach keeps the time linear where
		// there is no LF for long.
		window := raw[:min(len(raw)-1, maxLine)+1]
		if i := bytes.IndexByte(window, '\n'); i >= 0 {
			dst = append(dst, full[:]...)
			dst = append(dst, raw[:i+1]...)
			raw = raw[i+1:]
			continue
		}
		if len(window) <= maxLine {
			break
		}
		dst = append(dst, partial[:]...)
		dst = append(dst, raw[:maxLine]...)
		dst = append(dst, '\n')
		raw = raw[maxLine:]
	}
	return dst, raw
}

// AppendRest appends to dst the record of what a stream ended with: rest, the
// last that [Append] returned, with tag P, since no LF ended it. Nothing is
// appended for an empty rest.
//
// Preconditions:
//   - s is Stdout or Stderr; AppendRest panics otherwise.
//   - rest holds no LF.
func AppendRest(dst []byte, s Stream, t time.Time, rest []byte) []byte {
	if len(rest) == 0 {
		return dst
	}
	partial := newHead(s, t).partial()
	dst = append(dst, partial[:]...)
	dst = append(dst, rest...)
	return append(dst, '\n')
}

// Bound returns how many bytes [Append] adds to dst at most for a raw of n
// bytes (the rest of the call before included) and the same maxLine, together
// with what [AppendRest] adds should the stream end there.
//
// The worst case is a raw of nothing but LFs: 41 bytes for each, so that
// 64 KiB of raw may become 2.6 MiB. For lines of k bytes the factor is
// (k+41)/(k+1).
func Bound(n, maxLine int) int {
	switch {
	case n <= 0:
		return 0
	case maxLine == 1:
		// Each byte of a line but its last is a P record, with an LF that raw
		// does not have.
		return n * (headLen + 2)
	default:
		// An F record is headLen longer than the bytes it stands for, a P record
		// one more than that; but a P record of Append stands for two bytes or
		// more, and there is one of AppendRest at most.
		return n*(headLen+1) + 1
	}
}
