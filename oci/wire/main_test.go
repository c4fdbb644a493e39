// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// What the protocol fixes, as doc.go draws it.
const (
	headerSize = 16
	maxInline  = 64 << 10
	flagMemfd  = 1
)

// descriptors returns the open files of this process. Unlike a count it tells
// what is left, and unlike hack/leak it gives nobody time to close it late.
func descriptors(t testing.TB) map[string]string {
	t.Helper()
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	open := make(map[string]string, len(entries))
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // not the one that listed them
			open[e.Name()+" → "+to] = to
		}
	}
	return open
}

// noLeaks reports each descriptor that is open when the test and the clean-ups
// registered after this call have ended, and was not when it began.
func noLeaks(t testing.TB) {
	t.Helper()
	r, w, err := os.Pipe() // the runtime's own epoll descriptor comes with the first
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	before := descriptors(t)
	t.Cleanup(func() {
		after := descriptors(t)
		for _, name := range slices.Sorted(maps.Keys(after)) {
			if _, ok := before[name]; !ok {
				t.Errorf("descriptor is left open: %s", name)
			}
		}
	})
}

// socketpair returns both ends of a connection, raw. The clean-up closes what
// was not handed on.
func socketpair(t testing.TB) (a, b *os.File) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(p[0]), "a"), os.NewFile(uintptr(p[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func newConn(t testing.TB, f *os.File) *wire.Conn {
	t.Helper()
	c, err := wire.NewConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func pair(t testing.TB) (a, b *wire.Conn) {
	t.Helper()
	fa, fb := socketpair(t)
	return newConn(t, fa), newConn(t, fb)
}

// memfd returns a file with these contents and seals; 0 seals nothing.
func memfd(t testing.TB, contents []byte, seals int) *os.File {
	t.Helper()
	f := sparse(t, int64(len(contents)), 0)
	if _, err := f.WriteAt(contents, 0); err != nil {
		t.Fatal(err)
	}
	seal(t, f, seals)
	return f
}

// sparse returns a memfd that takes no memory.
func sparse(t testing.TB, size int64, seals int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("wire-test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	seal(t, f, seals)
	return f
}

const allSeals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

func seal(t testing.TB, f *os.File, seals int) {
	t.Helper()
	if seals == 0 {
		return
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
}

// same says whether two descriptors are of one file.
func same(t testing.TB, a, b *os.File) bool {
	t.Helper()
	sa, err := a.Stat()
	sb, berr := b.Stat()
	if err := errors.Join(err, berr); err != nil {
		t.Fatal(err)
	}
	return os.SameFile(sa, sb)
}

// body returns n bytes that differ from any shifted or shortened part of them.
func body(n int) []byte {
	b := make([]byte, 0, n+16)
	for i := int64(0); len(b) < n; i++ {
		b = append(strconv.AppendInt(b, i, 36), ',')
	}
	return b[:n:n]
}

// mustRecv receives a message, which is closed when the test ends.
func mustRecv(t testing.TB, c *wire.Conn) *wire.Message {
	t.Helper()
	m, err := c.Recv()
	if err != nil {
		t.Fatalf("Recv: %v", err)
	}
	t.Cleanup(m.Close)
	return m
}
