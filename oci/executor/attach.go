// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

const (
	// backlog is how much output waits for an attached client that is slow. More is
	// dropped for it, and counted: neither the container nor its log ever waits.
	backlog = 1 << 20

	// stallTime is how long a client may take nothing of what is left for it when its
	// container has ended.
	stallTime = 10 * time.Second

	// inputStream is the stream of a sink that brings input to the container.
	inputStream = 2
)

// sink is one stream of one attached client, or its way to the container's stdin.
type sink struct {
	stream int
	f      *os.File

	mu    sync.Mutex
	queue []byte // +checklocks:mu
	// bytes that the client has got
	taken int64 // +checklocks:mu
	// bytes that it was too slow for
	dropped int64 // +checklocks:mu
	// nothing more is queued
	ended bool          // +checklocks:mu
	wake  chan struct{} // one signal is enough
	done  chan struct{} // closed when nothing more will be written
}

func newSink(stream int, f *os.File) *sink {
	return &sink{stream: stream, f: f, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// offer queues b, all of it or nothing, and never waits.
func (k *sink) offer(b []byte) {
	k.mu.Lock()
	switch {
	case k.ended:
	case len(k.queue)+len(b) > backlog:
		k.dropped += int64(len(b))
	default:
		k.queue = append(k.queue, b...)
	}
	k.mu.Unlock()
	k.signal()
}

// finish lets what is queued go out, and then ends.
func (k *sink) finish() {
	k.mu.Lock()
	k.ended = true
	k.mu.Unlock()
	k.signal()
}

func (k *sink) signal() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run writes until the end, or until the client is gone.
func (k *sink) run() {
	defer close(k.done)
	for range k.wake {
		for {
			k.mu.Lock()
			b, ended := k.queue, k.ended
			k.queue = nil
			k.mu.Unlock()
			if len(b) == 0 {
				if ended {
					return
				}
				break
			}
			if !k.send(b) {
				return
			}
		}
	}
}

// send writes b in pieces, so that progress can be seen.
func (k *sink) send(b []byte) bool {
	for len(b) > 0 {
		n, err := k.f.Write(b[:min(len(b), chunk)])
		k.mu.Lock()
		k.taken += int64(n)
		b = b[n:]
		if err != nil {
			if errors.Is(err, os.ErrClosed) { // by us: the client did not read
				k.dropped += int64(len(b) + len(k.queue))
			}
			k.queue, k.ended = nil, true
		}
		k.mu.Unlock()
		if err != nil {
			return false
		}
	}
	return true
}

// gone says whether the client's end is closed.
func (k *sink) gone() bool {
	rc, err := k.f.SyscallConn()
	if err != nil {
		return true
	}
	var events int16
	err = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}} // errors and hang-ups are always told
		if n, perr := unix.Poll(p, 0); perr == nil && n > 0 {
			events = p[0].Revents
		}
	})
	return err != nil || events&(unix.POLLERR|unix.POLLHUP) != 0
}

// attach copies between a container's streams and the descriptors of m until the
// container's output ends, the client is gone, or ctx ends.
func (x *Executor) attach(ctx context.Context, req *wire.Attach, m *wire.Message) (wire.AttachReply, error) {
	c, err := x.find(ctx, req.ID)
	if err != nil {
		return wire.AttachReply{}, err
	}
	files, err := attachFiles(req, m)
	defer func() {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}()
	if err != nil {
		return wire.AttachReply{}, err
	}
	c.mu.Lock()
	state, stdin, hasStdin := c.state, c.rec.Stdin || c.rec.TTY, c.stdin >= 0
	c.mu.Unlock()
	switch {
	case state != wire.Running && state != wire.IsCreated:
		return wire.AttachReply{}, badState(c.id, state, "attach needs a running container")
	case req.Stdin && !stdin:
		return wire.AttachReply{}, &wire.Error{Code: wire.BadState, Message: "container " + c.id + ": it was made without stdin"}
	case req.Stdin && !hasStdin && inputEnded(files[0]):
		// It may be the one that closed it: its executor died before it could say so.
		_ = files[0].Close()
		files[0] = nil
	case req.Stdin && !hasStdin:
		return wire.AttachReply{}, &wire.Error{Code: wire.BadState, Message: "container " + c.id + ": its stdin was closed, and is not opened again"}
	}
	if files == ([3]*os.File{}) {
		return wire.AttachReply{}, nil
	}
	return x.copyStreams(ctx, c, files)
}

// inputEnded says whether nothing more will come from a client.
func inputEnded(f *os.File) bool {
	rc, err := f.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	err = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, perr := unix.Poll(p, 0)
		left, lerr := pending(int(fd))
		ended = perr == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLRDHUP) != 0 && lerr == nil && left == 0
	})
	return err == nil && ended
}

// attachFiles takes stdin, stdout and stderr out of m; nil for one that was not
// asked for. They join the runtime's poller, so that a Close ends a wait.
func attachFiles(req *wire.Attach, m *wire.Message) (files [3]*os.File, err error) {
	n := 0
	for i, wanted := range []bool{req.Stdin, req.Stdout, req.Stderr} {
		if !wanted {
			continue
		}
		f, err := m.Take(n)
		if err != nil {
			return files, err
		}
		n++
		fd, err := dup(f)
		if err != nil {
			return files, err
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			unix.Close(fd)
			return files, err
		}
		files[i] = os.NewFile(uintptr(fd), "attached")
	}
	return files, nil
}

func (x *Executor) copyStreams(ctx context.Context, c *container, files [3]*os.File) (wire.AttachReply, error) {
	var sinks []*sink
	for s := range 2 {
		if files[s+1] != nil {
			sinks = append(sinks, newSink(s, files[s+1]))
		}
	}
	c.tail.attach(sinks)
	defer c.tail.detach(sinks)
	x.attached.Add(1) // who sees it counted gets all that is written from now on
	defer x.attached.Add(-1)

	copying, stopCopying := context.WithCancel(ctx)
	defer stopCopying()
	var stdinEnded chan error // nil: nothing to wait for
	if files[0] != nil {
		stdinEnded = make(chan error, 1)
		go func(from *os.File) { stdinEnded <- x.copyStdin(copying, c, from) }(files[0])
	}
	sinkEnded := make(chan struct{}, len(sinks))
	for _, k := range sinks {
		go func() {
			k.run()
			sinkEnded <- struct{}{}
		}()
	}
	var err error
	for waiting := true; waiting; {
		select {
		case <-sinkEnded:
			waiting = slices.ContainsFunc(sinks, (*sink).open)
		case <-c.over:
			waiting = false
		case err = <-stdinEnded:
			stdinEnded = nil
			waiting = len(sinks) > 0 && err == nil // output may go on after the end of input
		case <-ctx.Done():
			waiting, err = false, ctx.Err()
		}
	}
	stopCopying()
	reply := finishCopy(ctx, c, files, sinks)
	if stdinEnded != nil {
		err = errors.Join(err, <-stdinEnded) // its end may be the container's stdin's
	}
	return reply, err
}

// open says whether something may still be delivered.
func (k *sink) open() bool {
	select {
	case <-k.done:
		return false
	default:
		return !k.gone()
	}
}

// finishCopy lets queued output go out to a client that still reads, and ends all
// the copying.
func finishCopy(ctx context.Context, c *container, files [3]*os.File, sinks []*sink) wire.AttachReply {
	c.tail.detach(sinks)
	for _, k := range sinks {
		k.finish()
	}
	for _, k := range sinks {
		k.await(ctx)
	}
	for i, f := range files {
		if f != nil {
			f.Close() // also ends a write that hangs, and the copying of stdin
			files[i] = nil
		}
	}
	var reply wire.AttachReply
	for _, k := range sinks {
		<-k.done
		k.mu.Lock()
		reply.Dropped += k.dropped
		k.mu.Unlock()
	}
	return reply
}

// await waits until all that was queued is out, as long as the client takes
// something now and then.
func (k *sink) await(ctx context.Context) {
	for last := int64(-1); ; {
		k.mu.Lock()
		taken := k.taken
		k.mu.Unlock()
		if taken == last {
			return
		}
		last = taken
		stalled := time.NewTimer(stallTime)
		select {
		case <-k.done:
			stalled.Stop()
			return
		case <-ctx.Done():
			stalled.Stop()
			return
		case <-stalled.C:
		}
	}
}

// copyStdin copies a client's input to the container until the client's end. With
// StdinOnce that end becomes the container's.
func (x *Executor) copyStdin(ctx context.Context, c *container, from *os.File) error {
	to, err := c.openInput()
	if to == nil || err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { to.f.Close() })
	_, err = io.Copy(to.f, from)
	stop()
	to.f.Close() // before closeStdin: it is one more holder
	c.tail.detach([]*sink{to})
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed) {
		err = nil // the container reads no more
	}
	c.mu.Lock()
	once := c.rec.StdinOnce
	c.mu.Unlock()
	if once {
		err = errors.Join(err, x.endStdin(c))
	}
	return err
}

// openInput duplicates a container's stdin for one client; nil if it is closed.
// The tail knows of it, so that closeStdin finds it.
func (c *container) openInput() (*sink, error) {
	c.mu.Lock()
	if c.stdin < 0 {
		c.mu.Unlock()
		return nil, nil
	}
	fd, err := unix.FcntlInt(uintptr(c.stdin), unix.F_DUPFD_CLOEXEC, 5)
	c.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("stdin: %w", err)
	}
	// The flag belongs to the open file, which is ours and the keeper's alone: the
	// container's end is another.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stdin: %w", err)
	}
	k := newSink(inputStream, os.NewFile(uintptr(fd), "stdin"))
	c.tail.attach([]*sink{k})
	c.mu.Lock()
	closed := c.stdin < 0
	c.mu.Unlock()
	if closed { // in between, by one who may not have seen this one
		c.tail.detach([]*sink{k})
		k.f.Close()
		return nil, nil
	}
	return k, nil
}

// closeStdin ends a container's input: EOF on a pipe, a hang-up on a terminal.
// The keeper's duplicate goes first, since the end comes only when nobody holds
// it; a keeper that does not answer is as good as dead and is replaced. Then go
// ours, those of attached clients among them.
func (x *Executor) closeStdin(ctx context.Context, id string) error {
	c, err := x.find(ctx, id)
	if err != nil {
		return err
	}
	return x.endStdin(c)
}

func (x *Executor) endStdin(c *container) error {
	c.mu.Lock()
	fd, tty := c.stdin, c.rec.TTY
	c.mu.Unlock()
	if fd < 0 {
		return nil
	}
	if tty {
		// What the terminal has to say until now is the container's output, unless its
		// log hangs. Then its master goes, which is the output's source too, and the
		// kernel hangs up on the session: SIGHUP.
		c.tail.catchUpWithin(drainTime)
		if err := x.endOutput(c); err != nil {
			return err
		}
	}
	c.keep.Lock()
	if err := x.keeper.Delete(stdinName(c.id)); err != nil {
		c.keep.Unlock()
		return err
	}
	c.mu.Lock()
	fd, c.stdin = c.stdin, -1
	c.mu.Unlock()
	c.keep.Unlock()
	for _, k := range c.tail.inputs() {
		k.f.Close()
	}
	if fd >= 0 {
		unix.Close(fd)
	}
	return nil
}

// endOutput has the keeper and the tail let go of a terminal's output before its
// end, while they go on holding the rest. In its place the keeper holds, under the
// same name, a pipe that is at its end: so there is no moment at which it holds
// less than the whole, or both, and an executor that takes over in the middle sees
// either the terminal or the end of it.
func (x *Executor) endOutput(c *container) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	unix.Close(p[1])
	c.mu.Lock()
	if c.held == "" || c.out[0] < 0 {
		c.mu.Unlock()
		unix.Close(p[0])
		return nil // ended
	}
	c.out[0] = p[0]
	c.mu.Unlock()
	return c.tail.replaceOutput(p[0], func(log int) error { return x.hold(c, log) })
}

// resize sets the size of a container's terminal.
func (x *Executor) resize(ctx context.Context, req *wire.Resize) error {
	c, err := x.find(ctx, req.ID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.rec.TTY {
		return &wire.Error{Code: wire.BadState, Message: "container " + c.id + " has no terminal"}
	}
	if c.stdin < 0 {
		return nil // ended: nothing to resize
	}
	return resize(c.stdin, req.Size)
}

func (t *tail) attach(sinks []*sink) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sinks = append(t.sinks, sinks...)
	select {
	case <-t.drained:
		for _, k := range sinks {
			k.finish()
		}
	default:
	}
}

func (t *tail) detach(sinks []*sink) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range sinks {
		for i := range t.sinks {
			if t.sinks[i] == k {
				t.sinks = append(t.sinks[:i:i], t.sinks[i+1:]...)
				break
			}
		}
	}
}

// inputs returns what attached clients bring to stdin.
func (t *tail) inputs() []*sink {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*sink
	for _, k := range t.sinks {
		if k.stream == inputStream {
			list = append(list, k)
		}
	}
	return list
}

// replaceOutput ends the one stream of a terminal. ended, which the keeper is to
// hold in its place, is the tail's from now on, to be closed when the keeper lets go.
func (t *tail) replaceOutput(ended int, keep func(log int) error) error {
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	t.ended = append(t.ended, ended)
	master, log := t.forgetLocked(0), t.shown
	t.endedLocked()
	t.mu.Unlock()
	if err := keep(log); err != nil {
		return err // master stays open: the keeper may hold it by this number
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case master < 0:
	case t.using[0]:
		t.used[0] = master
	default:
		unix.Close(master)
	}
	return nil
}
