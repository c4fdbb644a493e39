// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// withStdin, withStdinOnce and withTTY are options of a container.
func withStdin(r *wire.Create)     { r.Stdin = true }
func withStdinOnce(r *wire.Create) { r.Stdin, r.StdinOnce = true, true }
func withTTY(r *wire.Create) {
	r.TTY, r.Stdin, r.Spec.Process.Terminal = true, true, true
	r.Console = wire.Size{Width: 80, Height: 24}
}

// capture collects what comes out of a pipe.
type capture struct {
	f     *os.File
	ended chan struct{} // closed at its end

	mu   sync.Mutex
	got  bytes.Buffer
	more chan struct{} // closed and renewed with each piece
}

func newCapture(f *os.File) *capture {
	return &capture{f: f, ended: make(chan struct{}), more: make(chan struct{})}
}

// read is to be run in a goroutine.
func (c *capture) read() {
	defer close(c.ended)
	b := make([]byte, 64<<10)
	for {
		n, err := c.f.Read(b)
		c.mu.Lock()
		c.got.Write(b[:n])
		close(c.more)
		c.more = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got.String()
}

// await waits until the output has text in it.
func (c *capture) await(t testing.TB, text string) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		c.mu.Lock()
		ok, more := bytes.Contains(c.got.Bytes(), []byte(text)), c.more
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-more:
		case <-c.ended:
			if !strings.Contains(c.String(), text) {
				t.Fatalf("output ended without %q: %.500q", text, c.String())
			}
			return
		case <-deadline.C:
			t.Fatalf("no %q in %.500q", text, c.String())
		}
	}
}

// session is an attached client.
type session struct {
	t        testing.TB
	in       *os.File // nil: not attached to stdin
	out, err *capture // nil: not attached to them
	cancel   context.CancelFunc
	done     chan struct{} // closed when Attach has returned
	reply    wire.AttachReply
	failed   error
}

// attach attaches a client, and returns when all that the container writes from
// then on will reach it. Nobody reads its output yet: see read.
//
// Preconditions: no other attach is about to end.
func (r *rig) attach(id string, want wire.Attach) *session {
	r.t.Helper()
	before := r.report().Attached
	s := r.startAttach(id, want)
	deadline := time.Now().Add(20 * time.Second)
	for r.report().Attached == before {
		select {
		case <-s.done:
			r.t.Fatalf("attach to %s: %v", id, s.failed)
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("attach to %s does not begin\n%s", id, r.said())
		}
	}
	return s
}

// startAttach sends the request.
func (r *rig) startAttach(id string, want wire.Attach) *session {
	r.t.Helper()
	want.ID = id
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{t: r.t, cancel: cancel, done: make(chan struct{})}
	var theirs []*os.File
	pipe := func() (read, write *os.File) {
		read, write, err := os.Pipe()
		if err != nil {
			r.t.Fatal(err)
		}
		return read, write
	}
	if want.Stdin {
		read, write := pipe()
		s.in, theirs = write, append(theirs, read)
	}
	for _, stream := range []struct {
		wanted bool
		to     **capture
	}{{want.Stdout, &s.out}, {want.Stderr, &s.err}} {
		if stream.wanted {
			read, write := pipe()
			*stream.to, theirs = newCapture(read), append(theirs, write)
		}
	}
	go func() {
		defer close(s.done)
		s.reply, s.failed = r.Attach(ctx, want, theirs)
		for _, f := range theirs {
			f.Close()
		}
	}()
	r.t.Cleanup(func() {
		cancel()
		<-s.done
		s.hangUp()
	})
	return s
}

// read begins to read the output.
func (s *session) read() *session {
	for _, c := range []*capture{s.out, s.err} {
		if c != nil {
			go c.read()
		}
	}
	return s
}

// say writes to the container's stdin.
func (s *session) say(text string) {
	s.t.Helper()
	if _, err := s.in.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// hangUp closes the client's ends.
func (s *session) hangUp() {
	if s.in != nil {
		s.in.Close()
	}
	for _, c := range []*capture{s.out, s.err} {
		if c != nil {
			c.f.Close()
		}
	}
}

// end waits for the end of the attach.
func (s *session) end() (wire.AttachReply, error) {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		s.t.Fatal("attach does not end")
	}
	for _, c := range []*capture{s.out, s.err} {
		if c != nil && s.failed == nil {
			select {
			case <-c.ended:
			case <-time.After(10 * time.Second):
				s.t.Error("attach has ended, and its output has not")
			}
		}
	}
	return s.reply, s.failed
}

func (r *rig) report() wire.Report {
	r.t.Helper()
	report, err := r.Report(r.t.Context())
	if err != nil {
		r.t.Fatalf("report: %v\n%s", err, r.said())
	}
	return report
}

// awaitReport waits until the executor's report is as wanted.
func (r *rig) awaitReport(what string, ok func(wire.Report) bool) {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok(r.report()) {
		if time.Now().After(deadline) {
			r.t.Fatalf("never came true: %s: %+v\n%s", what, r.report(), r.said())
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // a report is asked for, not told
	}
}

// TestAttachStdin: what clients write arrives, from one after another, until one
// of them ends the input of a container that was made with StdinOnce.
func TestAttachStdin(t *testing.T) {
	r := newRig(t)
	all := wire.Attach{Stdin: true, Stdout: true, Stderr: true}
	for _, tt := range []struct {
		id   string
		once option
	}{{"many", withStdin}, {"once", withStdinOnce}} {
		r.container(tt.id, []string{"sh"}, tt.once)
		s := r.attach(tt.id, all).read()
		s.say("echo first\n")
		s.out.await(t, "first\n")
		s.err.await(t, "err first\n")
		s.in.Close()
		if tt.id == "once" {
			if e := r.wait("once"); e.Code != 0 {
				t.Errorf("exit = %+v, want 0 after the end of input", e)
			}
			if reply, err := s.end(); err != nil || reply.Dropped != 0 {
				t.Errorf("attach = %+v, %v", reply, err)
			}
			continue
		}
		s.cancel()
		if _, err := s.end(); !errors.Is(err, context.Canceled) {
			t.Errorf("detached: %v", err)
		}
		r.awaitReport("nobody is attached", func(r wire.Report) bool { return r.Attached == 0 })
		s = r.attach(tt.id, all).read()
		s.say("echo second\n")
		s.out.await(t, "second\n")
		if strings.Contains(s.out.String(), "first") {
			t.Errorf("the second client got %q", s.out)
		}
		if err := r.CloseStdin(t.Context(), tt.id); err != nil {
			t.Error(err)
		}
		if e := r.wait(tt.id); e.Code != 0 {
			t.Errorf("exit = %+v, want 0 after the end of input", e)
		}
		if _, err := s.end(); err != nil {
			t.Errorf("attach: %v", err)
		}
	}
}

func TestAttachRefused(t *testing.T) {
	r := newRig(t)
	r.container("deaf", []string{"sleep"})
	r.container("ended", []string{"exit", "0"})
	r.wait("ended")
	// One that lives on after the end of its input.
	r.container("still", []string{"sleep"}, withStdinOnce)
	first := r.attach("still", wire.Attach{Stdin: true})
	first.in.Close()
	if _, err := first.end(); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{
		"still": "its stdin was closed",
		"deaf":  "made without stdin",
		"ended": "is exited",
	} {
		_, err := r.startAttach(id, wire.Attach{Stdin: true}).end()
		wantCode(t, err, wire.BadState)
		if err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), id)) {
			t.Errorf("%s: %v: want the name and %q in it", id, err, want)
		}
	}
	_, err := r.startAttach("nobody", wire.Attach{Stdout: true}).end()
	wantCode(t, err, wire.NotFound)
	if s := r.attach("still", wire.Attach{Stdout: true}); s.out == nil {
		t.Error("no attach to the output of a container whose stdin is closed")
	}
}

// TestAttachMany: each client gets all there is from the time it came, whole and
// in order, and a client that does not read costs neither the container, nor its
// log, nor the others anything.
func TestAttachMany(t *testing.T) {
	r := newRig(t)
	r.container("c", []string{"lines", "8000", "3"})
	slow := r.attach("c", wire.Attach{Stdout: true, Stderr: true})
	var clients []*session
	for range 8 {
		clients = append(clients, r.attach("c", wire.Attach{Stdout: true, Stderr: true}).read())
	}
	// Enough that the slow one's pipe and its backlog are full: 91 bytes a line.
	r.waitLog("c", fmt.Sprintf("line %012d", 25_000))
	if err := r.Signal(t.Context(), "c", unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := r.wait("c"); e.Code != 3 {
		t.Errorf("exit = %+v, want 3", e)
	}
	lines, _ := r.checkLines("c", false)
	var last int
	for n, s := range clients {
		reply, err := s.end()
		if err != nil || reply.Dropped != 0 {
			t.Errorf("client %d: %+v, %v", n, reply, err)
		}
		from, to := consecutive(t, s.out.String())
		if to != lines {
			t.Errorf("client %d got lines %d to %d of %d", n, from, to, lines)
		}
		last = max(last, from)
	}
	if last > 20_000 {
		t.Errorf("a client's first line is %d of %d: it was not attached when it was said to be", last, lines)
	}
	select {
	case <-slow.done:
		t.Errorf("the slow client's attach ended before it had read anything: %+v, %v", slow.reply, slow.failed)
	default:
	}
	reply, err := slow.read().end()
	if err != nil || reply.Dropped == 0 {
		t.Errorf("slow client: %+v, %v: want that something was dropped", reply, err)
	}
	if got := int64(len(slow.out.String())); got < 1<<20 {
		t.Errorf("the slow client got %d bytes at last, want its backlog", got)
	}
}

// consecutive checks numbered lines and returns the first and the last number.
// The first line may be a part of one.
func consecutive(t *testing.T, text string) (first, last int) {
	t.Helper()
	list := strings.SplitAfter(text, "\n")
	for i, l := range list {
		fields := strings.Fields(l)
		if len(fields) < 2 || fields[0] != "line" || len(l) != 92 {
			if i == 0 || l == "" || strings.HasPrefix(l, "END") {
				continue
			}
			t.Fatalf("line %d is %q", i, l)
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil || last != 0 && n != last+1 {
			t.Fatalf("line %d comes after line %d: %v", n, last, err)
		}
		if first == 0 {
			first = n
		}
		last = n
	}
	return first, last
}

// TestAttachEnds: all that ends an attach, and nothing else does.
func TestAttachEnds(t *testing.T) {
	r := newRig(t)
	r.container("c", []string{"sh"}, withStdin)
	speaker := r.attach("c", wire.Attach{Stdin: true, Stdout: true}).read()

	t.Run("client gone", func(t *testing.T) {
		s := r.attach("c", wire.Attach{Stdout: true, Stderr: true})
		s.hangUp()
		select {
		case <-s.done:
			t.Fatal("ended before there was any output")
		default:
		}
		speaker.say("raw 61620a\n") // to stdout only: that stderr is closed as well is seen with it
		select {
		case <-s.done:
		case <-time.After(20 * time.Second):
			t.Fatal("a client that is gone is not noticed when there is output")
		}
		if s.failed != nil {
			t.Error(s.failed)
		}
	})
	t.Run("detach", func(t *testing.T) {
		s := r.attach("c", wire.Attach{Stdin: true, Stdout: true, Stderr: true}).read()
		s.cancel()
		if _, err := s.end(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		r.awaitReport("one client is attached", func(r wire.Report) bool { return r.Attached == 1 })
		speaker.say("echo still there\n")
		speaker.out.await(t, "still there\n")
	})
	t.Run("exit", func(t *testing.T) {
		s := r.attach("c", wire.Attach{Stdout: true, Stderr: true})
		speaker.say("flood 300000\n") // more than a pipe holds
		speaker.out.await(t, strings.Repeat("f", 63)+"\n")
		if err := r.CloseStdin(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		if e := r.wait("c"); e.Code != 0 {
			t.Errorf("exit = %+v", e)
		}
		// Deleted, even, before the client reads its first byte.
		if err := r.Delete(t.Context(), "c"); err != nil {
			t.Error(err)
		}
		reply, err := s.read().end()
		if err != nil || reply.Dropped != 0 {
			t.Errorf("attach = %+v, %v", reply, err)
		}
		if n := len(s.out.String()); n != 300_000 {
			t.Errorf("%d bytes were delivered, want 300000", n)
		}
		if _, err := speaker.end(); err != nil {
			t.Error(err)
		}
	})
}

// TestAttachLeaks attaches 200 clients, that end in every way, and counts what is
// left of them in the executor.
func TestAttachLeaks(t *testing.T) {
	r := newRig(t)
	r.container("c", []string{"sh"}, withStdin)
	speaker := r.attach("c", wire.Attach{Stdin: true, Stdout: true}).read()
	round := func(n int) {
		t.Helper()
		for i := range n {
			s := r.attach("c", wire.Attach{Stdin: true, Stdout: true, Stderr: true})
			switch i % 3 {
			case 0:
				s.cancel()
			case 1:
				s.hangUp()
				speaker.say("echo x\n")
			case 2:
				s.read().cancel()
			}
			<-s.done
			r.awaitReport("one client is attached", func(r wire.Report) bool { return r.Attached == 1 })
		}
	}
	round(20) // threads and buffers that stay
	pid := r.executorPID()
	fds, threads := openFiles(t, pid), threadsOf(t, pid)
	round(200)
	// What is closed is closed before Attached is counted down.
	if now := openFiles(t, pid); now > fds {
		t.Errorf("%d descriptors after 200 attaches, %d before", now, fds)
	}
	if now := threadsOf(t, pid); now > threads+4 {
		t.Errorf("%d threads after 200 attaches, %d before", now, threads)
	}
	if n := r.goroutines(); n > 40 {
		t.Errorf("%d goroutines after 200 attaches", n)
	}
}

// goroutines kills the executor in a way that makes it say what it was at, and
// counts its goroutines.
func (r *rig) goroutines() int {
	r.t.Helper()
	pid, before := r.executorPID(), len(r.said())
	if err := unix.Kill(pid, unix.SIGQUIT); err != nil {
		r.t.Fatal(err)
	}
	waitGone(r.t, pid)
	n := strings.Count(r.said()[before:], "\ngoroutine ")
	if n == 0 {
		r.t.Errorf("executor did not say what it was at:\n%s", r.said()[before:])
	}
	return n
}

func openFiles(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func threadsOf(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
