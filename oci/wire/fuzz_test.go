// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// FuzzRecv sends any packet with any descriptors. Whatever it is, Recv returns,
// leaves nothing open, and what it accepts is what Send would have sent.
func FuzzRecv(f *testing.F) {
	const request = byte(wire.Request)
	f.Add([]byte{}, []byte{}, []byte{})
	f.Add(header(request, 0), []byte{}, []byte{})
	f.Add(append(header(request, 0), `{"Min":1,"Max":1}`...), []byte{}, []byte{})
	f.Add(header(request, flagMemfd), []byte{0}, []byte(`{"ID":"c"}`))
	f.Add(header(request, flagMemfd), []byte{1}, []byte(`{"ID":"c"}`))
	f.Add(header(request, flagMemfd), []byte{2, 3, 4, 5, 6, 7, 0}, body(100))
	f.Add(header(request, 0), bytes.Repeat([]byte{3}, wire.MaxFiles+3), []byte{})
	f.Add(header(9, 0x80), []byte{0, 1, 2}, []byte{})
	f.Add(append(header(request, 0), body(maxInline+1)...), []byte{5}, []byte{})
	f.Fuzz(func(t *testing.T, packet, kinds, contents []byte) {
		if len(packet) > 150<<10 || len(kinds) > 253 {
			return // the kernel does not send it
		}
		noLeaks(t)
		raw, fb := socketpair(t)
		b := newConn(t, fb)
		var files []*os.File
		if len(packet) > 0 { // without a byte none can go with it
			files = anyFiles(t, kinds, contents)
		}
		before := descriptors(t)
		sendRaw(t, raw, packet, files)
		m, err := b.Recv()
		if err != nil {
			if m != nil {
				t.Errorf("a message with the error %v", err)
			}
			if after := descriptors(t); len(after) != len(before) {
				t.Errorf("%d descriptors open after %v, %d before", len(after), err, len(before))
			}
			return
		}
		defer m.Close()
		if len(m.Files) > wire.MaxFiles || len(m.Body) > wire.MaxBody {
			t.Fatalf("accepted %d descriptors and %d bytes", len(m.Files), len(m.Body))
		}
		c, d := pair(t)
		if err := c.Send(m); err != nil {
			t.Fatalf("what was received cannot be sent: %v", err)
		}
		again, err := d.Recv()
		if err != nil {
			t.Fatalf("what was sent cannot be received: %v", err)
		}
		defer again.Close()
		if again.Kind != m.Kind || again.Op != m.Op || again.ID != m.ID || !bytes.Equal(again.Body, m.Body) || len(again.Files) != len(m.Files) {
			t.Errorf("%+v, and sent again %+v", m, again)
		}
		var v wire.Create // of the largest type
		_ = m.Decode(&v)
	})
}

// anyFiles makes a descriptor of each kind: its number is that of a case.
func anyFiles(t testing.TB, kinds, contents []byte) []*os.File {
	t.Helper()
	made := make(map[byte]*os.File) // few files, many descriptors
	files := make([]*os.File, 0, len(kinds))
	for _, kind := range kinds {
		kind %= 8
		if made[kind] == nil {
			switch kind {
			case 0:
				made[kind] = memfd(t, contents, allSeals)
			case 1:
				made[kind] = memfd(t, contents, 0)
			case 2:
				made[kind] = memfd(t, contents, unix.F_SEAL_WRITE)
			case 3:
				made[kind] = open(t, "/dev/null", unix.O_PATH)
			case 4:
				made[kind] = open(t, "/", unix.O_RDONLY)
			case 5:
				made[kind], _ = socketpair(t)
			case 6:
				made[kind] = open(t, "/dev/zero", unix.O_RDWR|unix.O_NONBLOCK)
			case 7:
				made[kind] = sparse(t, wire.MaxBody+1, allSeals)
			}
		}
		files = append(files, made[kind])
	}
	return files
}
