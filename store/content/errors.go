// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package content

import "errors"

var (
	// ErrBadDigest refuses a digest of the wrong form, or of an algorithm that is not sha256 or sha512.
	ErrBadDigest = errors.New("bad digest")
	// ErrNotFound is returned where there is no blob of that digest.
	ErrNotFound = errors.New("no such blob")
	// ErrExists is returned by Writer where the blob is there already: nothing is to be done.
	ErrExists = errors.New("blob exists")
	// ErrDigest says that bytes do not hash to the digest that names them.
	ErrDigest = errors.New("digest does not match")
	// ErrSize says that there are fewer or more bytes than were announced.
	ErrSize = errors.New("size does not match")
	// ErrClosed is returned by a Writer after Commit, Close or Discard.
	ErrClosed = errors.New("writer is closed")
)
