// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
)

const (
	// maxHeader bounds a request's header. What a kubelet forwards may carry the API server's own.
	maxHeader = 64 << 10
	// maxWaiting bounds the connections that have not been upgraded yet, each of which holds a descriptor.
	maxWaiting = 512
)

// Size is that of a terminal, in characters.
type Size = remotecommand.TerminalSize

// Streams is what the server streams from. Its calls last as long as their streams, return when ctx is
// done, and do not use the streams after that. When ctx is done, reads and writes that wait come back.
type Streams interface {
	// Exec runs a command in a container. in, out and err are nil if the client did not ask for them,
	// resize is nil without tty; it has the newest size only, and is closed when the client sends no
	// more. in ends with io.EOF when the client closes its input; a client that goes away is another
	// error, except that one that says good-bye may end its input just before ctx. Exec need not wait for in, which may end later than the command.
	//
	// A command that ran and failed is an ExitError; another error is told to the client as it is.
	Exec(ctx context.Context, containerID string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan Size) error
	// Attach connects to the streams of a container's first process, like Exec. It returns when that ends.
	Attach(ctx context.Context, containerID string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan Size) error
	// PortForward connects stream to a port in a pod and returns when both have ended: dial, then Forward.
	// An error is told to the client, and kubectl ends all its forwarding with the first one, so what
	// merely ended a connection is none.
	PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error
}

// Config says how to serve. The zero value serves on a free port of 127.0.0.1.
type Config struct {
	// Addr is host:port; 127.0.0.1:0 if empty. Without TLS it must be loopback.
	Addr string
	// Host is the host in URLs, if not that of the address; loopback for a wildcard address.
	Host string
	// TLS, if not nil, has the certificates. HTTP/1.1 only, since a stream takes the connection over.
	TLS *tls.Config

	// IdleTimeout ends a stream on whose connection no byte came or went for so long; 4 h if 0.
	IdleTimeout time.Duration
	// CreationTimeout is how long a client may take to open its streams; 30 s if 0.
	CreationTimeout time.Duration
	// HeaderTimeout is how long a client may take for TLS and the request; 10 s if 0.
	HeaderTimeout time.Duration
	// TokenTimeout is how long a URL is good for; 1 min if 0.
	TokenTimeout time.Duration
	// CloseTimeout bounds Close; 10 s if 0.
	CloseTimeout time.Duration
	// MaxTokens bounds the URLs that are out, unused and not expired; 1,000 if 0.
	MaxTokens int

	Log klog.Logger
}

func (c Config) withDefaults() Config {
	or := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	or(&c.IdleTimeout, 4*time.Hour)
	or(&c.CreationTimeout, 30*time.Second)
	or(&c.HeaderTimeout, 10*time.Second)
	or(&c.TokenTimeout, time.Minute)
	or(&c.CloseTimeout, 10*time.Second)
	if c.MaxTokens <= 0 {
		c.MaxTokens = 1000
	}
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	return c
}

// A Server hands out URLs and serves them.
type Server struct {
	cfg     Config
	streams Streams
	tokens  *tokens
	http    *http.Server
	waiting atomic.Int64 // connections not upgraded yet
	running sync.WaitGroup
	drained chan struct{} // closed when running is zero after Close
	// onClose ends a stream when the server is closed, unless what it returns is called before. It is set
	// before the first request.
	onClose func(end context.CancelCauseFunc) (stop func() bool)

	mu sync.Mutex
	// +checklocks:mu
	listener net.Listener
	// +checklocks:mu
	base url.URL // with the address that was bound
	// +checklocks:mu
	cancel context.CancelCauseFunc // of all streams
	// +checklocks:mu
	closed bool
}

// New returns a server for streams. Nothing is bound before Listen.
func New(cfg Config, streams Streams) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg, streams: streams,
		tokens:  newTokens(cfg.TokenTimeout, cfg.MaxTokens),
		drained: make(chan struct{}),
		cancel:  func(error) {},
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: cfg.HeaderTimeout,
		ReadTimeout:       cfg.HeaderTimeout, // a body is refused, and net/http waits for it even so
		WriteTimeout:      2 * cfg.HeaderTimeout,
		IdleTimeout:       cfg.HeaderTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnState:         s.count,
		ErrorLog:          log.New(logWriter{cfg.Log}, "", 0),
		Protocols:         new(http.Protocols),
	}
	s.http.Protocols.SetHTTP1(true)
	return s
}

// Listen binds the address. URLs can be handed out from now on.
func (s *Server) Listen(ctx context.Context) error {
	addr, err := net.ResolveTCPAddr("tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("streaming address %q: %w", s.cfg.Addr, err)
	}
	if s.cfg.TLS == nil && !addr.IP.IsLoopback() {
		return fmt.Errorf("%w: %q; use 127.0.0.1, or configure a certificate", ErrPlaintext, s.cfg.Addr)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return fmt.Errorf("streaming: %w", err)
	}
	bound := l.Addr().(*net.TCPAddr)
	base := url.URL{Scheme: "http", Host: bound.String()}
	if host := s.cfg.Host; host != "" {
		base.Host = net.JoinHostPort(host, fmt.Sprint(bound.Port))
	} else if bound.IP.IsUnspecified() {
		base.Host = net.JoinHostPort("127.0.0.1", fmt.Sprint(bound.Port))
	}
	if s.cfg.TLS != nil {
		base.Scheme = "https"
		cfg := s.cfg.TLS.Clone()
		cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
		cfg.NextProtos = []string{"http/1.1"}
		l = tls.NewListener(l, cfg)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.listener != nil {
		l.Close()
		if s.closed {
			return ErrClosed
		}
		return errors.New("streaming: already listening")
	}
	s.listener, s.base = l, base
	return nil
}

// Serve serves until ctx is done or Close is called, and returns when all streams have ended: nil, or
// ErrStuck.
//
// Preconditions: Listen.
func (s *Server) Serve(ctx context.Context) error {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	s.mu.Lock()
	l, closed := s.listener, s.closed
	if l != nil && !closed {
		s.cancel = cancel
		s.http.BaseContext = func(net.Listener) context.Context { return base }
		s.onClose = func(end context.CancelCauseFunc) func() bool {
			return context.AfterFunc(base, func() { end(ErrClosed) })
		}
	}
	s.mu.Unlock()
	switch {
	case closed:
		return nil
	case l == nil:
		return ErrNotListening
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	err := s.http.Serve(l)
	if closeErr := s.Close(); errors.Is(err, http.ErrServerClosed) {
		return closeErr
	}
	return fmt.Errorf("streaming: %w", err)
}

// Close ends all streams and waits for them, for at most the close timeout; then it returns ErrStuck. It
// may be called any number of times, also before Serve.
func (s *Server) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	l, cancel := s.listener, s.cancel
	s.mu.Unlock()
	if first {
		cancel(ErrClosed)
		s.http.Close()
		if l != nil {
			l.Close() // where Serve has not taken it over
		}
		go func() {
			s.running.Wait()
			close(s.drained)
		}()
	}
	timeout := time.NewTimer(s.cfg.CloseTimeout)
	defer timeout.Stop()
	select {
	case <-s.drained:
		return nil
	case <-timeout.C:
		return fmt.Errorf("%w after %s", ErrStuck, s.cfg.CloseTimeout)
	}
}

// url hands out a URL for what a session is.
func (s *Server) url(x session) (string, error) {
	s.mu.Lock()
	base, listening, closed := s.base, s.listener != nil, s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return "", ErrClosed
	case !listening:
		return "", ErrNotListening
	}
	token, err := s.tokens.put(x)
	if err != nil {
		return "", err
	}
	base.Path = "/" + x.kind + "/" + token
	return base.String(), nil
}

// enter counts a stream in, unless the server is closed. Each is counted out with running.Done.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	return true
}

// count bounds the connections that have shown no token yet.
func (s *Server) count(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if s.waiting.Add(1) > maxWaiting {
			c.Close()
		}
	case http.StateHijacked, http.StateClosed:
		s.waiting.Add(-1)
	case http.StateActive, http.StateIdle:
	}
}

// A logWriter takes what net/http says of single connections: noise, unless one looks for it.
type logWriter struct{ log klog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.V(4).Info("streaming connection", "message", string(p))
	return len(p), nil
}
