// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package streaming serves the streams of Exec, Attach and PortForward, over SPDY and WebSocket.
//
//	kubelet, crictl                    berth
//	  | -- CRI: Exec(request) --------> |  GetExec: check, keep, hand out http://127.0.0.1:PORT/exec/TOKEN
//	  | -- GET or POST, Upgrade ------> |  the token is taken, once; the connection is ours
//	  | <-- streams of the protocol --> |  Streams.Exec, until it returns or the client is gone
//	  | <-- status -------------------- |
//
// # Invariants
//
//   - A stream needs a token, which is 256 random bits, is good for one request within a minute, and
//     not told apart from a path that does not exist when it is wrong. At most 1,000 are outstanding.
//   - Without TLS the server listens on loopback only, and answers no web page (see fromBrowser).
//   - What a client sends before it has shown a token is bounded in size and time, and so is the number
//     of such connections. Frames are bounded after it, too.
//   - The context of a stream ends when its client goes, its connection was idle for too long, or the
//     server closes, and its cause says which. net/http and the libraries end none of these contexts.
//   - Nothing of a stream outlives it: goroutines are waited for and the connection is closed, in such
//     a way that a client that reads gets everything, also when it still sends.
//   - A client that the server lets go is told. (A SPDY client takes an end without status for success.)
//   - What one client does not read stops nobody else.
//
// # What is the library's and what is ours
//
// The wire is k8s.io/streaming: SPDY frames, and the channels of WebSockets. The names and types of the
// protocols, and port-forward over WebSocket, are k8s.io/cri-streaming. Its server
// (pkg/streaming, v0.37.2) and its handlers of SPDY sessions are not used. Read there:
//
//   - Tokens have 8 characters, 48 bits. The server brings a router (go-restful) for three paths.
//   - A port-forward's context is context.Background, and that of an exec does not end with its client,
//     since net/http does not watch a connection that was taken over.
//   - A client that dies after it has sent its streams, before their replies were written, leaves a
//     goroutine that waits for ever in the first Write (spdystream's waitWriteReply), and one in
//     each handler whose channel nobody reads any more. Here a stream is used after its reply only, and
//     the handler never waits.
//   - A client that does not open all its streams leaves the connection open.
//   - A forwarded connection that ends with input unread is closed, not reset: what the client still
//     sends then blocks a worker, and in time the whole session (kubernetes/kubernetes issue 74551).
//   - WebSocket has no v5, the only protocol that client-go's executor, and crictl with it, offers, and
//     the only one with an end of input (containerd/containerd issue 11136).
//   - spdystream takes frames of 16 MiB and queues 250 of them. spdyReader cuts them to 32 KiB.
//
// SPDY is v4 of the exec protocol only: the versions before it have no exit codes, and all
// clients since 2016 offer it.
//
// # Host, Origin
//
// The Host header is not compared with the address: a kubelet passes on the one that it got, its own
// node's. Neither is an Origin always a browser's that came here directly. What distinguishes them is
// X-Forwarded-For; see fromBrowser.
//
// # Limits of the protocols
//
// spdystream has no flow control for a stream. If a pod does not read from one forwarded connection, the
// others of the same client wait after some 50 frames, 1.6 MB; other clients do not notice. In a
// WebSocket, input that is not read holds up what comes after it on the same connection, and a
// client's end is noticed when that is read, something is written, or the idle timeout is over.
// A client of client-go that closes its side of a forwarded connection and then gives up the
// rest sends no reset for that (spdystream's Reset after Close): a pod that goes on sending after the
// end of its input goes on until the session ends.
// Messages of a WebSocket have up to 32 MiB, the library's limit.
//
// A URL names its scheme, as kubelets since 1.36 need to (ExtendWebSocketsToKubelet).
package streaming
