// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"fmt"

	"github.com/berth-cri/berth/oci/wire"
)

var (
	// errLogClosed is returned by a reopen of a log whose container has ended.
	errLogClosed = errors.New("container has ended and its log is closed")

	// errLogStuck is returned where the file system of a log does not answer in time.
	errLogStuck = errors.New("file system of the log does not answer")

	// errUnwritten is returned where a log does not take what was taken from its container.
	errUnwritten = errors.New("not written to the log")

	// errTornTail is returned for a tail file that no executor wrote whole.
	errTornTail = errors.New("tail file is damaged")
)

func notFound(what, id string) error {
	return &wire.Error{Code: wire.NotFound, Message: fmt.Sprintf("no %s %s in the executor", what, id)}
}

func invalid(format string, args ...any) error {
	return &wire.Error{Code: wire.Invalid, Message: fmt.Sprintf(format, args...)}
}

func badState(id string, is wire.State, wants string) error {
	return &wire.Error{Code: wire.BadState, Message: fmt.Sprintf("container %s is %s: %s", id, is, wants)}
}

// toWire gives an error the code that travels with it.
func toWire(err error) *wire.Error {
	if we, ok := errors.AsType[*wire.Error](err); ok {
		// The text of what wraps it, too.
		return &wire.Error{Code: we.Code, Message: err.Error()}
	}
	return &wire.Error{Code: wire.Failed, Message: err.Error()}
}
