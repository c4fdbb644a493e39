// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package keeper

// #include "keeper.h"
import "C"

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of a Client.
var (
	// ErrLost is returned once the keeper is gone: the executor is to become it.
	ErrLost = errors.New("keeper is gone")

	// ErrName is returned for a name that is empty, too long or has a line break.
	ErrName = errors.New("not a name the keeper takes")

	// ErrRefused is returned for a put that the keeper had no memory for.
	ErrRefused = errors.New("keeper has no memory for it")
)

// Limits of a name.
const (
	MaxFDs  = C.KEEPER_MAX_FDS
	MaxName = C.KEEPER_MAX_NAME
)

// MountNamespace is the name of the descriptor that the next executor finds as
// its descriptor 4, before Go starts.
const MountNamespace = C.KEEPER_MNT_NAME

// Executable is the name of the sealed binary from which the next executor is
// started. It is put last: by then this one is fit to serve.
const Executable = C.KEEPER_EXE_NAME

// patience is how long a keeper may take to answer. It answers in microseconds;
// one that does not in this time is stopped or broken, which is as good as dead:
// it is killed, and the executor takes its place.
const patience = 2 * time.Second

// Held is what the keeper holds under one name.
type Held struct {
	Name string
	FDs  []int
}

// Client is the executor's end. Its methods may be called by many goroutines.
type Client struct {
	sock *os.File
	lost chan struct{}

	mu    sync.Mutex
	names map[string][]int // +checklocks:mu
	// those without an answer, in their order
	puts map[string][]*put // +checklocks:mu
	// in the order of the dels
	gones  []chan error // +checklocks:mu
	isLost bool         // +checklocks:mu
}

// put is a Put that has no answer yet.
type put struct {
	answer chan error
	before []int // what the name held
	had    bool  // it held something
}

// Open takes over descriptor fd, the socket to the keeper, and reads what is
// handed over. The descriptors of the result belong to the caller.
func Open(fd int) (*Client, []Held, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, nil, fmt.Errorf("socket to the keeper: %w", err)
	}
	c := &Client{
		sock:  os.NewFile(uintptr(fd), "keeper"),
		lost:  make(chan struct{}),
		names: make(map[string][]int),
		puts:  make(map[string][]*put),
	}
	var held []Held
	for {
		text, fds, err := c.receive()
		if err != nil {
			return nil, nil, fmt.Errorf("what the keeper holds: %w", err)
		}
		if text == "go" {
			break
		}
		name, ok := strings.CutPrefix(text, "have ")
		if !ok {
			return nil, nil, fmt.Errorf("what the keeper holds: unexpected message %q", text)
		}
		held = append(held, Held{Name: name, FDs: fds})
		c.names[name] = slices.Clone(fds)
	}
	go c.answers()
	return c, held, nil
}

// Lost is closed when the keeper is gone.
func (c *Client) Lost() <-chan struct{} { return c.lost }

// Names returns how many names are held.
func (c *Client) Names() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.names)
}

// Put has the keeper hold duplicates of fds under name, in place of what it held
// under it, and returns once it does. With an error the name holds what it held
// before, unless the keeper is gone.
//
// Preconditions: fds stay open, under these numbers, until Delete or another Put,
// and no other Put or Delete of the name is under way.
func (c *Client) Put(name string, fds ...int) error {
	if name == "" || len(name) > MaxName || strings.ContainsAny(name, "\n\x00") || len(fds) > MaxFDs {
		return fmt.Errorf("%q, %d descriptors: %w", name, len(fds), ErrName)
	}
	p := &put{answer: make(chan error, 1)}
	c.mu.Lock()
	if c.isLost {
		c.mu.Unlock()
		return ErrLost
	}
	p.before, p.had = c.names[name]
	c.names[name] = slices.Clone(fds)
	c.puts[name] = append(c.puts[name], p)
	// Sent under the lock, so that answers come in the order of the lists.
	err := c.send("put "+name, fds)
	if err != nil {
		c.undoLocked(name, p)
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if err := c.await(p.answer); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return nil
}

// undoLocked takes p back, which was the last Put of name: who is told that it
// failed closes the descriptors, and Become must not hand on their numbers.
//
// +checklocks:c.mu
func (c *Client) undoLocked(name string, p *put) {
	if p.had {
		c.names[name] = p.before
	} else {
		delete(c.names, name)
	}
	c.puts[name] = slices.DeleteFunc(c.puts[name], func(other *put) bool { return other == p })
}

// Delete has the keeper close what it holds under name, and returns once it has.
// An unknown name is no error.
func (c *Client) Delete(name string) error {
	answer := make(chan error, 1)
	c.mu.Lock()
	if c.isLost {
		c.mu.Unlock()
		return ErrLost
	}
	delete(c.names, name)
	c.gones = append(c.gones, answer)
	err := c.send("del "+name, nil)
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	if err := c.await(answer); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// SetExecutor names the binary that is started when this executor ends.
func (c *Client) SetExecutor(path string) error {
	return c.tell("exe " + path)
}

// Replace makes the keeper become the binary at path. A path that cannot be
// executed leaves the keeper as it is.
func (c *Client) Replace(path string) error {
	return c.tell("replace " + path)
}

// Quit ends this executor, by SIGKILL, and then the keeper.
func (c *Client) Quit() error { return c.tell("quit") }

func (c *Client) tell(text string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.send(text, nil)
}

// send waits for room, which a keeper that lives makes at once.
func (c *Client) send(text string, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	rc, err := c.sock.SyscallConn()
	if err != nil {
		return ErrLost
	}
	if err := c.sock.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var serr error
	err = rc.Write(func(fd uintptr) bool {
		for {
			serr = unix.Sendmsg(int(fd), []byte(text), oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if !errors.Is(serr, unix.EINTR) {
				return !errors.Is(serr, unix.EAGAIN)
			}
		}
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.kill()
		return ErrLost
	case err != nil:
		return err
	case errors.Is(serr, unix.EPIPE), errors.Is(serr, unix.ECONNRESET):
		return ErrLost
	}
	return serr
}

func (c *Client) await(answer <-chan error) error {
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case err := <-answer:
		return err
	case <-c.lost:
		return ErrLost
	case <-late.C:
		c.kill()
		return ErrLost
	}
}

// kill ends a keeper that does not answer; the end of its socket then tells
// everybody. Our parent is the keeper as long as it lives, and its pid cannot be
// another's before it is reaped, so a pidfd of the parent that is still the
// parent afterwards is the keeper's.
func (c *Client) kill() {
	parent := os.Getppid()
	pidfd, err := unix.PidfdOpen(parent, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd)
	cred, err := c.peer()
	if err != nil || int(cred.Pid) != parent || os.Getppid() != parent {
		return
	}
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // gone already is as good
}

func (c *Client) peer() (cred *unix.Ucred, err error) {
	rc, err := c.sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := rc.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(cerr, err)
}

// answers hands what the keeper says to those who wait, until it is gone.
func (c *Client) answers() {
	for {
		text, fds, err := c.receive()
		for _, fd := range fds {
			unix.Close(fd) // none is expected after "go"
		}
		c.mu.Lock()
		if err != nil {
			c.isLost = true
			for name, list := range c.puts {
				for _, p := range slices.Backward(slices.Clone(list)) {
					c.undoLocked(name, p)
				}
			}
			close(c.lost)
			c.mu.Unlock()
			return
		}
		verb, name, _ := strings.Cut(text, " ")
		switch verb {
		case "ok":
			// One answer for several that the keeper found together.
			for _, p := range c.puts[name] {
				p.answer <- nil
			}
			delete(c.puts, name)
		case "no":
			for _, p := range slices.Backward(slices.Clone(c.puts[name])) {
				c.undoLocked(name, p)
				p.answer <- ErrRefused
			}
		case "gone":
			if len(c.gones) > 0 {
				c.gones[0] <- nil
				c.gones = c.gones[1:]
			}
		}
		c.mu.Unlock()
	}
}

func (c *Client) receive() (string, []int, error) {
	rc, err := c.sock.SyscallConn()
	if err != nil {
		return "", nil, err
	}
	var (
		buf  [MaxName + 64]byte
		oob  [256]byte
		rerr error

		n, oobn, flags int
	)
	err = rc.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, rerr = unix.Recvmsg(int(fd), buf[:], oob[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			// ECONNRESET comes once, before what is queued, if the keeper died with ours unread.
			if !errors.Is(rerr, unix.EINTR) && !errors.Is(rerr, unix.ECONNRESET) {
				return !errors.Is(rerr, unix.EAGAIN)
			}
		}
	})
	if err = errors.Join(err, rerr); err != nil {
		return "", nil, err
	}
	if n == 0 {
		return "", nil, ErrLost
	}
	if flags&unix.MSG_CTRUNC != 0 {
		// To go on would be to let go of what had no room. The next start may have it.
		return "", nil, fmt.Errorf("descriptors of %q: %w", buf[:n], unix.EMFILE)
	}
	var fds []int
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return "", nil, err
		}
		for i := range messages {
			got, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return "", nil, err
			}
			fds = append(fds, got...)
		}
	}
	return string(buf[:n]), fds, nil
}

// environment is our own without what is meant for the processes that we start:
// the keeper hands its environment on to every executor after this one.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GOMAXPROCS=") })
}

// Become replaces this process by the keeper of stateDir, which starts exe as the
// next executor and holds all that was put. It returns only with an error, and
// this executor then goes on without a keeper.
//
// It is execve in place: every other thread ends where it stands, as with SIGKILL,
// and what it was doing is taken up by the next executor.
func (c *Client) Become(stateDir, exe string) error {
	fd, err := unix.MemfdCreate("berth-keeper", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	c.mu.Lock()
	names := maps.Clone(c.names)
	c.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "exe %s\nuntried 0\n", exe)
	for name, fds := range names {
		fmt.Fprintf(&b, "name %d", len(fds))
		for _, fd := range fds {
			fmt.Fprintf(&b, " %d", fd)
		}
		fmt.Fprintf(&b, " %s\n", name)
	}
	for rest := []byte(b.String()); len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err != nil && !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			return fmt.Errorf("memfd: %w", err)
		}
		rest = rest[max(n, 0):]
	}
	failed := make(chan error)
	go func() {
		// A table of descriptors of this thread's own: libcontainer marks all of the
		// process's close-on-exec whenever it starts something, and must not do so
		// between here and execve. The thread ends with the goroutine if that fails.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FILES); err != nil {
			failed <- fmt.Errorf("unshare descriptors: %w", err)
			return
		}
		names["the list of names"] = []int{fd}
		for name, fds := range names {
			for _, n := range fds {
				if _, err := unix.FcntlInt(uintptr(n), unix.F_SETFD, 0); err != nil {
					// Closed too early: a bug, but the others must be saved all the same.
					fmt.Fprintf(os.Stderr, "keeper: descriptor %d of %s: %v\n", n, name, err)
				}
			}
		}
		err := syscall.Exec("/proc/self/exe", []string{"berth-executor", "keeper", stateDir, exe, fmt.Sprint(fd)}, environment())
		failed <- fmt.Errorf("execve: %w", err)
	}()
	err = <-failed
	unix.Close(fd)
	return err
}
