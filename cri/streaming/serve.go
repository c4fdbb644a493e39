// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// serve answers one request. Whatever is wrong with it is told before the token is looked at, so that
// the answer says nothing about tokens; a wrong one is a path that does not exist.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	ws := wsstream.IsWebSocketRequest(r)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodPost:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	case s.fromBrowser(r):
		http.Error(w, "not for browsers", http.StatusForbidden)
		return
	case r.ContentLength != 0:
		http.Error(w, "a body is not expected", http.StatusBadRequest)
		return
	case !ws && !isSPDY(r):
		http.Error(w, "an upgrade to SPDY/3.1 or websocket is required", http.StatusBadRequest)
		return
	}
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	x, ok := s.tokens.take(kind, token)
	if !ok || !s.enter() {
		http.NotFound(w, r)
		return
	}
	defer s.running.Done()

	// Not the request's, whose end net/http decides: it knows neither the cause nor, once the connection
	// is taken over, the client's end.
	ctx, end := context.WithCancelCause(context.WithoutCancel(r.Context()))
	defer end(nil)
	defer s.onClose(end)()
	h := &hijacker{
		ResponseWriter: w, end: end, idle: s.cfg.IdleTimeout, spdy: !ws,
		onEnd: func(f func(error)) { context.AfterFunc(ctx, func() { f(context.Cause(ctx)) }) },
	}
	log := s.cfg.Log.WithValues(kind, x.id, "client", r.RemoteAddr)
	log.V(4).Info("stream begins", "websocket", ws)
	defer func() { log.V(4).Info("stream ended", "cause", context.Cause(ctx)) }()
	defer h.finish(ctx, s.onClose)

	switch {
	case kind != kindForward:
		s.serveStdio(ctx, h, r, x, ws)
	case ws:
		s.forwardWebSocket(ctx, h, r, x)
	default:
		s.forwardSPDY(ctx, h, r, x)
	}
}

// finish closes what Hijack handed out, so that a client that is still there gets all of it.
func (h *hijacker) finish(ctx context.Context, onClose func(context.CancelCauseFunc) func() bool) {
	switch {
	case h.conn == nil:
	case errors.Is(context.Cause(ctx), ErrClientGone):
		h.conn.finish(0, onClose)
	case ctx.Err() == nil, over(context.Cause(ctx)):
		h.conn.finish(linger, onClose)
	default:
		h.conn.finish(farewell, onClose)
	}
}

// isSPDY says whether r asks for an upgrade to SPDY.
func isSPDY(r *http.Request) bool {
	return httpstream.IsUpgradeRequest(r) && strings.EqualFold(r.Header.Get(httpstream.HeaderUpgrade), spdy.HeaderSpdy31)
}

// fromBrowser says whether a web page may have sent r. A page that has its own name resolve to a loopback
// address (DNS rebinding) can open a WebSocket here. It cannot know a token; this is the second lock.
//
// What came through a kubelet is another matter: it passes on the Host and Origin that reached the API
// server (upgradeaware.go, UseLocationHost false), which are a browser's if somebody looks at a pod with
// one. A kubelet is told by X-Forwarded-For, which it always adds, and which no page can put on a WebSocket.
func (s *Server) fromBrowser(r *http.Request) bool {
	if r.Header.Get("X-Forwarded-For") != "" {
		return false
	}
	for name := range r.Header {
		if name == "Origin" || strings.HasPrefix(name, "Sec-Fetch-") {
			return true
		}
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = strings.Trim(r.Host, "[]")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	return !strings.EqualFold(host, "localhost") && (s.cfg.Host == "" || !strings.EqualFold(host, s.cfg.Host))
}
