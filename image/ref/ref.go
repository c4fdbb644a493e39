// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ref

import (
	_ "crypto/sha256" // go-digest knows an algorithm only if it is linked in
	_ "crypto/sha512"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// ErrBadReference refuses what is no name of an image.
var ErrBadReference = errors.New("bad image reference")

// A Registry is the host that a name begins with, with its port if it has one:
// "docker.io", "registry.example:5000", "[::1]:5000".
type Registry string

// A Repository is a name within a registry: "library/busybox".
type Repository string

// A Tag is a name within a repository, at most 128 bytes: "latest".
type Tag string

// defaultTag is what a name without tag and digest means.
const defaultTag Tag = "latest"

// maxLength bounds what is looked at at all. The longest valid reference has 255 bytes of name, 128 of
// tag and 135 of digest.
const maxLength = 1024

// A Ref is the full name of an image. The zero Ref names nothing.
type Ref struct {
	registry   Registry
	repository Repository
	tag        Tag           // "": there is a digest
	digest     digest.Digest // "": there is a tag
}

// Parse reads a name in its short or its full form, or returns ErrBadReference. A name with neither tag
// nor digest gets the tag "latest". Digests are sha256 or sha512.
//
// The id of an image ("sha256:HEX", or the hex digits alone) is no name and is refused: whoever accepts
// ids looks for one first.
func Parse(s string) (Ref, error) {
	if len(s) > maxLength {
		return Ref{}, fmt.Errorf("%w: %d bytes", ErrBadReference, len(s))
	}
	if _, err := digest.Parse(s); err == nil {
		return Ref{}, fmt.Errorf("%w: %q is the id of an image, not its name", ErrBadReference, s)
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Ref{}, fmt.Errorf("%w: %q: %w", ErrBadReference, s, err)
	}
	r := Ref{
		registry:   Registry(reference.Domain(named)),
		repository: Repository(reference.Path(named)),
	}
	if tagged, ok := named.(reference.Tagged); ok {
		r.tag = Tag(tagged.Tag())
	}
	if digested, ok := named.(reference.Digested); ok {
		r.digest = digested.Digest()
		if err := checkDigest(r.digest); err != nil {
			return Ref{}, fmt.Errorf("%w: %q: %w", ErrBadReference, s, err)
		}
	}
	if r.tag == "" && r.digest == "" {
		r.tag = defaultTag
	}
	return r, nil
}

// errAlgorithm refuses digests that nothing else here can verify.
var errAlgorithm = errors.New("a digest is sha256 or sha512, in lower-case hex")

func checkDigest(d digest.Digest) error {
	algorithm, _, _ := strings.Cut(string(d), ":")
	if algorithm != string(digest.SHA256) && algorithm != string(digest.SHA512) || d.Validate() != nil {
		return errAlgorithm
	}
	return nil
}

// Registry is where the image is from.
func (r Ref) Registry() Registry { return r.registry }

// Repository is the name within the registry.
func (r Ref) Repository() Repository { return r.repository }

// Tag is the tag, "" if there is none.
func (r Ref) Tag() Tag { return r.tag }

// Digest is the digest, "" if there is none. Where there is one, it says which image is meant, whatever
// the tag.
func (r Ref) Digest() digest.Digest { return r.digest }

// IsZero reports whether r names nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

// Name is the name without tag and digest: "docker.io/library/busybox".
func (r Ref) Name() string {
	if r.IsZero() {
		return ""
	}
	return string(r.registry) + "/" + string(r.repository)
}

// String is the full form: "docker.io/library/busybox:latest".
func (r Ref) String() string { return r.Name() + r.suffix() }

// Familiar is the short form, as people write it: "busybox:latest". Where that would be read as something
// else ("docker.io/localhost/app" without its registry is another one's) it is the full form.
func (r Ref) Familiar() string {
	if r.IsZero() {
		return ""
	}
	named, err := reference.ParseNormalizedNamed(r.Name())
	if err != nil {
		panic("ref: a name that was parsed is none: " + r.Name())
	}
	short := reference.FamiliarName(named)
	if again, err := reference.ParseNormalizedNamed(short); err != nil || again.Name() != named.Name() {
		short = r.Name()
	}
	return short + r.suffix()
}

func (r Ref) suffix() string {
	var s string
	if r.tag != "" {
		s = ":" + string(r.tag)
	}
	if r.digest != "" {
		s += "@" + string(r.digest)
	}
	return s
}

// WithDigest names one content of the repository and no tag, as repo digests in the CRI do:
// "docker.io/library/busybox@sha256:…". It returns ErrBadReference if d is no digest.
func (r Ref) WithDigest(d digest.Digest) (Ref, error) {
	if err := checkDigest(d); err != nil {
		return Ref{}, fmt.Errorf("%w: %w", ErrBadReference, err)
	}
	r.tag, r.digest = "", d
	return r, nil
}

// Tagged is r without its digest, by which the image may be called from now on. There is none for a
// name that was given with a digest and no tag.
func (r Ref) Tagged() (Ref, bool) {
	if r.tag == "" {
		return Ref{}, false
	}
	r.digest = ""
	return r, true
}
