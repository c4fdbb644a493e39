// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// backlog is how much output waits for an attached client that is slow. More is
// dropped for it, and counted: neither the container nor its log ever waits.
const backlog = 1 << 20

// sink is one stream of one attached client.
type sink struct {
	stream int
	f      *os.File

	mu      sync.Mutex
	queue   []byte        // +checklocks:mu
	dropped int64         // +checklocks:mu
	ended   bool          // +checklocks:mu
	wake    chan struct{} // one signal is enough
	done    chan struct{} // closed when nothing more will be written
}

func newSink(stream int, f *os.File) *sink {
	return &sink{stream: stream, f: f, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// offer queues b, all of it or nothing, and never waits.
func (k *sink) offer(b []byte) {
	k.mu.Lock()
	if len(k.queue)+len(b) > backlog || k.ended {
		k.dropped += int64(len(b))
	} else {
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
		k.mu.Lock()
		b, ended := k.queue, k.ended
		k.queue = nil
		k.mu.Unlock()
		if _, err := k.f.Write(b); err != nil || ended && len(b) == 0 {
			return
		}
		if ended {
			k.signal() // once more, for what came in between
		}
	}
}

// attach copies between a container's streams and the descriptors of m until the
// container's output ends, the client is gone, or ctx ends.
func (x *Executor) attach(ctx context.Context, req *wire.Attach, m *wire.Message) (wire.AttachReply, error) {
	c, err := x.find(req.ID)
	if err != nil {
		return wire.AttachReply{}, err
	}
	files, err := attachFiles(req, m)
	if err != nil {
		return wire.AttachReply{}, err
	}
	defer func() {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}()
	c.mu.Lock()
	state, hasStdin := c.state, c.stdin >= 0
	c.mu.Unlock()
	if state != wire.Running && state != wire.IsCreated {
		return wire.AttachReply{}, badState(c.id, state, "attach needs a running container")
	}
	if req.Stdin && !hasStdin {
		return wire.AttachReply{}, &wire.Error{Code: wire.BadState, Message: "container " + c.id + ": stdin is not open (any more)"}
	}
	x.attached.Add(1)
	defer x.attached.Add(-1)
	return x.copyStreams(ctx, c, files)
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

	copying, stopCopying := context.WithCancel(ctx)
	defer stopCopying()
	var stdinEnded chan error // nil: nothing to wait for
	if files[0] != nil {
		stdinEnded = make(chan error, 1)
		go func(from *os.File) { stdinEnded <- x.copyStdin(copying, c, from) }(files[0])
	}
	outEnded := make(chan struct{})
	go func() {
		defer close(outEnded)
		for _, k := range sinks {
			<-k.done
		}
	}()
	for _, k := range sinks {
		go k.run()
	}
	var out <-chan struct{} = outEnded
	if len(sinks) == 0 {
		out = nil // stdin only
	}
	var err error
	for waiting := true; waiting; {
		select {
		case <-out:
			waiting = false
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
	reply := finishCopy(c, files, sinks, outEnded)
	if stdinEnded != nil {
		err = errors.Join(err, <-stdinEnded) // its end may be the container's stdin's
	}
	return reply, err
}

// finishCopy lets queued output go out to a client that still reads, and ends all
// the copying.
func finishCopy(c *container, files [3]*os.File, sinks []*sink, outEnded <-chan struct{}) wire.AttachReply {
	c.tail.detach(sinks)
	for _, k := range sinks {
		k.finish()
	}
	waitAtMost(outEnded, drainTime)
	for i, f := range files {
		if f != nil {
			f.Close() // also ends a write that hangs, and the copying of stdin
			files[i] = nil
		}
	}
	<-outEnded
	var reply wire.AttachReply
	for _, k := range sinks {
		k.mu.Lock()
		reply.Dropped += k.dropped
		k.mu.Unlock()
	}
	return reply
}

// copyStdin copies a client's input to the container until the client's end. With
// StdinOnce that end becomes the container's.
func (x *Executor) copyStdin(ctx context.Context, c *container, from *os.File) error {
	c.mu.Lock()
	if c.stdin < 0 {
		c.mu.Unlock()
		return nil
	}
	once := c.rec.StdinOnce
	fd, err := unix.FcntlInt(uintptr(c.stdin), unix.F_DUPFD_CLOEXEC, 5)
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	// The flag belongs to the open file, which is ours and the keeper's alone: the
	// container's end is another.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	to := os.NewFile(uintptr(fd), "stdin")
	stop := context.AfterFunc(ctx, func() { to.Close() })
	_, err = io.Copy(to, from)
	stop()
	to.Close() // before closeStdin: it is one more holder
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed) {
		err = nil // the container reads no more
	}
	if once {
		err = errors.Join(err, x.closeStdin(c.id))
	}
	return err
}

// closeStdin ends a container's input: EOF on a pipe, a hang-up on a terminal.
// The keeper's duplicate goes first, since the end comes only when nobody holds
// it; a keeper that does not answer is as good as dead and is replaced.
func (x *Executor) closeStdin(id string) error {
	c, err := x.find(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	fd, tty := c.stdin, c.rec.TTY
	c.mu.Unlock()
	if fd < 0 {
		return nil
	}
	if tty {
		// What the terminal has to say until now is the container's output. Then its
		// master goes, which is the output's source too, and the kernel hangs up on
		// the session: SIGHUP.
		c.tail.catchUp()
		if err := x.holdWithoutOutput(c); err != nil {
			return err
		}
	}
	if err := x.keeper.Delete(stdinName(id)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stdin == fd {
		c.stdin = -1
		unix.Close(fd)
	}
	return nil
}

// holdWithoutOutput has the keeper and the tail let go of a container's streams,
// while the rest is held on under another name.
func (x *Executor) holdWithoutOutput(c *container) error {
	c.mu.Lock()
	before := c.held
	c.out = [2]int{-1, -1}
	c.mu.Unlock()
	if before == "" {
		return nil // ended
	}
	if err := x.hold(c, c.tail.endStreams()); err != nil {
		return err
	}
	if err := x.keeper.Delete(before); err != nil {
		return err
	}
	c.tail.closeEnded()
	return nil
}

// resize sets the size of a container's terminal.
func (x *Executor) resize(req *wire.Resize) error {
	c, err := x.find(req.ID)
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

// endStreams ends both streams before their time and returns the log's descriptor.
func (t *tail) endStreams() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.in {
		t.closeStreamLocked(s)
	}
	return t.log
}
