// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/keeper"
	"github.com/berth-cri/berth/oci/wire"
)

// listenOn makes the socket for requests. It is held by the keeper, so that a
// client that comes while there is no executor waits for the next one instead of
// being refused; refused means that both are gone.
func (x *Executor) listenOn() error {
	path := x.files.socket()
	if err := remove(path); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	// Bound under another name first: who finds the file can connect to it.
	tmp := path + ".tmp"
	if err := remove(tmp); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: tmp}); err != nil {
		return fmt.Errorf("bind %s: %w", tmp, err)
	}
	if err := os.Chmod(tmp, 0o600); err != nil {
		return err
	}
	if err := unix.Listen(fd, 64); err != nil {
		return fmt.Errorf("listen %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	x.listen = fd
	return x.keeper.Put(listenName, fd)
}

// serve accepts connections for ever.
func (x *Executor) serve() error {
	for {
		fd, _, err := unix.Accept4(x.listen, unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
			continue
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			// The next executor would have as little: to end would end nothing but logs.
			klog.ErrorS(err, "accept")
			time.Sleep(100 * time.Millisecond) //nolint:forbidigo // there is no event for what is free again
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		conn, err := wire.NewConn(os.NewFile(uintptr(fd), "client"))
		if err != nil {
			klog.ErrorS(err, "connection")
			continue
		}
		go x.converse(conn)
	}
}

// conversation is one connection.
type conversation struct {
	x    *Executor
	conn *wire.Conn

	mu sync.Mutex
	// requests under way
	waiting map[uint64]context.CancelFunc // +checklocks:mu
}

// converse serves one connection until its end. The end of a connection ends the
// waiting of its requests, and not what they have begun.
func (x *Executor) converse(conn *wire.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer conn.Close()
	v := &conversation{x: x, conn: conn, waiting: make(map[uint64]context.CancelFunc)}
	if err := v.hello(); err != nil {
		klog.ErrorS(err, "connection refused")
		return
	}
	for {
		m, err := conn.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				klog.ErrorS(err, "connection ended")
			}
			return
		}
		switch m.Kind {
		case wire.Request:
			rctx, rcancel := context.WithCancel(ctx)
			v.mu.Lock()
			twice := v.waiting[m.ID] != nil
			if !twice {
				v.waiting[m.ID] = rcancel
			}
			v.mu.Unlock()
			if twice {
				rcancel()
				m.Close()
				klog.ErrorS(wire.ErrMalformed, "connection ended: a request's id was used again", "id", m.ID)
				return
			}
			go v.request(rctx, rcancel, m)
		case wire.Cancel:
			m.Close()
			v.mu.Lock()
			if stop := v.waiting[m.ID]; stop != nil {
				stop()
			}
			v.mu.Unlock()
		default:
			m.Close()
			klog.ErrorS(wire.ErrMalformed, "connection ended", "kind", m.Kind)
			return
		}
	}
}

// hello settles the version.
func (v *conversation) hello() error {
	m, err := v.conn.Recv()
	if err != nil {
		return err
	}
	defer m.Close()
	var h wire.Hello
	if err := m.Decode(&h); err != nil || m.Op != wire.OpHello {
		return v.refuse(m, errors.Join(err, invalid("first request is %s: want hello", m.Op)))
	}
	if h.Max < wire.MinVersion || h.Min > wire.MaxVersion {
		return v.refuse(m, &wire.Error{Code: wire.Unsupported, Message: fmt.Sprintf(
			"executor %s speaks versions %d to %d of the protocol, not %d to %d: install berth and berth-executor of one release",
			v.x.version, wire.MinVersion, wire.MaxVersion, h.Min, h.Max)})
	}
	return v.answer(m, wire.HelloReply{
		Version: min(h.Max, wire.MaxVersion), Build: v.x.version, PID: os.Getpid(), KeeperPID: os.Getppid(), Boot: v.x.boot,
	}, nil)
}

// refuse answers a first request that is no good, and returns why: the connection
// ends with it.
func (v *conversation) refuse(m *wire.Message, why error) error {
	if err := v.answer(m, nil, why); err != nil {
		return errors.Join(why, err)
	}
	return why
}

func (v *conversation) answer(m *wire.Message, value any, err error) error {
	var a wire.Answer
	if err != nil {
		a.Err = toWire(err)
	} else if value != nil {
		b, err := json.Marshal(value)
		if err != nil {
			return err
		}
		a.Value = b
	}
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return v.conn.Send(&wire.Message{Kind: wire.Response, Op: m.Op, ID: m.ID, Body: body})
}

// request answers one request. Requests run side by side; what must not, the
// container's own locks keep apart.
func (v *conversation) request(ctx context.Context, cancel context.CancelFunc, m *wire.Message) {
	defer cancel()
	defer m.Close()
	value, err := v.handle(ctx, m)
	if errors.Is(err, keeper.ErrLost) {
		// This process is about to become the keeper. Without an answer the client asks
		// the next executor, which knows what has become of it.
		select {
		case <-ctx.Done():
			return
		case <-v.x.keeper.alone.is:
			err = v.x.keeper.alone.err()
		}
	}
	v.mu.Lock()
	delete(v.waiting, m.ID)
	v.mu.Unlock()
	if err := v.answer(m, value, err); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, os.ErrClosed) {
		klog.ErrorS(err, "answer was not sent", "op", m.Op)
	}
}

// handle is the one place where a panic of a request is recovered: it counts as a
// crash at that point, and what it had begun is taken back as after one.
func (v *conversation) handle(ctx context.Context, m *wire.Message) (value any, err error) {
	defer v.x.recoverTo(m.Op.String(), func(text string) {
		value, err = nil, &wire.Error{Code: wire.Crashed, Message: text}
	})
	return v.dispatch(ctx, m)
}

// recoverTo is to be deferred at the boundary of an operation.
func (x *Executor) recoverTo(what string, report func(text string)) {
	p := recover()
	if p == nil {
		return
	}
	x.panics.Add(1)
	klog.ErrorS(nil, "panic", "in", what, "panic", p, "stack", string(debug.Stack()))
	if report != nil {
		report(fmt.Sprintf("%s: executor panicked: %v (see its log)", what, p))
	}
}

// call decodes a request's body and calls fn with it.
func call[T any](m *wire.Message, fn func(*T) (any, error)) (any, error) {
	var req T
	if err := m.Decode(&req); err != nil {
		return nil, &wire.Error{Code: wire.Invalid, Message: err.Error()}
	}
	return fn(&req)
}

// none makes a handler's error the whole answer.
func none(err error) (any, error) { return nil, err }

func (v *conversation) dispatch(ctx context.Context, m *wire.Message) (any, error) {
	x := v.x
	switch m.Op {
	case wire.OpPodCreate:
		return call(m, func(r *wire.PodCreate) (any, error) { return none(x.podCreate(ctx, r, m)) })
	case wire.OpPodDelete:
		return call(m, func(r *wire.Target) (any, error) { return none(x.podDelete(ctx, r.ID)) })
	case wire.OpCreate:
		return call(m, func(r *wire.Create) (any, error) { return x.create(ctx, r) })
	case wire.OpStart:
		return call(m, func(r *wire.Target) (any, error) { return none(x.start(ctx, r.ID)) })
	case wire.OpSignal:
		return call(m, func(r *wire.Signal) (any, error) { return none(x.signal(ctx, r.ID, r.Signal)) })
	case wire.OpKillAll:
		return call(m, func(r *wire.Target) (any, error) { return none(x.killAll(ctx, r.ID)) })
	case wire.OpDelete:
		return call(m, func(r *wire.Target) (any, error) { return none(x.delete(ctx, r.ID)) })
	case wire.OpUpdate:
		return call(m, func(r *wire.Update) (any, error) { return none(x.update(ctx, r)) })
	case wire.OpExec:
		return call(m, func(r *wire.Exec) (any, error) { return x.exec(ctx, r, m) })
	case wire.OpExecKill:
		return call(m, func(r *wire.ExecTarget) (any, error) { return none(x.execKill(ctx, r)) })
	case wire.OpAttach:
		return call(m, func(r *wire.Attach) (any, error) { return x.attach(ctx, r, m) })
	case wire.OpResize:
		return call(m, func(r *wire.Resize) (any, error) { return none(x.resize(ctx, r)) })
	case wire.OpCloseIn:
		return call(m, func(r *wire.Target) (any, error) { return none(x.closeStdin(ctx, r.ID)) })
	case wire.OpReopenLog:
		return call(m, func(r *wire.Target) (any, error) { return none(x.reopenLog(ctx, r.ID)) })
	case wire.OpStats:
		return call(m, func(r *wire.Targets) (any, error) { return x.stats(ctx, r) })
	case wire.OpObserve:
		return x.observe(), nil
	case wire.OpEvents:
		return none(x.events(ctx, func(e *wire.Exit) error { return v.event(m, e) }))
	case wire.OpAck:
		return call(m, func(r *wire.Ack) (any, error) { return none(x.ack(ctx, r)) })
	case wire.OpReplace:
		return call(m, func(r *wire.Replace) (any, error) { return none(x.replace(r)) })
	case wire.OpReport:
		return x.report(), nil
	case wire.OpQuit:
		return none(x.keeper.Quit())
	default:
		return nil, &wire.Error{Code: wire.Unsupported, Message: fmt.Sprintf("%s: executor %s does not know it", m.Op, x.version)}
	}
}

func (v *conversation) event(m *wire.Message, e *wire.Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return v.conn.Send(&wire.Message{Kind: wire.Event, Op: m.Op, ID: m.ID, Body: b})
}

// observe tells all that the executor holds.
func (x *Executor) observe() wire.Observed {
	var o wire.Observed
	x.mu.Lock()
	for id, p := range x.pods {
		o.Pods = append(o.Pods, id)
		if p.ended != nil {
			o.PausesEnded = append(o.PausesEnded, *p.ended)
		}
	}
	for _, u := range x.unread {
		o.Unreadable = append(o.Unreadable, wire.Unreadable{ID: u.id, Record: u.record, Why: u.why.Error()})
	}
	x.mu.Unlock()
	for _, c := range x.all() {
		now := c.snapshot()
		if now.State == wire.Creating && !c.isSettled() {
			continue // of an executor that has died, and being taken back
		}
		o.Containers = append(o.Containers, now)
		c.mu.Lock()
		for _, e := range c.execs {
			e.mu.Lock()
			o.Execs = append(o.Execs, wire.ExecState{ID: c.id, Exec: e.rec.Exec, Process: e.rec.Process, Exit: e.exit})
			e.mu.Unlock()
		}
		c.mu.Unlock()
	}
	return o
}

// tryTime is how long a new binary may take to tell its version.
const tryTime = 10 * time.Second

// replace makes room for new binaries: the keeper becomes its own at once, and
// this executor ends, which is as safe as its death at any other moment.
func (x *Executor) replace(r *wire.Replace) error {
	for _, path := range []string{r.Keeper, r.Executor} {
		if path == "" {
			continue
		}
		if err := tryBinary(path); err != nil {
			return err
		}
	}
	if r.Executor != "" {
		if err := x.keeper.SetExecutor(r.Executor); err != nil {
			return err
		}
	}
	if r.Keeper != "" {
		if err := x.keeper.Replace(r.Keeper); err != nil {
			return err
		}
		// An answer, whatever it says, is the new one's. If there is none we become the
		// keeper, and must not end before.
		if err := x.keeper.Delete("replaced"); err != nil {
			return err
		}
	}
	if r.Executor != "" {
		// After the answer had a chance to go out; the client takes the end of the
		// connection for one, too.
		go func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL) }()
	}
	return nil
}

// tryBinary runs what is to replace us, so that a wrong file, or one whose
// libraries are missing, is refused while nothing has happened yet.
func tryBinary(path string) error {
	if !filepath.IsAbs(path) {
		return invalid("replace: %s: not an absolute path", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), tryTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return invalid("replace: %s --version: %v", path, err)
	}
	if !strings.HasPrefix(string(out), "berth-executor ") {
		return invalid("replace: %s is no berth-executor: it says %.100q", path, out)
	}
	return nil
}
