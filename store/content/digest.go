// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package content

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// A Digest names content by its hash: "ALGORITHM:HEX", as in OCI descriptors
// (image-spec, descriptor.md, "Digests"). The algorithms are sha256 and sha512,
// the two that the specification registers and requires to be secure; hex digits
// are lower case. The zero Digest names nothing.
//
// A Digest that was not made by this package is worth no more than its string:
// Parse it, or ask Validate, before it is used.
type Digest string

// The algorithms that are understood.
const (
	sha256Name = "sha256"
	sha512Name = "sha512"
)

// algorithms lists them in the order of their use.
func algorithms() []string { return []string{sha256Name, sha512Name} }

// Parse returns s as a Digest, or ErrBadDigest.
func Parse(s string) (Digest, error) {
	d := Digest(s)
	return d, d.Validate()
}

// FromBytes returns the SHA-256 digest of b.
func FromBytes(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(sha256Name + ":" + hex.EncodeToString(sum[:]))
}

// Validate returns ErrBadDigest if d is not of the form that [Digest] tells of.
func (d Digest) Validate() error {
	algorithm, digits, ok := strings.Cut(string(d), ":")
	if !ok {
		return fmt.Errorf("%w: %q", ErrBadDigest, clip(string(d)))
	}
	var size int
	switch algorithm {
	case sha256Name:
		size = sha256.Size
	case sha512Name:
		size = sha512.Size
	default:
		return fmt.Errorf("%w: algorithm %q", ErrBadDigest, clip(algorithm))
	}
	if !isHex(digits, size) {
		return fmt.Errorf("%w: %q is not %d lower-case hex digits", ErrBadDigest, clip(digits), 2*size)
	}
	return nil
}

// Algorithm is what stands before the colon: "sha256".
func (d Digest) Algorithm() string {
	algorithm, _, _ := strings.Cut(string(d), ":")
	return algorithm
}

// Hex is what stands after the colon.
func (d Digest) Hex() string {
	_, digits, _ := strings.Cut(string(d), ":")
	return digits
}

// String is the digest as it is written.
func (d Digest) String() string { return string(d) }

// NewHash returns a hash of the digest's algorithm.
//
// It panics if d is not valid.
func (d Digest) NewHash() hash.Hash {
	switch d.Algorithm() {
	case sha256Name:
		return sha256.New()
	case sha512Name:
		return sha512.New()
	}
	panic("content: digest that was not validated")
}

// sum returns the digest that a hash of the algorithm has come to.
func sum(algorithm string, h hash.Hash) Digest {
	return Digest(algorithm + ":" + hex.EncodeToString(h.Sum(nil)))
}

// isHex reports whether s is n bytes in lower-case hex.
func isHex(s string, n int) bool {
	if len(s) != 2*n {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// clip keeps foreign text from flooding an error.
func clip(s string) string {
	const most = 150
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
