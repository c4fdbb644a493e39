// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// stdio is a new container's streams: our ends, to be kept, and its ends, to be
// closed once it has them.
type stdio struct {
	out   [2]int // read ends, non-blocking; -1: none
	stdin int    // write end or the terminal's master; -1: none
	log   opened

	child   []*os.File // the container's ends
	console int        // where the terminal's master will arrive; -1: no terminal
}

// openStdio makes the streams of c, and its log file, and gives process its ends.
func (x *Executor) openStdio(c *container, req *wire.Create, process *libcontainer.Process) (*stdio, error) {
	s := &stdio{out: [2]int{-1, -1}, stdin: -1, log: opened{fd: -1}, console: -1}
	err := x.fillStdio(s, c, req, process)
	if err != nil {
		s.closeChildEnds()
		s.closeOwnEnds()
		return nil, err
	}
	return s, nil
}

func (x *Executor) fillStdio(s *stdio, c *container, req *wire.Create, process *libcontainer.Process) error {
	if req.LogPath != "" {
		var err error
		s.log, err = x.pump.within(openTime, func() (opened, error) { return openLog(req.LogPath) }, nil)
		if err != nil {
			return fmt.Errorf("log %s: %w", req.LogPath, err)
		}
	}
	if req.TTY {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("console socket: %w", err)
		}
		s.console = pair[0]
		process.ConsoleSocket = s.childEnd(pair[1], "console")
		process.ConsoleWidth, process.ConsoleHeight = req.Console.Width, req.Console.Height
		return nil
	}
	for i, name := range []string{"stdout", "stderr"} {
		own, child, err := makeFIFO(x.files.in(c.id, name))
		if err != nil {
			return err
		}
		s.out[i] = own
		f := s.childEnd(child, name)
		if i == 0 {
			process.Stdout = f
		} else {
			process.Stderr = f
		}
	}
	if !req.Stdin {
		return nil // os/exec opens /dev/null
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	s.stdin = p[1]
	process.Stdin = s.childEnd(p[0], "stdin")
	return nil
}

func (s *stdio) childEnd(fd int, name string) *os.File {
	f := os.NewFile(uintptr(fd), name)
	s.child = append(s.child, f)
	return f
}

// makeFIFO makes a stream that survives the death of everyone but the container:
// the container's own descriptor is open for reading and writing, so the pipe
// never breaks, and by its path the next executor finds it again. What that
// costs: nobody gets EPIPE from it; see throwAway.
func makeFIFO(path string) (own, child int, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return -1, -1, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	child, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	own, err = openFIFO(path)
	if err != nil {
		unix.Close(child)
		return -1, -1, err
	}
	return own, child, nil
}

// openFIFO opens our end. It does not wait for a writer.
func openFIFO(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// receiveConsole takes the terminal's master, which init has sent by now.
func (s *stdio) receiveConsole(size wire.Size) error {
	if s.console < 0 {
		return nil
	}
	master, err := receiveFD(s.console)
	unix.Close(s.console)
	s.console = -1
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	if err := unix.SetNonblock(master, true); err != nil {
		unix.Close(master)
		return fmt.Errorf("terminal: %w", err)
	}
	s.stdin = master
	if s.out[0], err = unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 5); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	return resize(master, size)
}

func receiveFD(sock int) (int, error) {
	var b [4096]byte // libcontainer sends the terminal's name along
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(sock, b[:], oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return -1, err
	}
	if n == 0 || oobn == 0 {
		return -1, errors.New("no descriptor was sent")
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("%d control messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	return fds[0], nil
}

func resize(master int, size wire.Size) error {
	if size == (wire.Size{}) {
		return nil
	}
	ws := unix.Winsize{Row: size.Height, Col: size.Width}
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &ws); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

func (s *stdio) closeChildEnds() {
	for _, f := range s.child {
		f.Close()
	}
	s.child = nil
	if s.console >= 0 {
		unix.Close(s.console)
		s.console = -1
	}
}

func (s *stdio) closeOwnEnds() {
	for _, fd := range []*int{&s.out[0], &s.out[1], &s.stdin, &s.log.fd} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// dup returns a duplicate of f, as a number above those that have a meaning at
// the start of a process.
func dup(f *os.File) (int, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	cerr := rc.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 5) })
	runtime.KeepAlive(f)
	f.Close()
	return fd, errors.Join(cerr, err)
}
