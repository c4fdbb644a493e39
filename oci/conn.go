// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/berth-cri/berth/oci/wire"
)

// conn is a connection to one executor; it ends with it.
type conn struct {
	wire  *wire.Conn
	hello wire.HelloReply
	lost  chan struct{} // closed when the executor has died

	mu      sync.Mutex
	next    uint64            // +checklocks:mu
	waiting map[uint64]*inbox // +checklocks:mu
	// to be sent when there is room
	cancels []*wire.Message // +checklocks:mu
	cancel  chan struct{}   // has one element when there is something

	flushing chan struct{} // a lock that can be waited for with a context; before mu
}

func dial(ctx context.Context, path string) (*conn, error) {
	body, err := json.Marshal(wire.Hello{Min: wire.MinVersion, Max: wire.MaxVersion})
	if err != nil {
		return nil, err
	}
	w, err := wire.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	c := &conn{wire: w, lost: make(chan struct{}), waiting: make(map[uint64]*inbox), cancel: make(chan struct{}, 1), flushing: make(chan struct{}, 1)}
	go c.receive()
	go c.sendCancels()
	if err := c.do(ctx, wire.OpHello, body, &c.hello, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *conn) Close() { c.wire.Close() }

func (c *conn) isLost() bool {
	select {
	case <-c.lost:
		return true
	default:
		return false
	}
}

// receive hands answers to those who wait, until the connection ends.
func (c *conn) receive() {
	defer close(c.lost)
	defer c.wire.Close()
	for {
		m, err := c.wire.Recv()
		if err != nil {
			return
		}
		c.mu.Lock()
		in := c.waiting[m.ID]
		c.mu.Unlock()
		if in == nil || m.Kind != wire.Response && m.Kind != wire.Event {
			m.Close() // nobody waits any more
			continue
		}
		in.push(m)
	}
}

// sendCancels tells the executor which answers nobody waits for any more, until the
// connection ends. Who stops waiting does not wait for this.
func (c *conn) sendCancels() {
	for {
		select {
		case <-c.cancel:
		case <-c.lost:
			return
		}
		if err := c.flush(context.Background()); err != nil {
			return // the executor has died, and there is nothing to cancel
		}
	}
}

// flush sends what is to be cancelled. Each request does so before it is sent: what
// somebody asks for after he has given up on a create, to delete it, say, must not
// come before the executor knows of that.
func (c *conn) flush(ctx context.Context) error {
	select {
	case c.flushing <- struct{}{}:
		defer func() { <-c.flushing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		c.mu.Lock()
		if len(c.cancels) == 0 {
			c.mu.Unlock()
			return nil
		}
		m := c.cancels[0]
		c.mu.Unlock()
		if err := c.wire.SendContext(ctx, m); err != nil {
			return err
		}
		c.mu.Lock()
		c.cancels = c.cancels[1:]
		c.mu.Unlock()
	}
}

func (c *conn) sendCancel(op wire.Op, id uint64) {
	c.mu.Lock()
	c.cancels = append(c.cancels, &wire.Message{Kind: wire.Cancel, Op: op, ID: id})
	c.mu.Unlock()
	select {
	case c.cancel <- struct{}{}:
	default:
	}
}

// inbox takes the messages for one request. It has no bound: the one receiver of
// the connection must never wait for a reader, who may be waiting for an answer.
type inbox struct {
	mu    sync.Mutex
	queue []*wire.Message // +checklocks:mu
	wake  chan struct{}   // has one element when there is something
}

func (in *inbox) push(m *wire.Message) {
	in.mu.Lock()
	in.queue = append(in.queue, m)
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

func (in *inbox) take() []*wire.Message {
	in.mu.Lock()
	defer in.mu.Unlock()
	q := in.queue
	in.queue = nil
	return q
}

// begin sends a request, whose messages come into the inbox.
func (c *conn) begin(ctx context.Context, op wire.Op, body []byte, files []*os.File) (uint64, *inbox, error) {
	in := &inbox{wake: make(chan struct{}, 1)}
	c.mu.Lock()
	c.next++
	id := c.next
	c.waiting[id] = in
	c.mu.Unlock()
	err := c.flush(ctx)
	if err == nil {
		err = c.wire.SendContext(ctx, &wire.Message{Kind: wire.Request, Op: op, ID: id, Body: body, Files: files})
	}
	if err != nil {
		c.end(id)
		if errors.Is(err, wire.ErrTooLarge) || ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
			return 0, nil, err
		}
		// Whatever the reason, this connection is of no more use, and nobody gets it again.
		c.Close()
		<-c.lost
		return 0, nil, errLost
	}
	return id, in, nil
}

func (c *conn) end(id uint64) {
	c.mu.Lock()
	in := c.waiting[id]
	delete(c.waiting, id)
	c.mu.Unlock()
	if in != nil {
		for _, m := range in.take() {
			m.Close()
		}
	}
}

// do sends a request and waits for its answer.
func (c *conn) do(ctx context.Context, op wire.Op, body []byte, reply any, files []*os.File) error {
	var value error
	err := c.stream(ctx, op, body, files, func(m *wire.Message) error {
		value = answer(m, reply)
		return errAnswered
	})
	if errors.Is(err, errAnswered) {
		return value
	}
	return err
}

// errAnswered ends a stream that has brought what was waited for.
var errAnswered = errors.New("answered")

// stream sends a request and calls fn with each message that bears its id, until
// fn fails. A response that is an error ends it, too.
func (c *conn) stream(ctx context.Context, op wire.Op, body []byte, files []*os.File, fn func(*wire.Message) error) error {
	id, in, err := c.begin(ctx, op, body, files)
	if err != nil {
		return err
	}
	defer c.end(id)
	for {
		lost := false
		select {
		case <-in.wake:
		case <-c.lost:
			lost = true // but something may have come just before
		case <-ctx.Done():
			c.sendCancel(op, id)
			return fmt.Errorf("%s: %w", op, context.Cause(ctx))
		}
		for _, m := range in.take() {
			err := fn(m)
			m.Close()
			if err != nil {
				return err
			}
		}
		if lost {
			return errLost
		}
	}
}

func answer(m *wire.Message, reply any) error {
	var a wire.Answer
	if err := m.Decode(&a); err != nil {
		return err
	}
	if a.Err != nil {
		return a.Err
	}
	if reply == nil || len(a.Value) == 0 {
		return nil
	}
	if err := json.Unmarshal(a.Value, reply); err != nil {
		return fmt.Errorf("%s: answer: %w", m.Op, err)
	}
	return nil
}
