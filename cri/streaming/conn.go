// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// linger is how long a finished connection waits for its client to read the end and close. A socket
	// that is closed with input unread sends a reset, which destroys what the client has not read
	// yet: the last of the output, and the exit status.
	linger = 10 * time.Second
	// farewell is how long a client has to take what it is told when the server ends its stream.
	farewell = time.Second
	// lingerBytes is how much of what such a client still sends is thrown away.
	lingerBytes = 64 << 20
)

// A conn is a client's connection after the upgrade. It knows what the protocols above do not tell: that
// the client has gone, that nothing moves, and how to end without losing what was written.
type conn struct {
	net.Conn
	end   context.CancelCauseFunc // of the stream's context
	idle  time.Duration
	moved atomic.Int64 // when a byte last came or went, in ns since start
	start time.Time
	timer *time.Timer

	dying     atomic.Bool // farewell has begun
	finished  atomic.Bool // it is this side that closes: all has been said
	closing   atomic.Bool
	closeOnce sync.Once
	// Held while reading, so that finish can be the only reader.
	readMu sync.Mutex
	// +checklocks:readMu
	in io.Reader
}

// A hijacker is the ResponseWriter that the protocols see: the connection that it hands out is a conn.
type hijacker struct {
	http.ResponseWriter
	end   context.CancelCauseFunc
	onEnd func(func(cause error)) // runs a function when the stream's context has ended
	idle  time.Duration
	spdy  bool
	// finished is what the connection's finished begins with.
	finished bool

	conn *conn // once hijacked
}

// Hijack takes the connection over from net/http.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	raw, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	// The deadlines of the request are not those of the stream.
	if err := raw.SetDeadline(time.Time{}); err != nil {
		raw.Close()
		return nil, nil, err
	}
	in := io.Reader(rw.Reader)
	if h.spdy {
		in = &spdyReader{in: in}
	}
	h.conn = newConn(raw, in, h.idle, h.end)
	h.conn.finished.Store(h.finished)
	h.onEnd(h.conn.ended)
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

func newConn(raw net.Conn, in io.Reader, idle time.Duration, end context.CancelCauseFunc) *conn {
	c := &conn{Conn: raw, end: end, idle: idle, start: time.Now(), in: in}
	c.timer = time.AfterFunc(idle, c.checkIdle)
	return c
}

// ended runs when the stream's context has ended: whoever waits for a client that does not read comes
// back, at once or, where the client can still be told why, soon.
func (c *conn) ended(cause error) {
	if over(cause) {
		c.Close()
		return
	}
	c.dying.Store(true)
	_ = c.Conn.SetWriteDeadline(time.Now().Add(farewell))
	c.timer.Reset(farewell)
}

// over says whether a stream has ended by itself or by its client, so that there is nobody to be told.
func over(cause error) bool {
	return errors.Is(cause, ErrClientGone) || errors.Is(cause, errFinished)
}

// checkIdle runs when the connection may have been idle for long enough. A byte costs a store, not a timer.
func (c *conn) checkIdle() {
	if c.dying.Load() {
		c.Close()
		return
	}
	quiet := time.Since(c.start) - time.Duration(c.moved.Load())
	if quiet < c.idle {
		c.timer.Reset(c.idle - quiet)
		return
	}
	c.end(ErrIdle)
}

// touch notes that bytes moved.
func (c *conn) touch(n int) {
	if n > 0 {
		c.moved.Store(int64(time.Since(c.start)))
	}
}

// Read ends the stream's context when the client has gone: nobody else would, since net/http stops
// looking when a connection is hijacked.
func (c *conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if c.closing.Load() {
		return 0, io.EOF
	}
	n, err := c.in.Read(p)
	c.touch(n)
	if err != nil {
		c.end(ErrClientGone)
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	if c.closing.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Write(p)
	c.touch(n)
	if err != nil {
		c.end(ErrClientGone)
	}
	return n, err
}

// Close ends what the protocols above do with the connection. The socket itself is for finish, or kill.
func (c *conn) Close() error {
	var err error
	c.closeOnce.Do(func() { // and whoever comes second waits, lest finish's deadline be overwritten
		c.closing.Store(true)
		if c.finished.Load() {
			c.end(errFinished) // unless it has ended for another reason
		} else {
			c.end(ErrClientGone) // the libraries close when the client says good-bye
		}
		// Whoever reads or writes now comes back.
		err = c.Conn.SetDeadline(time.Unix(1, 0))
	})
	return err
}

// kill closes the socket at once.
func (c *conn) kill() {
	c.Close()
	_ = c.socket().Close()
}

// finish closes the connection. With a time to linger, the client gets all that was written; onClose
// runs a function when the server is closed, which shortens it.
func (c *conn) finish(linger time.Duration, onClose func(context.CancelCauseFunc) func() bool) {
	c.timer.Stop()
	c.Close()
	if linger == 0 {
		c.kill()
		return
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	_ = c.Conn.SetDeadline(time.Now().Add(linger))
	defer onClose(func(error) { _ = c.Conn.SetDeadline(time.Now().Add(min(linger, farewell))) })()
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		// Below TLS: only that the client has closed is of interest.
		_, _ = io.CopyN(io.Discard, c.socket(), lingerBytes)
	}
	c.Conn.Close()
}

// socket returns the connection below TLS.
func (c *conn) socket() net.Conn {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return c.Conn
}
