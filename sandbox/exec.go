// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/wire"
)

var (
	// ErrExecTimeout says that a command was killed because it took longer than it may.
	ErrExecTimeout = errors.New("command took longer than it may")
	// ErrNotRunning refuses what needs a container that runs.
	ErrNotRunning = errors.New("container is not running")
)

// ExitError says that a command has ended with another code than 0.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("command ended with exit code %d", e.Code) }

// Streams is what the executor does with containers that run.
type Streams interface {
	Exec(ctx context.Context, r wire.Exec, stdio []*os.File) (wire.Created, error)
	ExecKill(ctx context.Context, id, exec string) error
	Attach(ctx context.Context, a wire.Attach, files []*os.File) (wire.AttachReply, error)
	Resize(ctx context.Context, r wire.Resize) error
	CloseStdin(ctx context.Context, id string) error
	ReopenLog(ctx context.Context, id string) error
	Stats(ctx context.Context, ids ...string) (wire.StatsReply, error)
	Update(ctx context.Context, u wire.Update) error
}

var _ Streams = (*oci.Executor)(nil)

const (
	// execDrain is how long the output of a command is waited for after it has ended:
	// what it left behind may keep its pipes open for ever.
	execDrain = 200 * time.Millisecond
	// syncMax is how much of a stream ExecSync keeps. A kubelet takes 16 MiB for the
	// whole answer, of which gRPC and protobuf need a little.
	syncMax = 16<<20 - 64<<10
)

// execExits tells those who wait for a command how it ended.
type execExits struct {
	mu sync.Mutex
	// By container and exec.
	waiting map[string]chan wire.Exit // +checklocks:mu
}

func (e *execExits) expect(key string) <-chan wire.Exit {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.waiting == nil {
		e.waiting = make(map[string]chan wire.Exit)
	}
	ch := make(chan wire.Exit, 1)
	e.waiting[key] = ch
	return ch
}

func (e *execExits) forget(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.waiting, key)
}

func (e *execExits) tell(key string, x wire.Exit) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ch := e.waiting[key]; ch != nil {
		delete(e.waiting, key) // told once; the executor may tell it again
		ch <- x
	}
}

// command is a process that runs in a container beside its first.
type command struct {
	c      *container
	name   string // unique for ever: a berth that comes later must not take it for its own
	exited <-chan wire.Exit
}

// runs returns ErrNotRunning unless the container has a process.
func (c *container) runs() error {
	if s := c.state(); !s.runs() {
		return fmt.Errorf("container %s is %s: %w", c.id, cmp.Or(s, "gone"), ErrNotRunning)
	}
	return nil
}

// exec starts a command. The files are closed, whatever comes of it.
func (c *container) exec(ctx context.Context, r wire.Exec, files []*os.File, args []string, tty bool) (*command, error) {
	defer closeFiles(files)
	if err := c.runs(); err != nil {
		return nil, err
	}
	p, err := c.commandOf(ctx, args, tty)
	if err != nil {
		return nil, err
	}
	r.ID, r.Exec, r.Process = string(c.id), strings.ToLower(rand.Text()), p
	cmd := &command{c: c, name: r.Exec}
	cmd.exited = c.rt.execs.expect(cmd.key())
	if _, err := c.rt.cfg.Streams.Exec(ctx, r, files); err != nil {
		c.rt.execs.forget(cmd.key())
		if ctx.Err() != nil { // it may have started all the same
			err = errors.Join(err, cmd.kill(ctx))
		}
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	return cmd, nil
}

func (x *command) key() string { return string(x.c.id) + "/" + x.name }

// kill ends the command, and its tree where it has a cgroup of its own, and returns
// when it has been reaped. It does not matter that ctx has ended.
func (x *command) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), killLimit, ErrTimeout)
	defer cancel()
	err := x.c.rt.cfg.Streams.ExecKill(ctx, string(x.c.id), x.name)
	if errors.Is(err, &wire.Error{Code: wire.NotFound}) {
		return nil
	}
	return err
}

// wait returns how the command ended; when ctx ends before, it is killed.
func (x *command) wait(ctx context.Context) (wire.Exit, error) {
	defer x.c.rt.execs.forget(x.key())
	select {
	case exit := <-x.exited:
		return exit, nil
	case <-x.c.ended:
		// Its exit, if anybody can tell, was told before that of the container.
		select {
		case exit := <-x.exited:
			return exit, nil
		default:
			return wire.Exit{Code: 137}, nil
		}
	case <-ctx.Done():
		return wire.Exit{}, errors.Join(context.Cause(ctx), x.kill(ctx))
	}
}

// commandOf is a command's process: as the container's, with other arguments.
func (c *container) commandOf(ctx context.Context, args []string, tty bool) (*specs.Process, error) {
	pl, err := c.planned()
	if err != nil {
		return nil, err
	}
	// What is not of the process costs time to look up, and every probe would pay.
	pl.config.Mounts, pl.config.Devices, pl.Volumes = nil, nil, nil
	if sc := pl.config.GetLinux().GetSecurityContext(); sc != nil {
		sc.Seccomp, sc.SeccompProfilePath = nil, "" //nolint:staticcheck // deprecated, and sent by kubelets all the same
	}
	s, err := c.rt.specOf(ctx, c, pl, false)
	if err != nil {
		return nil, err
	}
	s.Process.Args, s.Process.Terminal = args, tty
	if tty && !slices.ContainsFunc(s.Process.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		s.Process.Env = append(s.Process.Env, "TERM=xterm")
	}
	return s.Process, nil
}

// ExecSync runs a command and returns what it wrote and its exit code. Each stream is
// cut at what a kubelet can receive, without an error. A timeout of 0 is none; after
// another the command is killed, with all that it started, and ErrExecTimeout returned.
func (rt *Runtime) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (*cri.ExecSyncResponse, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("%w: no command", ErrInvalid)
	}
	c, err := rt.findContainer(id)
	if err != nil {
		return nil, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w, %v, and was killed", ErrExecTimeout, timeout))
		defer cancel()
	}
	out, theirOut, err := newCapture()
	if err != nil {
		return nil, err
	}
	errs, theirErr, err := newCapture()
	if err != nil {
		closeFiles([]*os.File{theirOut, out.from})
		return nil, err
	}
	defer func() { // where it failed: what was begun is not waited for
		out.until(time.Now())
		errs.until(time.Now())
		out.end()
		errs.end()
	}()
	r := wire.Exec{Stdout: true, Stderr: true, OwnCgroup: timeout > 0}
	cmd, err := c.exec(ctx, r, []*os.File{theirOut, theirErr}, args, false)
	if err != nil {
		if cause := context.Cause(ctx); ctx.Err() != nil && errors.Is(cause, ErrExecTimeout) {
			return nil, cause
		}
		return nil, err
	}
	exit, err := cmd.wait(ctx)
	if err != nil {
		return nil, err
	}
	limit := time.Now().Add(execDrain)
	out.until(limit)
	errs.until(limit)
	stdout, stderr := out.end(), errs.end()
	if most := syncMax - len(stdout); len(stderr) > most {
		stderr = stderr[:most]
	}
	return &cri.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(exit.Code)}, nil
}

// capture keeps what comes out of a pipe, up to syncMax.
type capture struct {
	from *os.File
	done chan struct{}
	buf  bytes.Buffer // of the reader until done is closed
}

func newCapture() (c *capture, theirs *os.File, err error) {
	from, theirs, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	c = &capture{from: from, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		copyOut(c, from)
	}()
	return c, theirs, nil
}

// Write keeps what there is room for: a command must not wait for us.
func (c *capture) Write(b []byte) (int, error) {
	c.buf.Write(b[:min(len(b), syncMax-c.buf.Len())])
	return len(b), nil
}

// until ends the waiting for more at a time.
func (c *capture) until(at time.Time) { _ = c.from.SetReadDeadline(at) }

// end waits for the end of the reading, which until or the pipe's end brings, and
// returns what there is. Again it only does the latter.
func (c *capture) end() []byte {
	<-c.done
	c.from.Close()
	return c.buf.Bytes()
}

// drainMax is how much is delivered that was written after a deadline: as much as a
// pipe can hold. What goes on writing for ever is not waited for.
const drainMax = 1 << 20

// copyOut copies until the pipe's end or its read deadline. What is in the pipe then is
// still delivered: the deadline may have passed while a slow client was written to.
func copyOut(to io.Writer, from *os.File) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return
		}
	}
	for late := 0; late < drainMax; {
		n := readNow(from, buf)
		if n <= 0 {
			return
		}
		late += n
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// readNow reads what is there without waiting.
func readNow(from *os.File, buf []byte) (n int) {
	rc, err := from.SyscallConn()
	if err != nil || from.SetReadDeadline(time.Time{}) != nil {
		return 0
	}
	_ = rc.Read(func(fd uintptr) bool {
		n, _ = unix.Read(int(fd), buf)
		return true
	})
	return n
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Stdio is the other side of a command's or a container's streams; nil is none.
type Stdio struct {
	In       io.Reader
	Out, Err io.WriteCloser
	TTY      bool // of a command; a container has what it was made with
	// Resize tells of new sizes of the client's terminal, until it is closed. May be nil.
	Resize <-chan wire.Size
}

// Exec runs a command with streams, until it has ended and its output is delivered,
// or ctx ends. An exit code other than 0 is an *ExitError.
func (rt *Runtime) Exec(ctx context.Context, id string, args []string, io Stdio) error {
	if len(args) == 0 {
		return fmt.Errorf("%w: no command", ErrInvalid)
	}
	c, err := rt.findContainer(id)
	if err != nil {
		return err
	}
	var exit wire.Exit
	if io.TTY {
		exit, err = c.execTerminal(ctx, args, io)
	} else {
		exit, err = c.execPipes(ctx, args, io)
	}
	if err == nil && exit.Code != 0 {
		err = &ExitError{Code: exit.Code}
	}
	return err
}

// execPipes runs a command on pipes.
func (c *container) execPipes(ctx context.Context, args []string, s Stdio) (wire.Exit, error) {
	p, err := newPlumbing(s)
	if err != nil {
		return wire.Exit{}, err
	}
	defer p.close()
	r := wire.Exec{Stdin: s.In != nil, Stdout: s.Out != nil, Stderr: s.Err != nil}
	cmd, err := c.exec(ctx, r, p.theirs, args, false)
	if err != nil {
		return wire.Exit{}, err
	}
	p.run()
	exit, err := cmd.wait(ctx)
	p.drain(execDrain)
	return exit, err
}

// execTerminal runs a command on a terminal of its own.
func (c *container) execTerminal(ctx context.Context, args []string, s Stdio) (wire.Exit, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return wire.Exit{}, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "console")
	cmd, err := c.exec(ctx, wire.Exec{}, []*os.File{theirs}, args, true)
	if err != nil {
		return wire.Exit{}, err
	}
	master, err := receiveFile(pair[0])
	if err != nil {
		return wire.Exit{}, errors.Join(fmt.Errorf("terminal: %w", err), cmd.kill(ctx))
	}
	defer master.Close() // a hang-up for what is left
	p := &plumbing{}
	if s.In != nil {
		p.copies = append(p.copies, func() { _, _ = io.Copy(master, s.In) })
	}
	if s.Out != nil {
		p.outs.Go(func() { copyOut(s.Out, master); s.Out.Close() })
	}
	if s.Resize != nil {
		p.copies = append(p.copies, func() {
			for size := range s.Resize {
				_ = setSize(master, size)
			}
		})
	}
	p.deadline = func(t time.Time) { _ = master.SetReadDeadline(t) }
	p.run()
	exit, err := cmd.wait(ctx)
	p.drain(execDrain)
	return exit, err
}

// Attach connects streams to those of a container, until it ends, the client goes, or
// ctx ends.
func (rt *Runtime) Attach(ctx context.Context, id string, s Stdio) error {
	c, err := rt.findContainer(id)
	if err != nil {
		return err
	}
	if err := c.runs(); err != nil {
		return err
	}
	p, err := newPlumbing(s)
	if err != nil {
		return err
	}
	defer p.close()
	if s.Resize != nil {
		p.copies = append(p.copies, func() {
			for size := range s.Resize {
				_ = rt.cfg.Streams.Resize(ctx, wire.Resize{ID: string(c.id), Size: size})
			}
		})
	}
	p.run()
	_, err = rt.cfg.Streams.Attach(ctx, wire.Attach{ID: string(c.id), Stdin: s.In != nil, Stdout: s.Out != nil, Stderr: s.Err != nil}, p.theirs)
	closeFiles(p.theirs)
	p.theirs = nil
	p.drain(execDrain)
	return err
}

// plumbing copies between streams and the pipes whose other ends a process gets.
type plumbing struct {
	theirs, ours []*os.File
	copies       []func() // that nobody waits for: they end when the client goes
	outs         sync.WaitGroup
	outFns       []func()
	deadline     func(time.Time)
}

// newPlumbing makes a pipe for each stream, in the order stdin, stdout, stderr.
func newPlumbing(s Stdio) (_ *plumbing, err error) {
	p := &plumbing{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if s.In != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		p.theirs, p.ours = append(p.theirs, r), append(p.ours, w)
		p.copies = append(p.copies, func() { _, _ = io.Copy(w, s.In); w.Close() })
	}
	var reads []*os.File
	for _, to := range []io.WriteCloser{s.Out, s.Err} {
		if to == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		p.theirs, p.ours, reads = append(p.theirs, w), append(p.ours, r), append(reads, r)
		p.outFns = append(p.outFns, func() { copyOut(to, r); to.Close() })
	}
	p.deadline = func(t time.Time) {
		for _, r := range reads {
			_ = r.SetReadDeadline(t)
		}
	}
	return p, nil
}

// run starts the copying.
func (p *plumbing) run() {
	for _, fn := range p.copies {
		go fn()
	}
	for _, fn := range p.outFns {
		p.outs.Go(fn)
	}
	p.outFns = nil
}

// drain waits until all output is delivered, or, where something that was left behind
// keeps a pipe open, for a while.
func (p *plumbing) drain(limit time.Duration) {
	p.deadline(time.Now().Add(limit))
	p.outs.Wait()
}

func (p *plumbing) close() {
	closeFiles(p.theirs)
	closeFiles(p.ours)
}

// receiveFile receives a descriptor that was sent over a socket, and makes it fit for
// reading with deadlines.
func receiveFile(socket int) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 4096), oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(errors.New("no descriptor came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("no descriptor came"), err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func setSize(master *os.File, s wire.Size) error {
	rc, err := master.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
	})
	return errors.Join(cerr, err)
}

// Dial connects to a port of a pod that is ready, inside its network.
func (rt *Runtime) Dial(ctx context.Context, podID string, port int32) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("%w: port %d", ErrInvalid, port)
	}
	p, r, err := rt.podRecord(podID)
	if err != nil {
		return nil, err
	}
	if PodState(r.State) != PodReady {
		return nil, fmt.Errorf("pod %s is %s: %w", p.id, r.State, ErrState)
	}
	conn, err := rt.cfg.Network.Dial(ctx, r.Network.Namespace, port)
	if err != nil {
		return nil, fmt.Errorf("pod %s: port %d: %w", p.id, port, err)
	}
	return conn, nil
}

// ReopenLog makes a container's log go on in the file that has its path now.
func (rt *Runtime) ReopenLog(ctx context.Context, id string) error {
	c, err := rt.findContainer(id)
	if err != nil {
		return err
	}
	if err := c.runs(); err != nil {
		return err
	}
	return rt.cfg.Streams.ReopenLog(ctx, string(c.id))
}

// UpdateResources changes what a container may use, all of it or nothing.
func (rt *Runtime) UpdateResources(ctx context.Context, id string, want *cri.LinuxContainerResources) error {
	c, err := rt.findContainer(id)
	if err != nil {
		return err
	}
	return c.operate(ctx, "update "+rand.Text(), func(ctx context.Context) error { return c.update(ctx, want) })
}

// noteExecExit tells who waits for a command how it ended, and the executor that it
// need not tell again.
func (rt *Runtime) noteExecExit(x wire.Exit) {
	rt.execs.tell(x.ID+"/"+x.Exec, x)
	rt.background(func(ctx context.Context) { // other exits do not wait for it
		if err := rt.cfg.Exits.Ack(ctx, x.ID, x.Exec); err != nil && ctx.Err() == nil {
			rt.cfg.Log.Error(err, "Exit of a command is not acknowledged", "container", x.ID)
		}
	})
}
