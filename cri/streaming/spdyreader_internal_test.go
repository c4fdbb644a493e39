// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// frame makes a SPDY frame, of data for a word without the first bit, with a body of n bytes.
func frame(word uint32, flags byte, n int) []byte {
	f := binary.BigEndian.AppendUint32(nil, word)
	f = binary.BigEndian.AppendUint32(f, uint32(flags)<<24|uint32(n))
	for i := range n {
		f = append(f, byte(i>>8)+byte(i))
	}
	return f
}

const control = 0x80030001

func TestSPDYReader(t *testing.T) {
	for name, tt := range map[string]struct {
		in, out []byte
		err     error
	}{
		"nothing":       {},
		"small data":    {in: frame(5, 1, 100), out: frame(5, 1, 100)},
		"no data":       {in: frame(5, 1, 0), out: frame(5, 1, 0)},
		"as large":      {in: frame(5, 1, maxSPDYData), out: frame(5, 1, maxSPDYData)},
		"large control": {in: frame(control, 0, maxSPDYControl), out: frame(control, 0, maxSPDYControl)},
		"too large":     {in: frame(control, 0, maxSPDYControl+1), err: errSPDYFrame},
		"half a header": {in: frame(5, 0, 9)[:5], err: io.ErrUnexpectedEOF},
		"half a body":   {in: frame(5, 0, 9)[:12], out: frame(5, 0, 9)[:12]},
		"several": {
			in:  append(append(frame(control, 2, 7), frame(3, 0, 1)...), frame(control, 1, 9)...),
			out: append(append(frame(control, 2, 7), frame(3, 0, 1)...), frame(control, 1, 9)...),
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, in := range []io.Reader{bytes.NewReader(tt.in), iotest.OneByteReader(bytes.NewReader(tt.in)), iotest.DataErrReader(bytes.NewReader(tt.in))} {
				out, err := io.ReadAll(&spdyReader{in: in})
				if !bytes.Equal(out, tt.out) || !errors.Is(err, tt.err) {
					t.Errorf("%d bytes, %v; want %d, %v", len(out), err, len(tt.out), tt.err)
				}
			}
		})
	}
}

// A large frame of data comes in parts of the same stream, of which only the last has the flags.
func TestSPDYReaderParts(t *testing.T) {
	const n = 2*maxSPDYData + 5
	whole := frame(7, 1, n)
	out, err := io.ReadAll(&spdyReader{in: bytes.NewReader(append(whole, frame(control, 0, 3)...))})
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	for i, want := range []int{maxSPDYData, maxSPDYData, 5} {
		head := binary.BigEndian.Uint64(out)
		flags := uint64(0)
		if i == 2 {
			flags = 1
		}
		if head != 7<<32|flags<<24|uint64(want) {
			t.Fatalf("part %d begins with %x", i, head)
		}
		data = append(data, out[8:8+want]...)
		out = out[8+want:]
	}
	if !bytes.Equal(data, whole[8:]) || !bytes.Equal(out, frame(control, 0, 3)) {
		t.Error("the bytes have changed")
	}
}

// Whatever comes, no frame that goes on is larger than it may be, and none of the data changes.
func FuzzSPDYReader(f *testing.F) {
	f.Add(frame(5, 1, 100), 1)
	f.Add(frame(5, 1, 70000), 1000)
	f.Add(append(frame(control, 0, 20), frame(3, 1, 40000)...), 4096)
	f.Add(frame(control, 0, maxSPDYControl+1), 8)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		size = max(1, min(size, 1<<16))
		out, _ := io.ReadAll(io.MultiReader(&sized{&spdyReader{in: bytes.NewReader(in)}, size}))
		if got, want := bodies(t, out, true), bodies(t, in, false); !bytes.HasPrefix(want, got) {
			t.Errorf("bodies of %d bytes became %d", len(want), len(got))
		}
	})
}

// sized reads by so many bytes.
type sized struct {
	r io.Reader
	n int
}

func (s *sized) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.n)]) }

// bodies returns what is in frames, and with check that none is too large.
func bodies(t *testing.T, in []byte, check bool) []byte {
	var all []byte
	for len(in) >= 8 {
		length := int(binary.BigEndian.Uint32(in[4:]) & 0xffffff)
		limit := maxSPDYData
		if in[0]&0x80 != 0 {
			limit = maxSPDYControl
		}
		if check && length > limit {
			t.Errorf("a frame of %d bytes, at most %d", length, limit)
		}
		in = in[8:]
		all = append(all, in[:min(length, len(in))]...)
		in = in[min(length, len(in)):]
	}
	return all
}
