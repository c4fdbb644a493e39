// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package content keeps blobs (manifests, image configurations, compressed
// layers) in files that are named by their digest.
//
//	FOLDER/
//	  sha256/
//	    HEX          a blob: complete, verified, mode 0444
//	    draft-HEX    what is being written, or was when a writer went away; HEX is
//	                 the SHA-256 of the draft's ref
//	  sha512/
//	    ...
//
// # From draft to blob
//
//	create or reopen the draft, hash what it holds
//	write, hashing
//	compare size and digest      ErrSize, ErrDigest: the draft is removed
//	chmod 0444
//	fsync the draft
//	rename to the digest         the blob is there
//	fsync the folder             the blob outlives a power cut
//
// A process may be killed, or the power cut, after any of these steps: what
// stands under a digest is complete, and what is no blob is a draft. A draft that
// lost bytes to a power cut is found out by its digest when it is finished, since
// a resumed draft is hashed from its first byte.
//
// # Invariants
//
//   - A file under the name of a digest is never written to.
//   - There is one writer for a digest (or ref) at a time in this process; who
//     comes second waits, and finds the blob done or takes the draft over. The
//     folder belongs to one process, which is the business of the store's lock.
//   - Which blobs are needed is not known here: the store's records say so, and
//     what they do not name is for others to delete.
//   - Names never come from outside: a digest is parsed before it becomes a path,
//     and a ref becomes one by its hash.
package content
