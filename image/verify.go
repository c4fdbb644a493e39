// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/store/content"
)

// verifier passes bytes on and hashes them beside.
type verifier struct {
	from     io.Reader
	want     registry.Descriptor
	hash     *hasher
	progress func(int64)
	done     int64
	ended    bool
	failed   error // of the reading
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.from.Read(p)
	if n > 0 {
		v.hash.write(p[:n])
		v.done += int64(n)
		v.progress(v.done)
	}
	switch {
	case errors.Is(err, io.EOF):
		v.ended = true
	case err != nil:
		v.failed = err
	}
	return n, err
}

// check compares what came with what was announced. It is called at the end.
func (v *verifier) check() error {
	got := v.hash.end()
	if v.done != v.want.Size {
		return fmt.Errorf("%w: %d bytes, announced %d", content.ErrSize, v.done, v.want.Size)
	}
	if got != v.want.Digest.Hex() {
		return fmt.Errorf("%w: %s:%s", content.ErrDigest, v.want.Digest.Algorithm(), got)
	}
	return nil
}

// hasher hashes in a goroutine of its own, so that it takes no time of who inflates.
type hasher struct {
	hash  hash.Hash
	full  chan []byte
	empty chan []byte
	sum   chan string
	ended string
}

// hashBuffers of hashSize bytes are on their way to a hasher at most.
const (
	hashBuffers = 4
	hashSize    = 128 << 10
)

func newHasher(d content.Digest) *hasher {
	h := &hasher{hash: d.NewHash(), full: make(chan []byte, hashBuffers), empty: make(chan []byte, hashBuffers), sum: make(chan string, 1)}
	for range hashBuffers {
		h.empty <- nil // made when it is needed
	}
	go func() {
		for b := range h.full {
			h.hash.Write(b)
			h.empty <- b
		}
		h.sum <- fmt.Sprintf("%x", h.hash.Sum(nil))
	}()
	return h
}

func (h *hasher) write(p []byte) {
	for len(p) > 0 {
		b := <-h.empty
		if b == nil {
			b = make([]byte, hashSize)
		}
		b = b[:copy(b[:cap(b)], p)]
		p = p[len(b):]
		h.full <- b
	}
}

// end returns the sum in hexadecimal digits. Nothing is written afterwards.
func (h *hasher) end() string {
	if h.ended == "" {
		close(h.full)
		h.ended = <-h.sum
	}
	return h.ended
}
