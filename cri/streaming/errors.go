// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package streaming

import (
	"errors"
	"strconv"
)

var (
	// ErrInvalid refuses a request that the CRI forbids (api.proto, ExecRequest, AttachRequest,
	// PortForwardRequest). The message names the field.
	ErrInvalid = errors.New("invalid streaming request")
	// ErrTooMany says that too many URLs are handed out that nobody has used and that have not expired.
	ErrTooMany = errors.New("too many streaming URLs are outstanding")
	// ErrNotListening says that there is no address yet that a URL could name.
	ErrNotListening = errors.New("streaming server does not listen")
	// ErrClosed is returned after Close, and is the cause by which Close ends the streams' contexts.
	ErrClosed = errors.New("streaming server is closed")
	// ErrPlaintext refuses to listen, without TLS, where other machines could connect.
	ErrPlaintext = errors.New("streaming without TLS is for loopback addresses only")
	// ErrStuck says that streams had not ended when Close stopped waiting for them.
	ErrStuck = errors.New("streams have not ended")

	// ErrClientGone is the cause by which a stream's context ends when its client has.
	ErrClientGone = errors.New("streaming client has gone")
	// ErrIdle is the cause by which a stream's context ends when nothing came or went for the idle timeout.
	ErrIdle = errors.New("streaming connection was idle for too long")

	// errFinished is the cause where a stream has come to its end.
	errFinished = errors.New("stream has ended")
	// errCreation ends a connection whose client has not opened its streams in time.
	errCreation = errors.New("client has not opened its streams in time")
	// errRefused resets a stream that was not asked for, or comes too late.
	errRefused = errors.New("stream refused")
)

// An ExitError says that a command has run and ended with a status other than 0. As an Exec's error,
// wrapped or not, it gives the client that status: `kubectl exec` exits with it.
type ExitError struct {
	// Code is the status, 1 to 255; 128+n for signal n.
	Code int
}

func (e ExitError) Error() string { return "exit status " + strconv.Itoa(e.Code) }
