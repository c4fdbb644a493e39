// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"context"
	"net/http"
	"sync"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// A spdySession is a SPDY connection and the streams that its client has opened.
type spdySession struct {
	conn     httpstream.Connection // once upgraded is closed
	upgraded chan struct{}
	max      int // streams at a time
	// open takes a stream over, or refuses it. It must not block: it runs where all the
	// connection's frames are handled. It is called with mu held, and never after close.
	open func(opened) error

	work sync.WaitGroup // goroutines that use the streams

	mu sync.Mutex
	// +checklocks:mu
	streams map[uint32]httpstream.Stream
	// +checklocks:mu
	closed bool
}

// An opened stream is one that a client has opened. Before replied is closed it cannot be written: the
// library's Write waits for the reply, and for ever if that could not be sent.
type opened struct {
	httpstream.Stream
	replied <-chan struct{}
}

// newSPDYSession returns a session for at most limit streams at a time.
func newSPDYSession(limit int, open func(*spdySession, opened) error) *spdySession {
	x := &spdySession{max: limit, upgraded: make(chan struct{}), streams: make(map[uint32]httpstream.Stream)}
	x.open = func(st opened) error { return open(x, st) }
	return x
}

// upgradeSPDY makes a request a SPDY session; nil if that was refused, and the client told so. When the
// session ends, for whatever reason, ctx does.
func upgradeSPDY(ctx context.Context, h *hijacker, r *http.Request, protocol string, x *spdySession) bool {
	if _, err := httpstream.Handshake(r, h, []string{protocol}); err != nil {
		return false
	}
	// Without an idle timeout: theirs does not see a client that does not read.
	if x.conn = spdy.NewResponseUpgrader().UpgradeResponse(h, r, x.accept); x.conn == nil {
		return false
	}
	close(x.upgraded)
	x.work.Go(func() {
		select {
		case <-x.conn.CloseChan(): // the client said good-bye, or something that is no SPDY
			h.end(ErrClientGone)
		case <-ctx.Done():
		}
	})
	return true
}

// accept is the library's NewStreamHandler.
func (x *spdySession) accept(st httpstream.Stream, replied <-chan struct{}) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || len(x.streams) >= x.max {
		return errRefused
	}
	if err := x.open(opened{st, replied}); err != nil {
		return err
	}
	x.streams[st.Identifier()] = st
	return nil
}

// ready waits until a stream can be written, and says whether it can.
func (x *spdySession) ready(ctx context.Context, st opened) bool {
	for _, c := range []<-chan struct{}{x.upgraded, st.replied} {
		select {
		case <-c:
		case <-ctx.Done():
			return false
		}
	}
	// A reply that failed did so because one of these ended before.
	select {
	case <-x.conn.CloseChan():
		return false
	default:
		return ctx.Err() == nil
	}
}

// drop forgets a stream, so that what the client still sends on it blocks nobody.
func (x *spdySession) drop(st httpstream.Stream) {
	_ = st.Reset()
	x.conn.RemoveStreams(st)
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.streams, st.Identifier())
}

// close ends the session. Streams that the library has not registered yet, which its own Close leaves
// alone, are reset as well: a frame that waits for its reader would hold the connection's goroutines for ever.
func (x *spdySession) close() {
	x.mu.Lock()
	x.closed = true
	streams := x.streams
	x.streams = nil
	x.mu.Unlock()
	for _, st := range streams {
		_ = st.Reset()
	}
	_ = x.conn.Close()
}
