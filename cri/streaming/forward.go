// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pf "k8s.io/cri-streaming/pkg/streaming/portforward"
)

// maxForwards bounds the connections that one client forwards at a time.
const maxForwards = 1000

// forwardSPDY serves a port-forward: any number of connections into a pod, each a pair of streams.
//
//	client                                           berth
//	  | -- SYN_STREAM error, port, requestID ---------> |  half-closed at once: it only reads
//	  | -- SYN_STREAM data, port, requestID ----------> |  PortForward begins
//	  | <-- data, both ways --------------------------> |  FIN each way, as with TCP
//	  | <------------------------- text, on error ----- |  only if it could not be done
//	  | <--------------------------- FIN, on both ----- |  PortForward has returned
func (s *Server) forwardSPDY(ctx context.Context, h *hijacker, r *http.Request, t session) {
	f := &forwarder{server: s, session: t, pairs: make(map[string]*pair)}
	x := newSPDYSession(2*maxForwards, func(x *spdySession, st opened) error { return f.open(ctx, x, st) })
	if !upgradeSPDY(ctx, h, r, pf.ProtocolV1Name, x) {
		return
	}
	<-ctx.Done()
	x.close() // what waits for a stream comes back
	x.work.Wait()
	f.stop()
}

// A forwarder knows the pairs of one client that are not complete.
type forwarder struct {
	server  *Server
	session session

	mu sync.Mutex
	// +checklocks:mu
	pairs map[string]*pair
}

// A pair is the two streams of a forwarded connection.
type pair struct {
	port        int32
	data, error *opened
	expired     *time.Timer
}

// open takes a stream over, and begins to forward when it completes a pair.
func (f *forwarder) open(ctx context.Context, x *spdySession, st opened) error {
	port, err := strconv.ParseUint(st.Headers().Get(pf.PortHeader), 10, 16)
	if err != nil || port == 0 || len(f.session.ports) > 0 && !slices.Contains(f.session.ports, int32(port)) {
		return fmt.Errorf("%w: port %.10q", errRefused, st.Headers().Get(pf.PortHeader))
	}
	id := st.Headers().Get(pf.PortForwardRequestIDHeader)
	if id == "" {
		return fmt.Errorf("%w: no %s", errRefused, pf.PortForwardRequestIDHeader) // clients before 2015
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pairs[id]
	if p == nil {
		p = &pair{port: int32(port)}
	}
	kind := st.Headers().Get(pf.StreamType)
	switch {
	case p.port != int32(port):
		return fmt.Errorf("%w: port %d for one of port %d", errRefused, port, p.port)
	case kind == pf.StreamTypeData && p.data == nil:
		p.data = &st
	case kind == pf.StreamTypeError && p.error == nil:
		p.error = &st
	default:
		return fmt.Errorf("%w: streamType %.10q", errRefused, kind)
	}
	if p.data != nil && p.error != nil {
		p.expired.Stop()
		delete(f.pairs, id)
		x.work.Go(func() { f.run(ctx, x, p) })
		return nil
	}
	f.pairs[id] = p
	p.expired = time.AfterFunc(f.server.cfg.CreationTimeout, func() { f.expire(ctx, x, id, p) })
	return nil
}

// expire resets the stream whose other half has not come.
func (f *forwarder) expire(ctx context.Context, x *spdySession, id string, p *pair) {
	f.mu.Lock()
	late := f.pairs[id] == p
	if late {
		delete(f.pairs, id)
	}
	f.mu.Unlock()
	if !late {
		return
	}
	for _, st := range []*opened{p.data, p.error} {
		if st != nil && x.ready(ctx, *st) {
			x.drop(st)
		}
	}
}

// stop ends the timers.
func (f *forwarder) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, p := range f.pairs {
		p.expired.Stop()
		delete(f.pairs, id)
	}
}

// run forwards one connection.
func (f *forwarder) run(ctx context.Context, x *spdySession, p *pair) {
	if !x.ready(ctx, *p.data) || !x.ready(ctx, *p.error) {
		return
	}
	t := newTerminal(ctx, stdio{in: true, out: true}, p.data, p.data, nil)
	err := f.server.streams.PortForward(ctx, f.session.id, p.port, &forwardStream{in: t.in, out: t.out, st: p.data})
	if ctx.Err() != nil {
		return // the session's end resets them
	}
	if err != nil {
		_, _ = fmt.Fprintf(p.error, "error forwarding port %d to pod %s: %v", p.port, f.session.id, err)
	} else {
		_ = t.out.Close()
	}
	_ = p.error.Close()
	// Not only closed: a closed stream still takes what its client sends, and nobody reads that, which
	// in time stops all of the client's connections (kubernetes/kubernetes issue 74551).
	x.drop(p.data)
	x.drop(p.error)
}

// A forwardStream is one connection of a SPDY client, which can be half-closed.
type forwardStream struct {
	in     io.Reader
	out    io.WriteCloser
	st     *opened
	closed atomic.Bool // by this side
}

// reset says whether the client has reset the stream. The library's Write does not mind: a pod that
// sends without end would go on for as long as the client's session lasts.
func (s *forwardStream) reset() bool {
	st, ok := s.st.Stream.(interface{ IsFinished() bool })
	return ok && st.IsFinished() && !s.closed.Load()
}

func (s *forwardStream) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	if err != nil && s.reset() {
		return n, io.ErrClosedPipe
	}
	return n, err
}

func (s *forwardStream) Write(p []byte) (int, error) {
	if s.reset() {
		return 0, io.ErrClosedPipe
	}
	return s.out.Write(p)
}

// Close tells the client that no more comes; it can still send.
func (s *forwardStream) Close() error {
	s.closed.Store(true)
	return s.out.Close()
}

// CloseWrite is Close: its name says that reading goes on.
func (s *forwardStream) CloseWrite() error { return s.Close() }

// Reset ends both directions, so that the client knows that something is missing.
func (s *forwardStream) Reset() error { return s.st.Reset() }

// forwardWebSocket serves a port-forward with a pair of channels for each port that was asked for, by
// k8s.io/cri-streaming. A channel cannot be half-closed.
func (s *Server) forwardWebSocket(ctx context.Context, h *hijacker, r *http.Request, t session) {
	forward := forwardFunc(func(_ context.Context, id, _ string, port int32, stream io.ReadWriteCloser) error {
		defer context.AfterFunc(ctx, func() { stream.Close() })()
		return s.streams.PortForward(ctx, id, port, stream)
	})
	h.finished = true // the library closes in either case
	// Their idle timeout is off, as in SPDY; the others do not apply to a WebSocket.
	pf.ServePortForward(h, r, forward, t.id, "", &pf.V4Options{Ports: t.ports}, 0, s.cfg.CreationTimeout, pf.SupportedProtocols)
}

// forwardFunc is a portforward.PortForwarder.
type forwardFunc func(ctx context.Context, name, uid string, port int32, stream io.ReadWriteCloser) error

func (f forwardFunc) PortForward(ctx context.Context, name, uid string, port int32, stream io.ReadWriteCloser) error {
	return f(ctx, name, uid, port, stream)
}

// A Pod is a connection to a port in a pod: a *net.TCPConn.
type Pod interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Forward copies between a stream of PortForward and a connection into the pod, and closes both. Each
// direction ends by itself and is passed on as a half-close, so that what was sent before it arrives;
// where the client's protocol has none (WebSocket), the pod's end is the end of both. A side that went
// away is no error.
func Forward(ctx context.Context, stream io.ReadWriteCloser, pod Pod) error {
	defer context.AfterFunc(ctx, func() { pod.Close() })()
	defer pod.Close()
	half, canHalf := stream.(interface{ CloseWrite() error })

	toPod := make(chan error, 1)
	go func() {
		_, err := io.Copy(pod, stream)
		if err == nil {
			err = pod.CloseWrite()
		} else {
			// The pod takes no more: what comes must not stop the client's other connections.
			_, _ = io.Copy(io.Discard, stream)
		}
		toPod <- err
	}()

	_, err := io.Copy(stream, pod)
	switch reset, ok := stream.(interface{ Reset() error }); {
	case err != nil && ok:
		_ = reset.Reset()
	case canHalf:
		_ = half.CloseWrite()
	}
	if err != nil || !canHalf {
		stream.Close()
	}
	if errIn := <-toPod; err == nil {
		err = errIn
	}
	if gone(err) || ctx.Err() != nil {
		return nil
	}
	return err
}

// gone says whether an error only says that one of two sides has ended.
func gone(err error) bool {
	for _, known := range []error{io.EOF, io.ErrClosedPipe, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET, syscall.ENOTCONN, ErrClientGone, errFinished} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}
