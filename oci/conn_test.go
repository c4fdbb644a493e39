// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package oci_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/wire"
)

// soon is how long a caller waits that is to be let down; late is far above what
// anything here takes.
const (
	soon = 20 * time.Millisecond
	late = 30 * time.Second
)

// fakeExecutor is a socket at which the test says what an executor does.
type fakeExecutor struct {
	t     *testing.T
	state string
	fd    int
}

func newFakeExecutor(t *testing.T, backlog int) *fakeExecutor {
	t.Helper()
	f := &fakeExecutor{t: t, state: t.TempDir()}
	var err error
	if f.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(f.fd) })
	if err := errors.Join(unix.Bind(f.fd, f.address()), unix.Listen(f.fd, backlog)); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fakeExecutor) address() *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: filepath.Join(f.state, "executor.sock")}
}

// accept takes the next connection, which has said hello when greet is called.
func (f *fakeExecutor) accept() *wire.Conn {
	f.t.Helper()
	fd, _, err := unix.Accept4(f.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		f.t.Error(err)
		return nil
	}
	c, err := wire.NewConn(os.NewFile(uintptr(fd), "client"))
	if err != nil {
		f.t.Error(err)
		return nil
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

func (f *fakeExecutor) greet(c *wire.Conn) {
	f.t.Helper()
	m, err := c.Recv()
	if err != nil {
		f.t.Error(err)
		return
	}
	f.answer(c, m, wire.HelloReply{Version: wire.MaxVersion})
}

func (f *fakeExecutor) answer(c *wire.Conn, m *wire.Message, value any) {
	f.t.Helper()
	v, err := json.Marshal(value)
	if err != nil {
		f.t.Error(err)
	}
	body, err := json.Marshal(wire.Answer{Value: v})
	if err != nil {
		f.t.Error(err)
	}
	if err := c.Send(&wire.Message{Kind: wire.Response, Op: m.Op, ID: m.ID, Body: body}); err != nil {
		f.t.Error(err)
	}
}

// open returns a client and our end of its connection.
func (f *fakeExecutor) open() (*oci.Executor, *wire.Conn) {
	f.t.Helper()
	accepted := make(chan *wire.Conn, 1)
	go func() {
		c := f.accept()
		f.greet(c)
		accepted <- c
	}()
	ctx, cancel := context.WithTimeout(f.t.Context(), late)
	defer cancel()
	e, err := oci.Open(ctx, f.state)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(e.Close)
	return e, <-accepted
}

// within fails the test if fn takes longer than anything may.
func within(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(late):
		t.Fatalf("%s does not end", what)
	}
}

// TestConnectShared: one connection is made for all who want one, and each waits for
// it only as long as its own context lasts.
func TestConnectShared(t *testing.T) {
	f := newFakeExecutor(t, 8)
	e, c := f.open()
	c.Close()

	patient := make(chan error, 3)
	ctx, cancel := context.WithTimeout(t.Context(), late)
	defer cancel()
	for range cap(patient) {
		go func() {
			_, err := e.Report(ctx)
			patient <- err
		}()
	}
	c = f.accept() // and says nothing yet
	within(t, "who does not wait long", func() {
		short, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		if _, err := e.Report(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v", err)
		}
	})
	f.greet(c)
	for range cap(patient) {
		m, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		f.answer(c, m, wire.Report{})
	}
	for range cap(patient) {
		if err := <-patient; err != nil {
			t.Errorf("who waits: %v", err)
		}
	}
	if err := unix.SetNonblock(f.fd, true); err != nil {
		t.Fatal(err)
	}
	if fd, _, err := unix.Accept(f.fd); err == nil {
		unix.Close(fd)
		t.Error("more than one connection was made")
	}
}

// TestConnectGivenUp: when nobody waits any more the attempt ends, and the next
// caller makes one of its own.
func TestConnectGivenUp(t *testing.T) {
	f := newFakeExecutor(t, 8)
	e, c := f.open()
	c.Close()
	short, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if _, err := e.Report(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v", err)
	}
	given := f.accept()
	within(t, "the connection that nobody wants", func() {
		for {
			m, err := given.Recv()
			if err != nil {
				return
			}
			m.Close()
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := e.Report(t.Context())
		done <- err
	}()
	c = f.accept()
	within(t, "close", e.Close)
	if err := <-done; !errors.Is(err, oci.ErrClosed) {
		t.Errorf("who waited for a client that is closed: %v", err)
	}
	c.Close()
}

// TestConnectBacklog: a socket with no room for one more to wait at is waited for,
// and no longer than the context lasts.
func TestConnectBacklog(t *testing.T) {
	f := newFakeExecutor(t, 0)
	for { // fill it
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, f.address()); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	within(t, "open", func() {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		if e, err := oci.Open(ctx, f.state); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("open = %v, %v", e, err)
		}
	})
	f.accept() // room for one
	ctx, cancel := context.WithTimeout(t.Context(), late)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		e, err := oci.Open(ctx, f.state)
		if err != nil {
			t.Error(err)
			return
		}
		e.Close()
	})
	wg.Go(func() { f.greet(f.accept()) })
	wg.Wait()
}

// TestExecutorDoesNotRead: who sends to one that takes nothing waits no longer than
// its context lasts, the cancel of its request included.
func TestExecutorDoesNotRead(t *testing.T) {
	f := newFakeExecutor(t, 8)
	e, c := f.open()
	const many = 1000 // above what a socket's buffer takes
	within(t, "sending", func() {
		ctx, cancel := context.WithTimeout(t.Context(), 10*soon)
		defer cancel()
		var wg sync.WaitGroup
		for range many {
			wg.Go(func() {
				if err := e.Signal(ctx, "c", 0); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error = %v", err)
				}
			})
		}
		wg.Wait()
	})
	// It is of use again when it reads, and is told which requests nobody waits for.
	done := make(chan error, 1)
	go func() { done <- e.Signal(t.Context(), "last", 0) }()
	open := make(map[uint64]bool)
	for answered := false; !answered || len(open) > 0; {
		m, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var s wire.Signal
		switch {
		case m.Kind == wire.Cancel:
			delete(open, m.ID)
		case m.Decode(&s) == nil && s.ID == "last":
			f.answer(c, m, nil)
			answered = true
		default:
			open[m.ID] = true
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAckWaitsForExec: an exec that has ended is known to the executor until the one
// who asked for it has his answer. By that it is not run twice.
func TestAckWaitsForExec(t *testing.T) {
	f := newFakeExecutor(t, 8)
	e, c := f.open()
	ctx, cancel := context.WithTimeout(t.Context(), late)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := e.Exec(ctx, wire.Exec{ID: "c", Exec: "e"}, nil)
		done <- err
	}()
	exec, err := c.Recv()
	if err != nil || exec.Op != wire.OpExec {
		t.Fatal(exec, err)
	}
	short, cancelShort := context.WithTimeout(t.Context(), soon)
	defer cancelShort()
	if err := e.Ack(short, "c", "e"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ack before the answer: %v", err)
	}
	go func() {
		for _, want := range []wire.Ack{{ID: "c", Exec: "other"}, {ID: "c", Exec: "e"}} {
			m, err := c.Recv()
			var ack wire.Ack
			if err != nil || m.Decode(&ack) != nil || m.Op != wire.OpAck || ack != want {
				t.Errorf("received %+v, %v; want %+v", ack, err, want)
				return
			}
			f.answer(c, m, nil)
			if want.Exec == "other" {
				f.answer(c, exec, wire.Created{PID: 1})
			}
		}
	}()
	if err := e.Ack(ctx, "c", "other"); err != nil {
		t.Error(err)
	}
	if err := e.Ack(ctx, "c", "e"); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestEnvironmentTravels: bytes that are no text reach the executor as they are.
func TestEnvironmentTravels(t *testing.T) {
	f := newFakeExecutor(t, 8)
	e, c := f.open()
	for name, env := range map[string][]string{
		"text": {"A=ü", "B="},
		"not":  {"A=ü", "KEY=\xff\xfe\x80", "B=\xc3"},
	} {
		t.Run(name, func(t *testing.T) {
			process := &specs.Process{Env: env}
			done := make(chan error, 1)
			take := func(request any, call func() error) {
				go func() { done <- call() }()
				f.take(t, c, request)
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			var create wire.Create
			take(&create, func() error {
				_, err := e.Create(t.Context(), wire.Create{ID: "c", Spec: &specs.Spec{Process: process}})
				return err
			})
			var exec wire.Exec
			take(&exec, func() error {
				_, err := e.Exec(t.Context(), wire.Exec{ID: "c", Exec: "e", Process: process}, nil)
				return err
			})
			for what, got := range map[string]struct {
				env     [][]byte
				process *specs.Process
			}{"create": {create.Env, create.Spec.Process}, "exec": {exec.Env, exec.Process}} {
				if name == "text" {
					if got.env != nil || !slices.Equal(got.process.Env, env) {
						t.Errorf("%s: %q and %q", what, got.process.Env, got.env)
					}
					continue
				}
				if !slices.EqualFunc(got.env, env, func(b []byte, v string) bool { return string(b) == v }) {
					t.Errorf("%s: %q, want %q", what, got.env, env)
				}
			}
		})
	}
}

// take reads a request and answers it.
func (f *fakeExecutor) take(t *testing.T, c *wire.Conn, request any) {
	t.Helper()
	m, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Decode(request); err != nil {
		t.Fatal(err)
	}
	f.answer(c, m, wire.Created{PID: 1})
}

// TestCancelFirst: what is asked for after a caller has given up comes after the word
// of that.
func TestCancelFirst(t *testing.T) {
	f := newFakeExecutor(t, 8)
	e, c := f.open()
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan error, 1)
		go func() { asked <- e.Delete(ctx, "given up") }()
		m, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-asked; !errors.Is(err, context.Canceled) {
			t.Fatalf("error = %v", err)
		}
		go func() { asked <- e.Delete(t.Context(), "after") }()
		first, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		second, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if first.Kind != wire.Cancel || first.ID != m.ID || second.Kind != wire.Request {
			t.Fatalf("kinds %d, %d: want the cancel first", first.Kind, second.Kind)
		}
		f.answer(c, second, nil)
		if err := <-asked; err != nil {
			t.Fatal(err)
		}
	}
}
