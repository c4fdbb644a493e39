// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-cri/berth/image"
	"github.com/berth-cri/berth/image/ref"
	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/sandbox"
	"github.com/berth-cri/berth/store"
)

// answers is which error is answered with which code, the first that matches. A
// kubelet reads NotFound, DeadlineExceeded and Unimplemented; people read the rest.
var answers = []struct { //nolint:gochecknoglobals // a table
	err  error
	code codes.Code
	ours bool // not the caller's doing
}{
	{sandbox.ErrExecTimeout, codes.DeadlineExceeded, false},
	{sandbox.ErrNotFound, codes.NotFound, false},
	{store.ErrNotFound, codes.NotFound, false},
	{image.ErrNotFound, codes.NotFound, false},
	{image.ErrAmbiguous, codes.InvalidArgument, false},
	{image.ErrClosed, codes.Unavailable, false},
	{ref.ErrBadReference, codes.InvalidArgument, false},
	{registry.ErrNotFound, codes.NotFound, false},
	{registry.ErrBadAuth, codes.InvalidArgument, false},
	{registry.ErrUnauthorized, codes.PermissionDenied, false},
	{store.ErrAmbiguous, codes.InvalidArgument, false},
	{sandbox.ErrInvalid, codes.InvalidArgument, false},
	{sandbox.ErrNoHandler, codes.InvalidArgument, false},
	{spec.ErrInvalid, codes.InvalidArgument, false},
	{spec.ErrUnsupported, codes.InvalidArgument, false},
	{sandbox.ErrExists, codes.AlreadyExists, false},
	{sandbox.ErrState, codes.FailedPrecondition, false},
	{sandbox.ErrNotRunning, codes.FailedPrecondition, false},
	{sandbox.ErrSlow, codes.ResourceExhausted, false},
	{sandbox.ErrStuck, codes.Unavailable, true},
	{sandbox.ErrTimeout, codes.Unavailable, true},
	{sandbox.ErrClosed, codes.Unavailable, false},
	{store.ErrClosed, codes.Unavailable, false},
	{oci.ErrGone, codes.Unavailable, true},
	{oci.ErrDies, codes.Internal, true},
	{context.DeadlineExceeded, codes.DeadlineExceeded, false},
	{context.Canceled, codes.Canceled, false},
}

// toStatus is the one place where an error becomes a gRPC status. One that has a code
// already, because gRPC made it, is left as it is.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if p := (*sandbox.PanicError)(nil); errors.As(err, &p) {
		return status.Error(codes.Internal, err.Error())
	}
	if errors.Is(err, registry.ErrUnavailable) {
		// A kubelet knows it by the beginning of the message, and only with this code.
		return status.Error(codes.Unknown, "RegistryUnavailable: "+err.Error())
	}
	for _, a := range answers {
		if errors.Is(err, a.err) {
			return status.Error(a.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

// isOurs says whether an error is one that the node's owner should see in the log.
func isOurs(err error) bool {
	if _, ok := status.FromError(err); ok {
		return false
	}
	for _, a := range answers {
		if errors.Is(err, a.err) {
			return a.ours
		}
	}
	return true
}
