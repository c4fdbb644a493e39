// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// header is a packet's, with op hello and id 5. kind and flags are what tests
// play with most.
func header(kind, flags byte) []byte {
	b := make([]byte, headerSize)
	binary.LittleEndian.PutUint16(b, 0xbe17)
	b[2], b[3], b[4], b[8] = kind, flags, byte(wire.OpHello), 5
	return b
}

// sendRaw sends what no Conn would.
func sendRaw(t testing.TB, f *os.File, packet []byte, files []*os.File) {
	t.Helper()
	fds := make([]int, 0, len(files))
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(int(f.Fd()), packet, oob, nil, unix.MSG_DONTWAIT); err != nil {
		t.Fatal(err)
	}
}

func with(b []byte, more ...byte) []byte { return append(b, more...) }

func set(b []byte, at int, v byte) []byte {
	b[at] = v
	return b
}

func TestRecvRefuses(t *testing.T) {
	const request = byte(wire.Request)
	files := func(n int) func(t testing.TB) []*os.File {
		return func(t testing.TB) []*os.File {
			f := memfd(t, []byte("{}"), 0)
			list := make([]*os.File, n)
			for i := range list {
				list[i] = f
			}
			return list
		}
	}
	sealed := func(seals int) func(t testing.TB) []*os.File {
		return func(t testing.TB) []*os.File { return []*os.File{memfd(t, []byte("{}"), seals)} }
	}
	opened := func(path string, flags int) func(t testing.TB) []*os.File {
		return func(t testing.TB) []*os.File { return []*os.File{open(t, path, flags)} }
	}
	tests := []struct {
		name   string
		packet []byte
		files  func(t testing.TB) []*os.File
		want   error
	}{
		{name: "one byte", packet: []byte{0x17}, want: wire.ErrMalformed},
		{name: "one byte with descriptors", packet: []byte{0x17}, files: files(3), want: wire.ErrMalformed},
		{name: "half a header", packet: header(request, 0)[:headerSize-1], want: wire.ErrMalformed},
		{name: "zeros", packet: make([]byte, 100), want: wire.ErrMalformed},
		{name: "magic of the other byte order", packet: set(set(header(request, 0), 0, 0xbe), 1, 0x17), want: wire.ErrMalformed},
		{name: "kind 0", packet: header(0, 0), want: wire.ErrMalformed},
		{name: "kind 5", packet: header(5, 0), files: files(2), want: wire.ErrMalformed},
		{name: "unknown flag", packet: header(request, 2), want: wire.ErrMalformed},
		{name: "all flags", packet: header(request, 0xff), files: sealed(allSeals), want: wire.ErrMalformed},
		{name: "reserved bytes", packet: set(header(request, 0), 7, 1), want: wire.ErrMalformed},
		{name: "a byte more than fits", packet: append(header(request, 0), body(maxInline+1)...), want: wire.ErrMalformed},
		{name: "far more than fits", packet: append(header(request, 0), body(100<<10)...), files: files(1), want: wire.ErrMalformed},

		{name: "body's descriptor missing", packet: header(request, flagMemfd), want: wire.ErrMalformed},
		{name: "body in both places", packet: with(header(request, flagMemfd), '{', '}'), files: sealed(allSeals), want: wire.ErrMalformed},
		{name: "body not sealed", packet: header(request, flagMemfd), files: sealed(0), want: wire.ErrMalformed},
		{name: "body may shrink", packet: header(request, flagMemfd), files: sealed(allSeals &^ unix.F_SEAL_SHRINK), want: wire.ErrMalformed},
		{name: "body may grow", packet: header(request, flagMemfd), files: sealed(allSeals &^ unix.F_SEAL_GROW), want: wire.ErrMalformed},
		{name: "body may change", packet: header(request, flagMemfd), files: sealed(allSeals &^ unix.F_SEAL_WRITE), want: wire.ErrMalformed},
		{name: "body too large", packet: header(request, flagMemfd), files: func(t testing.TB) []*os.File {
			return []*os.File{sparse(t, wire.MaxBody+1, allSeals)}
		}, want: wire.ErrTooLarge},
		{name: "body beyond any size", packet: header(request, flagMemfd), files: func(t testing.TB) []*os.File {
			return []*os.File{sparse(t, 1<<62, allSeals)}
		}, want: wire.ErrTooLarge},
		{name: "body cannot be read", packet: header(request, flagMemfd), files: func(t testing.TB) []*os.File {
			f := memfd(t, []byte("{}"), 0)
			other := open(t, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_WRONLY)
			seal(t, f, allSeals)
			return []*os.File{other}
		}, want: wire.ErrMalformed},
		{name: "body is a path", packet: header(request, flagMemfd), files: opened("/", unix.O_PATH), want: wire.ErrMalformed},
		{name: "body is a folder", packet: header(request, flagMemfd), files: opened("/", unix.O_RDONLY), want: wire.ErrMalformed},
		{name: "body is a device", packet: header(request, flagMemfd), files: opened("/dev/zero", unix.O_RDONLY), want: wire.ErrMalformed},
		{name: "body is the last, not the first", packet: header(request, flagMemfd), files: func(t testing.TB) []*os.File {
			return []*os.File{memfd(t, []byte("{}"), allSeals), memfd(t, []byte("{}"), 0)}
		}, want: wire.ErrMalformed},

		{name: "one descriptor too many", packet: header(request, 0), files: files(wire.MaxFiles + 1), want: wire.ErrMalformed},
		{name: "two descriptors too many", packet: header(request, 0), files: files(wire.MaxFiles + 2), want: wire.ErrMalformed},
		{name: "one too many beside the body", packet: header(request, flagMemfd), files: func(t testing.TB) []*os.File {
			return append(files(wire.MaxFiles+1)(t), memfd(t, []byte("{}"), allSeals))
		}, want: wire.ErrMalformed},
		{name: "as many as the kernel takes", packet: header(request, 0), files: files(253), want: wire.ErrMalformed},
		{name: "the same with a body", packet: header(request, flagMemfd), files: files(253), want: wire.ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			noLeaks(t)
			raw, fb := socketpair(t)
			b := newConn(t, fb)
			var files []*os.File
			if tt.files != nil {
				files = tt.files(t)
			}
			before := descriptors(t)
			sendRaw(t, raw, tt.packet, files)
			m, err := b.Recv()
			if !errors.Is(err, tt.want) || m != nil {
				t.Errorf("Recv = %v, %v, want %v", m, err, tt.want)
			}
			if errors.Is(err, io.EOF) {
				t.Error("the error looks like the end of the connection")
			}
			if after := descriptors(t); len(after) != len(before) {
				t.Errorf("%d descriptors open, %d before", len(after), len(before))
			}
			// The next packet is not a part of the last one.
			sendRaw(t, raw, header(request, 0), nil)
			if m := mustRecv(t, b); m.ID != 5 {
				t.Errorf("received message %d", m.ID)
			}
		})
	}
}

// open opens a file with flags that os.OpenFile does not take as they are.
func open(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	return f
}

// The largest that a peer may send, made by hand, so that a stricter receiver shows.
func TestRecvTakesTheLargest(t *testing.T) {
	noLeaks(t)
	raw, fb := socketpair(t)
	b := newConn(t, fb)
	var files []*os.File
	for range wire.MaxFiles {
		files = append(files, memfd(t, nil, 0))
	}
	want := body(maxInline)
	sendRaw(t, raw, append(header(byte(wire.Cancel), 0), want...), files)
	if m := mustRecv(t, b); !bytes.Equal(m.Body, want) || len(m.Files) != len(files) || m.Kind != wire.Cancel {
		t.Errorf("received %d bytes and %d descriptors, kind %d", len(m.Body), len(m.Files), m.Kind)
	}
	files = append(files, sparse(t, wire.MaxBody, allSeals))
	sendRaw(t, raw, header(byte(wire.Event), flagMemfd), files)
	if m := mustRecv(t, b); len(m.Body) != wire.MaxBody || len(m.Files) != wire.MaxFiles {
		t.Errorf("received %d bytes and %d descriptors", len(m.Body), len(m.Files))
	}
	// An empty body in a memfd is odd, but whole.
	sendRaw(t, raw, header(byte(wire.Event), flagMemfd), []*os.File{memfd(t, nil, allSeals)})
	if m := mustRecv(t, b); len(m.Body) != 0 || len(m.Files) != 0 {
		t.Errorf("received %d bytes and %d descriptors", len(m.Body), len(m.Files))
	}
}

// Where the process has no number left for a descriptor the kernel drops it. A
// message without its descriptors must not be taken for a whole one.
func TestRecvWithoutRoomForDescriptors(t *testing.T) {
	for _, room := range []int{0, 1, 2} {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			noLeaks(t)
			a, b := pair(t)
			f := memfd(t, nil, 0)
			if err := a.Send(&wire.Message{Kind: wire.Request, Files: []*os.File{f, f, f}}); err != nil {
				t.Fatal(err)
			}
			limitDescriptors(t, room)
			m, err := b.Recv()
			if !errors.Is(err, wire.ErrMalformed) || m != nil {
				t.Errorf("Recv = %v, %v", m, err)
			}
			// What did find a number was closed again.
			for i := range room {
				fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					t.Fatalf("descriptor %d of %d is taken: %v", i, room, err)
				}
				defer unix.Close(fd)
			}
		})
	}
}
