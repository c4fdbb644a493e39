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
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

func TestSendRecv(t *testing.T) {
	tests := []struct {
		size, files int
	}{
		{size: 0},
		{size: 1},
		{size: maxInline - 1, files: 1},
		{size: maxInline},
		{size: maxInline, files: wire.MaxFiles},
		{size: maxInline + 1},
		{size: maxInline + 1, files: 1},
		{size: 1 << 20, files: wire.MaxFiles}, // and one descriptor more, that of the body
		{size: wire.MaxBody},
		{size: 0, files: wire.MaxFiles},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%d bytes, %d files", tt.size, tt.files), func(t *testing.T) {
			noLeaks(t)
			a, b := pair(t)
			var files []*os.File
			for range tt.files {
				files = append(files, memfd(t, nil, 0))
			}
			sent := &wire.Message{Kind: wire.Response, Op: wire.OpStats, ID: 1<<63 + 5, Body: body(tt.size), Files: files}
			if err := a.Send(sent); err != nil {
				t.Fatal(err)
			}
			got := mustRecv(t, b)
			if got.Kind != sent.Kind || got.Op != sent.Op || got.ID != sent.ID {
				t.Errorf("received kind %d, op %d, id %d", got.Kind, got.Op, got.ID)
			}
			if !bytes.Equal(got.Body, sent.Body) {
				t.Errorf("body of %d bytes differs from the %d that were sent", len(got.Body), len(sent.Body))
			}
			if len(got.Files) != len(files) {
				t.Fatalf("%d files, want %d", len(got.Files), len(files))
			}
			for i, f := range files {
				if !same(t, f, got.Files[i]) {
					t.Errorf("file %d is another", i)
				}
				if flags, err := unix.FcntlInt(got.Files[i].Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("file %d: flags %#x, %v: not close-on-exec", i, flags, err)
				}
			}
		})
	}
}

// The buffer is used again by the next Recv.
func TestBodyIsACopy(t *testing.T) {
	noLeaks(t)
	a, b := pair(t)
	for _, text := range []string{"first", "other"} {
		if err := a.Send(&wire.Message{Kind: wire.Request, Op: wire.OpHello, Body: []byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
	first := mustRecv(t, b)
	mustRecv(t, b)
	if string(first.Body) != "first" {
		t.Errorf("after the next message the body is %q", first.Body)
	}
}

func TestSendRefuses(t *testing.T) {
	noLeaks(t)
	a, b := pair(t)
	closed := memfd(t, nil, 0)
	closed.Close()
	tests := []struct {
		name  string
		m     wire.Message
		want  error
		files int
	}{
		{name: "body", m: wire.Message{Body: make([]byte, wire.MaxBody+1)}, want: wire.ErrTooLarge},
		{name: "files", files: wire.MaxFiles + 1, want: wire.ErrTooLarge},
		{name: "closed file", m: wire.Message{Files: []*os.File{closed}}, want: os.ErrClosed},
		{name: "closed file beside a large body", m: wire.Message{Body: body(maxInline + 1), Files: []*os.File{closed}}, want: os.ErrClosed},
		{name: "no file", m: wire.Message{Files: []*os.File{nil}}, want: os.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range tt.files {
				tt.m.Files = append(tt.m.Files, memfd(t, nil, 0))
			}
			tt.m.Kind, tt.m.Op = wire.Request, wire.OpCreate
			if err := a.Send(&tt.m); !errors.Is(err, tt.want) {
				t.Errorf("Send: %v, want %v", err, tt.want)
			}
		})
	}
	// Nothing was sent, and the connection is as good as before.
	if err := a.Send(&wire.Message{Kind: wire.Request, Op: wire.OpHello, ID: 7}); err != nil {
		t.Fatal(err)
	}
	if m := mustRecv(t, b); m.ID != 7 {
		t.Errorf("received message %d: one that was refused", m.ID)
	}
}

func TestTake(t *testing.T) {
	noLeaks(t)
	a, b := pair(t)
	sent := []*os.File{memfd(t, nil, 0), memfd(t, nil, 0), memfd(t, nil, 0)}
	if err := a.Send(&wire.Message{Kind: wire.Request, Op: wire.OpExec, Files: sent}); err != nil {
		t.Fatal(err)
	}
	// Send duplicates: what was sent stays the sender's.
	if _, err := sent[0].Stat(); err != nil {
		t.Errorf("a file that was sent: %v", err)
	}
	m := mustRecv(t, b)
	f, err := m.Take(1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, i := range []int{-1, 1, 3} {
		if f, err := m.Take(i); !errors.Is(err, wire.ErrNoFile) {
			t.Errorf("Take(%d) = %v, %v", i, f, err)
		}
	}
	rest := []*os.File{m.Files[0], m.Files[2]}
	m.Close()
	m.Close() // again is no error
	for i, f := range rest {
		if _, err := f.Stat(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("file %d, which nobody took: %v", i, err)
		}
	}
	if !same(t, f, sent[1]) {
		t.Error("the file that was taken is another, or closed")
	}
	if _, err := m.Take(0); !errors.Is(err, wire.ErrNoFile) {
		t.Errorf("Take of a closed message: %v", err)
	}
}

func TestEOF(t *testing.T) {
	noLeaks(t)
	a, b := pair(t)
	if err := a.Send(&wire.Message{Kind: wire.Event, Op: wire.OpEvents, ID: 3}); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if m := mustRecv(t, b); m.ID != 3 {
		t.Errorf("received message %d", m.ID)
	}
	for range 2 {
		if m, err := b.Recv(); !errors.Is(err, io.EOF) || m != nil {
			t.Errorf("Recv = %v, %v", m, err)
		}
	}
	if err := b.Send(&wire.Message{Kind: wire.Request}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("Send: %v", err)
	}
}

// The kernel reports ECONNRESET, and does so before it hands out what is queued,
// when a side ends that has not read everything. A killed executor's last answers
// must be read all the same.
func TestEOFAfterUnread(t *testing.T) {
	noLeaks(t)
	a, b := pair(t)
	sent := memfd(t, nil, 0)
	for id := range uint64(2) {
		if err := a.Send(&wire.Message{Kind: wire.Response, ID: id + 1, Files: []*os.File{sent}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Send(&wire.Message{Kind: wire.Request, ID: 9}); err != nil {
		t.Fatal(err)
	}
	a.Close() // with message 9 unread
	for id := range uint64(2) {
		if m := mustRecv(t, b); m.ID != id+1 || len(m.Files) != 1 {
			t.Errorf("received message %d with %d files, want %d with 1", m.ID, len(m.Files), id+1)
		}
	}
	if m, err := b.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("Recv = %v, %v", m, err)
	}
}

func TestCloseWakesRecv(t *testing.T) {
	noLeaks(t)
	_, b := pair(t)
	started := make(chan struct{})
	done := make(chan error)
	go func() {
		close(started)
		_, err := b.Recv()
		done <- err
	}()
	<-started // it is in Recv, or will find the connection closed: both must end it
	b.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Recv: %v", err)
	}
}

func TestCloseWakesSend(t *testing.T) {
	noLeaks(t)
	fa, fb := socketpair(t)
	defer fb.Close()
	fill(t, fa)
	a := newConn(t, fa)
	started := make(chan struct{})
	done := make(chan error, 2)
	for range cap(done) {
		go func() {
			started <- struct{}{}
			done <- a.Send(&wire.Message{Kind: wire.Request, Body: body(maxInline)})
		}()
		<-started
	}
	a.Close()
	for range cap(done) {
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Send: %v", err)
		}
	}
}

// fill leaves no room in a socket.
func fill(t testing.TB, f *os.File) {
	t.Helper()
	for {
		err := unix.Sendto(int(f.Fd()), make([]byte, 1000), unix.MSG_DONTWAIT, nil)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Many send at once through a socket that has room for few, to one that reads only
// when all are waiting: every message arrives whole, with its own descriptor, and
// those of one sender in their order.
func TestConcurrentSend(t *testing.T) {
	noLeaks(t)
	const senders, each = 16, 40
	a, b := pair(t)

	var wg sync.WaitGroup
	var begun sync.WaitGroup
	begun.Add(senders)
	for s := range senders {
		// One descriptor for each sender; the message's id says whose it is.
		own := memfd(t, binary.LittleEndian.AppendUint64(nil, uint64(s)), 0)
		wg.Go(func() {
			begun.Done()
			for i := range each {
				size := (s*each + i) * 977 % (2 * maxInline) // half of them in a memfd
				m := &wire.Message{Kind: wire.Request, Op: wire.Op(s), ID: uint64(i), Body: body(size), Files: []*os.File{own}}
				if err := a.Send(m); err != nil {
					t.Errorf("sender %d, message %d: %v", s, i, err)
					return
				}
			}
		})
	}
	begun.Wait()
	next := make([]uint64, senders)
	for range senders * each {
		runtime.Gosched() // slower than they are
		m, err := b.Recv()
		if err != nil {
			t.Fatalf("Recv: %v", err)
		}
		s := int(m.Op)
		if s >= senders || m.ID != next[s] {
			t.Fatalf("message %d of sender %d, want %d", m.ID, s, next[s])
		}
		next[s]++
		if want := body((s*each + int(m.ID)) * 977 % (2 * maxInline)); !bytes.Equal(m.Body, want) {
			t.Errorf("message %d of sender %d: %d bytes, want %d", m.ID, s, len(m.Body), len(want))
		}
		var tag [8]byte
		if len(m.Files) != 1 {
			t.Fatalf("message %d of sender %d has %d files", m.ID, s, len(m.Files))
		}
		if _, err := m.Files[0].ReadAt(tag[:], 0); err != nil || binary.LittleEndian.Uint64(tag[:]) != uint64(s) {
			t.Errorf("message %d of sender %d has the file of another: %x, %v", m.ID, s, tag, err)
		}
		m.Close()
	}
	wg.Wait()
}

func TestDial(t *testing.T) {
	noLeaks(t)
	path := filepath.Join(t.TempDir(), "socket")
	if c, err := wire.Dial(t.Context(), path); !errors.Is(err, unix.ENOENT) {
		t.Fatalf("Dial of a path that is not there = %v, %v", c, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	listener := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { listener.Close() })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if c, err := wire.Dial(t.Context(), path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("Dial of a socket that nobody listens on = %v, %v", c, err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	a, err := wire.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	accepted, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	b := newConn(t, os.NewFile(uintptr(accepted), "client"))
	for _, c := range []*wire.Conn{a, b} {
		cred, err := c.Peer()
		if err != nil {
			t.Fatal(err)
		}
		if int(cred.Pid) != os.Getpid() || int(cred.Uid) != os.Getuid() || int(cred.Gid) != os.Getgid() {
			t.Errorf("peer is %+v", cred)
		}
	}
	if err := a.Send(&wire.Message{Kind: wire.Request, ID: 4}); err != nil {
		t.Fatal(err)
	}
	if m := mustRecv(t, b); m.ID != 4 {
		t.Errorf("received message %d", m.ID)
	}
	a.Close()
	if _, err := a.Peer(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Peer of a closed connection: %v", err)
	}
}

// A socket that is handed over belongs to NewConn, whatever comes of it.
func TestNewConnTakesOver(t *testing.T) {
	noLeaks(t)
	f, _ := socketpair(t)
	c, err := wire.NewConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := f.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file that was handed over: %v", err)
	}

	// No descriptor is to be had.
	g, _ := socketpair(t)
	limitDescriptors(t, 0)
	if c, err := wire.NewConn(g); !errors.Is(err, unix.EMFILE) {
		t.Fatalf("NewConn = %v, %v", c, err)
	}
	if _, err := g.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file that was handed over in vain: %v", err)
	}
}

// limitDescriptors lets this process open n more descriptors, until the test ends.
func limitDescriptors(t testing.TB, n int) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// Every number below the limit is taken, but for n.
	var taken []int
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
		for _, fd := range taken {
			unix.Close(fd)
		}
	})
	const limit = 200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.EINVAL) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, fd)
	}
	for range n {
		unix.Close(taken[len(taken)-1])
		taken = taken[:len(taken)-1]
	}
}
