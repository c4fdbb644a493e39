// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"context"
	"net/http"
	"time"

	rc "k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// openSPDY upgrades to SPDY and waits for the streams that the client has to open; nil if they do not come.
//
//	client                                           berth
//	  | -- POST /exec/TOKEN, Upgrade: SPDY/3.1 -------> |
//	  | <------------------ 101 Switching Protocols --- |
//	  | -- SYN_STREAM streamType=error ---------------> |  always; then stdin, stdout, stderr as
//	  | <-------------------------------- SYN_REPLY --- |  asked for, resize with a tty
//	  | <-- data, both ways --------------------------> |  FIN on stdin is the end of input
//	  | <------------------- status, JSON, on error --- |
//	  | <----------------------------------- GOAWAY --- |
//
// v4 is the first version with exit codes and what all clients since 2016 offer.
func (s *Server) openSPDY(ctx context.Context, h *hijacker, r *http.Request, want stdio) *terminal {
	kinds := map[string]bool{ // the kinds there are: is it needed?
		rc.StreamTypeError: true, rc.StreamTypeStdin: want.in, rc.StreamTypeStdout: want.out,
		rc.StreamTypeStderr: want.err, rc.StreamTypeResize: want.tty,
	}
	arrived := make(chan opened, len(kinds))
	x := newSPDYSession(len(kinds), func(_ *spdySession, st opened) error {
		kind := st.Headers().Get(rc.StreamType)
		needed, known := kinds[kind]
		if !known {
			return errRefused // or came before
		}
		delete(kinds, kind)
		if needed {
			arrived <- st
		}
		return nil
	})
	missing := 0
	for _, needed := range kinds {
		if needed {
			missing++
		}
	}
	if !upgradeSPDY(ctx, h, r, rc.StreamProtocolV4Name, x) {
		return nil
	}
	closeAll := func() {
		x.close()
		h.conn.Close()
		x.work.Wait()
	}
	expired := time.AfterFunc(s.cfg.CreationTimeout, func() { h.end(errCreation) })
	streams := make(map[string]opened)
	for ; missing > 0; missing-- {
		select {
		case st := <-arrived:
			if x.ready(ctx, st) {
				streams[st.Headers().Get(rc.StreamType)] = st
				continue
			}
		case <-ctx.Done():
		}
		expired.Stop()
		h.end(ErrClientGone)
		closeAll()
		return nil
	}
	expired.Stop()
	t := newTerminal(ctx, want, streams[rc.StreamTypeStdin], streams[rc.StreamTypeStdout], streams[rc.StreamTypeStderr])
	t.status, t.coded, t.close = streams[rc.StreamTypeError], true, closeAll
	if want.tty {
		t.resize = streams[rc.StreamTypeResize]
	}
	return t
}
