// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/berth-cri/berth/store/content"
)

// A PodID names a pod sandbox; NewPodID makes one.
type PodID string

// A ContainerID names a container; NewContainerID makes one.
type ContainerID string

// An ImageID is the digest of an image's configuration, as the CRI's Image.id.
type ImageID content.Digest

// A LayerID names an unpacked layer: its diffID, or, if it depends on what lies
// below it, its chainID (image-spec, config.md, "Layer ChainID").
type LayerID content.Digest

// NewPodID returns an id that no other pod has: 64 lower-case hex digits, the form
// that kubelets, agents and the names of cgroups expect.
func NewPodID() PodID { return PodID(randomHex()) }

// NewContainerID returns an id that no other container has: 64 lower-case hex
// digits.
func NewContainerID() ContainerID { return ContainerID(randomHex()) }

func randomHex() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// maxID bounds an id: it becomes a component of paths, and there a file name has 255 bytes.
const maxID = 128

// checkID holds that an id of a pod or container can be a component of a path.
// The ids that berth makes are of 64 hex digits; tests like them shorter.
func checkID(kind, id string) error {
	if id == "" || len(id) > maxID {
		return fmt.Errorf("%w: %s id of %d bytes", ErrInvalid, kind, len(id))
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case i > 0 && (c == '-' || c == '_' || c == '.'):
		default:
			return fmt.Errorf("%w: %s id %q", ErrInvalid, kind, id)
		}
	}
	return nil
}

// checkDigest holds that a field is a digest, or empty where that is allowed.
func checkDigest(field string, d content.Digest, optional bool) error {
	if d == "" && optional {
		return nil
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, field, err)
	}
	return nil
}
