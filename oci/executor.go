// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// Errors of the connection to the executor. What the executor itself answers is a
// *wire.Error.
var (
	// ErrGone is returned when neither an executor nor a keeper holds the socket.
	ErrGone = errors.New("executor and keeper are gone")

	// ErrClosed is returned after Close.
	ErrClosed = errors.New("executor client is closed")

	// ErrDies is returned for a request during which executor after executor has
	// died: it may be the reason, so it is not sent again.
	ErrDies = errors.New("executor dies again and again")

	// errLost ends the calls of a connection whose executor has died.
	errLost = errors.New("executor has died")
)

// maxDeaths is how many executors may die during one request. It is above what
// bad luck or a test's kills can do, and ends what a request that kills them does
// to the node.
const maxDeaths = 20

// Executor is the node's executor. Its methods may be called by many goroutines.
type Executor struct {
	state string

	mu sync.Mutex
	// Execs under way, by "ID/EXEC"; closed at their end
	execs   map[string]chan struct{} // +checklocks:mu
	conn    *conn                    // +checklocks:mu
	attempt *attempt                 // +checklocks:mu
	closed  bool                     // +checklocks:mu
}

// Open connects to the executor of the state folder. It returns ErrGone if there
// is none; Start starts one.
func Open(ctx context.Context, state string) (*Executor, error) {
	e := &Executor{state: state, execs: make(map[string]chan struct{})}
	if _, err := e.connection(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// Close ends the connection. Containers, executor and keeper are left alone.
func (e *Executor) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.conn != nil {
		e.conn.Close()
	}
	if e.attempt != nil {
		e.attempt.cancel()
	}
}

// Peer tells of the executor that is connected now.
func (e *Executor) Peer(ctx context.Context) (wire.HelloReply, error) {
	c, err := e.connection(ctx)
	if err != nil {
		return wire.HelloReply{}, err
	}
	return c.hello, nil
}

// attempt is the one attempt to connect that is under way. Many wait for it, each as
// long as he likes to; it ends when nobody does any more.
type attempt struct {
	cancel  context.CancelFunc
	waiting int           // of Executor.mu
	done    chan struct{} // closed when the rest is set
	conn    *conn
	err     error
}

// connection returns the connection that is there, or one that is made now.
func (e *Executor) connection(ctx context.Context) (*conn, error) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, ErrClosed
	}
	if e.conn != nil && !e.conn.isLost() {
		defer e.mu.Unlock()
		return e.conn, nil
	}
	a := e.attempt
	if a == nil {
		dctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		a = &attempt{cancel: cancel, done: make(chan struct{})}
		e.attempt = a
		go e.connect(dctx, a)
	}
	a.waiting++
	e.mu.Unlock()
	select {
	case <-a.done:
		return a.conn, a.err
	case <-ctx.Done():
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	a.waiting--
	if a.waiting == 0 {
		a.cancel()
		if e.attempt == a {
			e.attempt = nil
		}
	}
	return nil, fmt.Errorf("connect to the executor: %w", context.Cause(ctx))
}

// connect makes the connection that an attempt is for.
func (e *Executor) connect(ctx context.Context, a *attempt) {
	defer a.cancel()
	defer close(a.done)
	a.conn, a.err = e.dial(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	wanted := e.attempt == a
	if wanted {
		e.attempt = nil
	}
	if e.closed {
		wanted = false
		a.err = ErrClosed
	}
	switch {
	case a.conn == nil:
	case wanted:
		e.conn = a.conn
	default:
		a.conn.Close()
		a.conn = nil
		a.err = cmp.Or(a.err, context.Canceled)
	}
}

func (e *Executor) dial(ctx context.Context) (*conn, error) {
	for {
		c, err := dial(ctx, filepath.Join(e.state, "executor.sock"))
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, errLost):
			// The executor that had accepted us died before it said hello, or we waited in
			// the queue of one: the socket is held, so the next is on its way.
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		default:
			return nil, err
		}
	}
}

// call sends a request and waits for its answer. When the executor dies first,
// done looks, over the new connection, whether the request was done, and fills in
// the answer if so; without it the request is sent again, since twice is as good
// as once.
func (e *Executor) call(ctx context.Context, op wire.Op, req, reply any, files []*os.File, done func(ctx context.Context) (bool, error)) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	for range maxDeaths {
		c, err := e.connection(ctx)
		if err != nil {
			return err
		}
		err = c.do(ctx, op, body, reply, files)
		if !errors.Is(err, errLost) {
			return err
		}
		if done == nil {
			continue
		}
		was, err := done(ctx)
		if err != nil || was {
			return err
		}
	}
	return fmt.Errorf("%s: %w", op, ErrDies)
}

// PodCreate hands over a pod's namespaces, one file for each name, and makes its
// /dev/shm. Again is no error.
func (e *Executor) PodCreate(ctx context.Context, p wire.PodCreate, namespaces []*os.File) error {
	return e.call(ctx, wire.OpPodCreate, p, nil, namespaces, nil)
}

// PodDelete lets go of a pod. Again is no error.
func (e *Executor) PodDelete(ctx context.Context, id string) error {
	return e.call(ctx, wire.OpPodDelete, wire.Target{ID: id}, nil, nil, nil)
}

// Create makes a container that waits to be started.
func (e *Executor) Create(ctx context.Context, r wire.Create) (wire.Created, error) {
	if r.Spec != nil {
		r.Env = wire.EnvBytes(r.Spec.Process)
	}
	var created wire.Created
	err := e.call(ctx, wire.OpCreate, r, &created, nil, func(ctx context.Context) (bool, error) {
		c, ok, err := e.container(ctx, r.ID)
		created = c.Process
		return ok, err
	})
	return created, err
}

// Start lets a created container run.
func (e *Executor) Start(ctx context.Context, id string) error {
	return e.call(ctx, wire.OpStart, wire.Target{ID: id}, nil, nil, func(ctx context.Context) (bool, error) {
		c, ok, err := e.container(ctx, id)
		return ok && c.State != wire.IsCreated, err
	})
}

// Signal sends a signal to a container's first process; one that has ended is no
// error.
func (e *Executor) Signal(ctx context.Context, id string, signal unix.Signal) error {
	return e.call(ctx, wire.OpSignal, wire.Signal{ID: id, Signal: int(signal)}, nil, nil, nil)
}

// KillAll kills every process of a container and returns when none is left.
func (e *Executor) KillAll(ctx context.Context, id string) error {
	return e.call(ctx, wire.OpKillAll, wire.Target{ID: id}, nil, nil, nil)
}

// Delete forgets a container that has ended or was never started. Again is no error.
func (e *Executor) Delete(ctx context.Context, id string) error {
	return e.call(ctx, wire.OpDelete, wire.Target{ID: id}, nil, nil, nil)
}

// Update changes a container's resources, all of them or none.
func (e *Executor) Update(ctx context.Context, u wire.Update) error {
	return e.call(ctx, wire.OpUpdate, u, nil, nil, nil)
}

// Exec runs one more process in a container, with stdio as wire.Exec says. It is run
// at most once: where the executor dies in the middle, and nobody can know whether it
// ran, the error's code is wire.Lost.
func (e *Executor) Exec(ctx context.Context, r wire.Exec, stdio []*os.File) (wire.Created, error) {
	defer e.beginExec(r.ID, r.Exec)()
	r.Env = wire.EnvBytes(r.Process)
	var created wire.Created
	err := e.call(ctx, wire.OpExec, r, &created, stdio, func(ctx context.Context) (bool, error) {
		o, err := e.Observe(ctx)
		if err != nil {
			return false, err
		}
		for _, x := range o.Execs {
			if x.ID == r.ID && x.Exec == r.Exec {
				created = x.Process
				return x.Process.PID != 0, nil // else it is lost, and to ask again is answered so
			}
		}
		return false, nil
	})
	return created, err
}

// ExecKill ends an exec'd process, with its tree if it has a cgroup of its own,
// and returns when it has been reaped.
func (e *Executor) ExecKill(ctx context.Context, id, exec string) error {
	return e.call(ctx, wire.OpExecKill, wire.ExecTarget{ID: id, Exec: exec}, nil, nil, nil)
}

// Attach copies between a container's streams and files until one side ends. An
// executor that dies in between is followed by an attach to the next: what the
// container wrote meanwhile is in its log, and was not sent.
func (e *Executor) Attach(ctx context.Context, a wire.Attach, files []*os.File) (wire.AttachReply, error) {
	var reply wire.AttachReply
	err := e.call(ctx, wire.OpAttach, a, &reply, files, nil)
	return reply, err
}

// Resize sets the size of a container's terminal.
func (e *Executor) Resize(ctx context.Context, r wire.Resize) error {
	return e.call(ctx, wire.OpResize, r, nil, nil, nil)
}

// CloseStdin ends a container's input: EOF, or a hang-up of its terminal.
func (e *Executor) CloseStdin(ctx context.Context, id string) error {
	return e.call(ctx, wire.OpCloseIn, wire.Target{ID: id}, nil, nil, nil)
}

// ReopenLog makes a container's log go on in the file that has its path now.
func (e *Executor) ReopenLog(ctx context.Context, id string) error {
	return e.call(ctx, wire.OpReopenLog, wire.Target{ID: id}, nil, nil, nil)
}

// Stats reads what containers use; no ids means all.
func (e *Executor) Stats(ctx context.Context, ids ...string) (wire.StatsReply, error) {
	var reply wire.StatsReply
	err := e.call(ctx, wire.OpStats, wire.Targets{IDs: ids}, &reply, nil, nil)
	return reply, err
}

// Observe tells all that the executor holds.
func (e *Executor) Observe(ctx context.Context) (wire.Observed, error) {
	var o wire.Observed
	err := e.call(ctx, wire.OpObserve, struct{}{}, &o, nil, nil)
	return o, err
}

func (e *Executor) container(ctx context.Context, id string) (wire.Container, bool, error) {
	o, err := e.Observe(ctx)
	if err != nil {
		return wire.Container{}, false, err
	}
	for _, c := range o.Containers {
		if c.ID == id && c.State != wire.Creating {
			return c, true, nil
		}
	}
	return wire.Container{}, false, nil
}

// beginExec keeps the exit of an exec from being acknowledged before Exec has
// returned: by what the executor knows of it until then, one whose answer was lost is
// not run again.
func (e *Executor) beginExec(id, exec string) (end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := id + "/" + exec
	if e.execs[key] != nil {
		return func() {} // twice at once: the executor refuses one of them
	}
	done := make(chan struct{})
	e.execs[key] = done
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.execs, key)
		close(done)
	}
}

// Ack says that an exit was recorded. exec is "" for the container's own; that of an
// Exec that has not returned yet waits for it.
func (e *Executor) Ack(ctx context.Context, id, exec string) error {
	e.mu.Lock()
	under := e.execs[id+"/"+exec]
	e.mu.Unlock()
	if under != nil {
		select {
		case <-under:
		case <-ctx.Done():
			return fmt.Errorf("ack: %w", context.Cause(ctx))
		}
	}
	return e.call(ctx, wire.OpAck, wire.Ack{ID: id, Exec: exec}, nil, nil, nil)
}

// Replace makes room for new binaries; the next executor is there when it returns.
func (e *Executor) Replace(ctx context.Context, r wire.Replace) error {
	before, err := e.Peer(ctx)
	if err != nil {
		return err
	}
	err = e.call(ctx, wire.OpReplace, r, nil, nil, func(ctx context.Context) (bool, error) {
		now, err := e.Peer(ctx)
		return now.Boot != before.Boot, err
	})
	if err != nil || r.Executor == "" {
		return err
	}
	c, err := e.connection(ctx)
	if err != nil || c.hello.Boot != before.Boot {
		return err
	}
	select {
	case <-c.lost:
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err = e.connection(ctx)
	return err
}

// Report tells of the executor itself.
func (e *Executor) Report(ctx context.Context) (wire.Report, error) {
	var r wire.Report
	err := e.call(ctx, wire.OpReport, struct{}{}, &r, nil, nil)
	return r, err
}

// Quit ends the executor and the keeper, and leaves the containers alone. It
// returns when the executor is gone.
func (e *Executor) Quit(ctx context.Context) error {
	c, err := e.connection(ctx)
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.do(ctx, wire.OpQuit, nil, nil, nil); err != nil && !errors.Is(err, errLost) {
		return err
	}
	select {
	case <-c.lost:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Events calls fn with every exit that is not acknowledged and then each new one,
// until ctx ends or fn fails. fn is called by one goroutine.
func (e *Executor) Events(ctx context.Context, fn func(wire.Exit) error) error {
	for {
		c, err := e.connection(ctx)
		if err != nil {
			return err
		}
		err = c.stream(ctx, wire.OpEvents, nil, nil, func(m *wire.Message) error {
			if m.Kind == wire.Response {
				return answer(m, nil)
			}
			var exit wire.Exit
			if err := m.Decode(&exit); err != nil {
				return err
			}
			return fn(exit)
		})
		if !errors.Is(err, errLost) {
			return err
		}
	}
}
