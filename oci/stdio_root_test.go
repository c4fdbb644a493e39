// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/oci/wire"
)

// halt stops one of our own processes, and sees to it that it goes on when the
// test ends, should it still be there.
func halt(t testing.TB, pid int) (resume func()) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	resume = sync.OnceFunc(func() {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGCONT, nil, 0) // killed is as good
		unix.Close(pidfd)
	})
	t.Cleanup(resume)
	if err := unix.PidfdSendSignal(pidfd, unix.SIGSTOP, nil, 0); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		stopped := 0
		for _, task := range tasks {
			b, err := os.ReadFile(task)
			if err == nil && bytes.HasPrefix(b[bytes.LastIndexByte(b, ')')+1:], []byte(" T")) {
				stopped++
			}
		}
		if stopped > 0 && stopped == len(tasks) {
			return resume
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not stop", pid)
		}
	}
}

// inputs are containers whose input is about to end, each in its way: a pipe that
// CloseStdin closes, with a client attached that keeps its own end open; a pipe of
// StdinOnce, closed by the end of the client; a terminal, which hangs up.
type inputs struct {
	r                  *rig
	suffix             string
	pipe, once         *session
	pipeID, onceID, tt string
}

func (r *rig) inputs(suffix string) *inputs {
	r.t.Helper()
	in := &inputs{r: r, suffix: suffix, pipeID: "pipe" + suffix, onceID: "once" + suffix, tt: "tty" + suffix}
	var wg sync.WaitGroup
	for id, c := range map[string]struct {
		args []string
		opt  option
	}{
		in.pipeID: {[]string{"cat"}, withStdin},
		in.onceID: {[]string{"cat"}, withStdinOnce},
		in.tt:     {[]string{"hup", "/tmp/hup"}, withTTY},
	} {
		wg.Go(func() { r.container(id, c.args, c.opt) })
	}
	wg.Wait()
	in.pipe = r.attach(in.pipeID, wire.Attach{Stdin: true})
	in.once = r.attach(in.onceID, wire.Attach{Stdin: true})
	for _, s := range []*session{in.pipe, in.once} {
		s.say("some data\n")
	}
	for _, id := range []string{in.pipeID, in.onceID} {
		r.waitLog(id, "some data")
	}
	r.waitLog(in.tt, "ready")
	return in
}

// close ends all three and returns what the requests said, in the order pipe,
// once, tty. An attach whose executor dies is made again, and may then find that
// its container has ended, as it should: that is no error here.
func (in *inputs) close(ctx context.Context) (errs [3]error) {
	var wg sync.WaitGroup
	wg.Go(func() { errs[0] = in.r.CloseStdin(ctx, in.pipeID) })
	wg.Go(func() {
		in.once.in.Close()
		select {
		case <-in.once.done:
			errs[1] = in.once.failed
			if errors.Is(errs[1], &wire.Error{Code: wire.BadState}) && strings.Contains(errs[1].Error(), "is exited") {
				errs[1] = nil
			}
		case <-ctx.Done():
			in.once.cancel()
			<-in.once.done
			errs[1] = in.once.failed
		}
	})
	wg.Go(func() { errs[2] = in.r.CloseStdin(ctx, in.tt) })
	wg.Wait()
	return errs
}

// check sees that the end has come to all three.
func (in *inputs) check() {
	in.r.t.Helper()
	for id, code := range map[string]int{in.pipeID: 0, in.onceID: 0, in.tt: 7} {
		if e := in.r.wait(id); e.Code != code || e.Signal != 0 || e.Lost {
			in.r.t.Errorf("%s: exit %+v, want code %d", id, e, code)
		}
	}
	for _, id := range []string{in.pipeID, in.onceID} {
		if got := in.r.logLines(id, crilog.Stdout); !slices.Equal(got, []string{"some data", "EOF"}) {
			in.r.t.Errorf("%s: log %q", id, got)
		}
	}
}

// TestEndOfInput: EOF and SIGHUP come only when nobody holds the other end any
// more, so both executor and keeper must let go, whatever has become of them.
func TestEndOfInput(t *testing.T) {
	tests := []struct {
		name   string
		before func(r *rig)
	}{
		{"all alive", func(*rig) {}},
		{"keeper stopped", func(r *rig) { halt(r.t, r.keeperPID()) }},
		{"keeper killed", func(r *rig) { kill(r.t, r.keeperPID()) }},
		{"executor killed", func(r *rig) { kill(r.t, r.executorPID()) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			in := r.inputs("")
			tt.before(r)
			for i, err := range in.close(t.Context()) {
				if err != nil {
					t.Errorf("request %d: %v", i, err)
				}
			}
			in.check()
		})
	}
}

// TestEndOfInputKill kills the executor, or the keeper, while the requests are
// under way.
func TestEndOfInputKill(t *testing.T) {
	r := newRig(t)
	for n := range 8 {
		in := r.inputs(strconv.Itoa(n))
		victim := r.executorPID()
		if n%4 == 3 {
			victim = r.keeperPID()
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for i, err := range in.close(t.Context()) {
				if err != nil {
					t.Errorf("round %d, request %d: %v", n, i, err)
				}
			}
		})
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond) //nolint:forbidigo // a moment that nobody chose
		kill(t, victim)
		wg.Wait()
		in.check()
	}
}

// TestEndOfInputHandover stops the keeper in the middle of a request and kills the
// executor: the next one is handed what the keeper had been told and had not yet
// done, and must still let go of all of it.
func TestEndOfInputHandover(t *testing.T) {
	r := newRig(t)
	for n := range 6 {
		in := r.inputs(strconv.Itoa(n))
		resume := halt(t, r.keeperPID())
		executor := r.executorPID()
		var wg sync.WaitGroup
		wg.Go(func() {
			for i, err := range in.close(t.Context()) {
				if err != nil {
					t.Errorf("round %d, request %d: %v", n, i, err)
				}
			}
		})
		time.Sleep(time.Duration(1+n) * time.Millisecond) //nolint:forbidigo // so that the executor has asked the keeper, in some of the rounds
		if err := unix.Kill(executor, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		resume()
		wg.Wait()
		in.check()
	}
}

// TestEndOfInputStopped: an executor that is stopped does nothing. The request ends
// with its context and says so; once somebody kills the executor, the next one does it.
func TestEndOfInputStopped(t *testing.T) {
	r := newRig(t)
	in := r.inputs("")
	executor := r.executorPID()
	halt(t, executor)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for i, err := range in.close(ctx) {
		want, word := context.DeadlineExceeded, "close stdin"
		if i == 1 {
			want, word = context.Canceled, "attach"
		}
		if !errors.Is(err, want) || !strings.Contains(err.Error(), word) {
			t.Errorf("request %d to a stopped executor: %v, want %v and %q", i, err, want, word)
		}
	}
	kill(t, executor)
	in.once = r.startAttach(in.onceID, wire.Attach{Stdin: true}) // again
	for i, err := range in.close(t.Context()) {
		if err != nil {
			t.Errorf("request %d to the next executor: %v", i, err)
		}
	}
	in.check()
}

// TestBrokenPipe: an exec'd process whose reader has gone is told at once, since
// nobody but berth, here the test, holds the other ends of its pipes.
func TestBrokenPipe(t *testing.T) {
	tests := []struct {
		name   string
		before func(r *rig) (after func())
	}{
		{"all alive", func(*rig) func() { return func() {} }},
		{"both stopped", func(r *rig) func() {
			// The keeper first: it would be told of the executor's stop.
			resume := []func(){halt(r.t, r.keeperPID()), halt(r.t, r.executorPID())}
			return func() { resume[0](); resume[1]() }
		}},
		{"both killed", func(r *rig) func() {
			keeper, executor := r.keeperPID(), r.executorPID()
			if err := errors.Join(unix.Kill(executor, unix.SIGKILL), unix.Kill(keeper, unix.SIGKILL)); err != nil {
				r.t.Fatal(err)
			}
			waitGone(r.t, executor)
			waitGone(r.t, keeper)
			return r.startAgain
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.container("c", []string{"sleep"})
			e := r.exec("c", "yes", execArgs("lines", "0", "0"), wire.Exec{Stdin: true, Stdout: true, Stderr: true})
			b := make([]byte, 4096)
			if _, err := e.out.f.Read(b); err != nil {
				t.Fatal(err)
			}
			for _, pid := range []int{r.executorPID(), r.keeperPID()} {
				for _, f := range []*os.File{e.in, e.out.f, e.err.f} {
					if held := holds(t, pid, f); held != "" {
						t.Errorf("process %d holds %s of an exec's", pid, held)
					}
				}
			}
			after := tt.before(r)
			if pid := e.created.PID; ended(t, pid) {
				t.Fatalf("process %d ended too early", pid)
			}
			e.out.f.Close()
			waitGone(t, e.created.PID)
			after()
			exit := r.wait("c/yes")
			if tt.name == "both killed" && exit.Lost {
				return // and says so; before 6.15 nobody can know
			}
			if exit.Signal != int(unix.SIGPIPE) {
				t.Errorf("exit = %+v, want by SIGPIPE", exit)
			}
		})
	}
}

// holds says which descriptor of a process is the same pipe as f.
func holds(t testing.TB, pid int, f *os.File) string {
	t.Helper()
	var want unix.Stat_t
	rc, err := f.SyscallConn()
	if err == nil {
		cerr := rc.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &want) })
		err = errors.Join(err, cerr)
	}
	if err != nil {
		t.Fatal(err)
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if len(fds) == 0 {
		t.Fatalf("process %d has no descriptors", pid)
	}
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(fd, &st) == nil && st.Dev == want.Dev && st.Ino == want.Ino {
			return fd
		}
	}
	return ""
}

func ended(t testing.TB, pid int) bool {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// hostPID lets a container see, and outlive, with the machine's processes.
func hostPID(r *wire.Create) {
	r.Spec.Linux.Namespaces = slices.DeleteFunc(r.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace
	})
}

// TestSurvivor: a process that got out of the container's cgroup and outlives it,
// and still writes, delays neither the exit nor the delete, gets into no log any
// more, and is never blocked: its own descriptor is open for reading too, so no
// broken pipe would end it.
func TestSurvivor(t *testing.T) {
	r := newRig(t)
	r.container("c", []string{"survivor", "/vol/blocks", "5"}, hostPID)
	r.waitLog("c", "child ")
	pid, err := strconv.Atoi(strings.Fields(r.logLines("c", crilog.Stdout)[0])[1])
	if err != nil {
		t.Fatal(err)
	}
	defer kill(t, pid)
	leaveCgroups(t, pid)
	blocks := func() int {
		b, _ := os.ReadFile(filepath.Join(r.base, "upper", "c", "vol", "blocks"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		return n
	}
	// More than the largest pipe and all that lies on the way can hold.
	goesOn := func(when string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for from := blocks(); blocks() < from+100; {
			if time.Now().After(deadline) {
				t.Fatalf("%s: it is blocked at block %d\n%s", when, blocks(), r.said())
			}
			time.Sleep(time.Millisecond) //nolint:forbidigo // it tells by a file
		}
	}
	goesOn("container runs")
	if err := r.Signal(t.Context(), "c", unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := r.wait("c"); e.Code != 5 {
		t.Errorf("exit = %+v", e)
	}
	goesOn("container has exited")
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(r.said(), "a process outside the container's cgroup still has its output open") {
		if time.Now().After(deadline) {
			t.Fatalf("executor does not say that something survived:\n%s", r.said())
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // it tells by a file
	}
	size := func() int64 {
		st, err := os.Stat(r.logPath("c"))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	logged := size()
	goesOn("its output is thrown away")
	if now := size(); now != logged {
		t.Errorf("log had %d bytes when it was closed and has %d now", logged, now)
	}
	if r.report().Discarded == 0 {
		t.Error("what is thrown away is not counted")
	}
	kill(t, r.executorPID())
	r.nextExecutor()
	goesOn("after the death of the executor")
	if err := r.Delete(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	logged = size()
	goesOn("container is deleted")
	if now := size(); now != logged {
		t.Errorf("log had %d bytes when the container was deleted and has %d now", logged, now)
	}
	if ended(t, pid) {
		t.Error("it was killed")
	}
}

// leaveCgroups moves a process into the root of every hierarchy.
func leaveCgroups(t testing.TB, pid int) {
	t.Helper()
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	roots = append(roots, "/sys/fs/cgroup/cgroup.procs")
	moved := 0
	for _, root := range roots {
		if os.WriteFile(root, []byte(strconv.Itoa(pid)), 0o644) == nil {
			moved++
		}
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || moved == 0 || bytes.Contains(b, []byte("berth-test-")) {
		t.Fatalf("process %d is still in a container's cgroup: %v\n%s", pid, err, b)
	}
}

// TestTerminal: a container on a terminal.
func TestTerminal(t *testing.T) {
	r := newRig(t)
	r.container("c", []string{"winch"}, withTTY)
	r.waitLog("c", "size 80x24")
	if err := r.Resize(t.Context(), wire.Resize{ID: "c", Size: wire.Size{Width: 132, Height: 50}}); err != nil {
		t.Error(err)
	}
	r.waitLog("c", "size 132x50")
	kill(t, r.executorPID()) // the terminal is the keeper's as well
	if err := r.Resize(t.Context(), wire.Resize{ID: "c", Size: wire.Size{Width: 20, Height: 10}}); err != nil {
		t.Error(err)
	}
	r.waitLog("c", "size 20x10")
	s := r.attach("c", wire.Attach{Stdin: true, Stdout: true}).read()
	s.say("typed\n")
	s.out.await(t, "typed\r\n") // the terminal echoes
	s.say("\x04")
	if e := r.wait("c"); e.Code != 0 {
		t.Errorf("exit = %+v, want 0 after ^D", e)
	}
	if _, err := s.end(); err != nil {
		t.Error(err)
	}
	want := []string{"size 80x24 <nil>\r", "size 132x50 <nil>\r", "size 20x10 <nil>\r", "typed\r"}
	if got := r.logLines("c", crilog.Stdout); !slices.Equal(got, want) {
		t.Errorf("log = %q, want %q", got, want)
	}
	if got := r.logLines("c", crilog.Stderr); len(got) != 0 {
		t.Errorf("a terminal has no stderr: %q", got)
	}
	r.container("pipe", []string{"sleep"})
	wantCode(t, r.Resize(t.Context(), wire.Resize{ID: "pipe", Size: wire.Size{Width: 1, Height: 1}}), wire.BadState)
}
