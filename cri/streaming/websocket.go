// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"context"
	"io"
	"net/http"
	"strings"

	rc "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// openWebSocket upgrades to a WebSocket, where each message begins with the number of its channel:
//
//	0 stdin   1 stdout   2 stderr   3 status   4 resize   255 n: channel n is closed (v5)
//
// k8s.io/cri-streaming v0.37.2 has no v5, which is all that client-go's WebSocket executor offers, and
// with it crictl's; and without v5 there is no end of input but that of the connection.
func openWebSocket(ctx context.Context, h *hijacker, r *http.Request, want stdio) *terminal {
	channel := func(wanted bool, kind wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return kind
		}
		return wsstream.IgnoreChannel
	}
	channels := []wsstream.ChannelType{
		rc.StreamStdIn:  channel(want.in, wsstream.ReadChannel),
		rc.StreamStdOut: channel(want.out, wsstream.WriteChannel),
		rc.StreamStdErr: channel(want.err, wsstream.WriteChannel),
		rc.StreamErr:    wsstream.WriteChannel,
		rc.StreamResize: channel(want.tty, wsstream.ReadChannel),
	}
	binary := wsstream.ChannelProtocolConfig{Binary: true, Channels: channels}
	base64 := wsstream.ChannelProtocolConfig{Channels: channels}
	ws := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		rc.StreamProtocolV5Name:                         binary,
		rc.StreamProtocolV4Name:                         binary,
		"v4." + wsstream.Base64ChannelWebSocketProtocol: base64,
		wsstream.ChannelWebSocketProtocol:               binary,
		wsstream.Base64ChannelWebSocketProtocol:         base64,
		"":                                              binary,
	})
	protocol, streams, err := ws.Open(h, r)
	if err != nil {
		return nil // the client was told
	}
	// Browsers' terminals wait for a first message.
	for _, n := range []int{rc.StreamStdOut, rc.StreamStdErr, rc.StreamErr} {
		if channels[n] == wsstream.WriteChannel {
			_, _ = streams[n].Write(nil)
			break
		}
	}
	t := newTerminal(ctx, want, streams[rc.StreamStdIn], streams[rc.StreamStdOut], streams[rc.StreamStdErr])
	t.status = streams[rc.StreamErr]
	t.coded = strings.HasPrefix(protocol, "v")
	t.close = func() { _ = ws.Close() }
	if want.tty {
		t.resize = io.Reader(streams[rc.StreamResize])
	}
	return t
}
