// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	readSize = 64 << 10

	// maxWindow is the largest zstd window, smallWindow what a decoder is given that needs no more: RFC 8878,
	// 3.1.1.1.2, wants every decoder to have that much.
	maxWindow   = 32 << 20
	smallWindow = 8 << 20
)

// inflate returns what r holds uncompressed, and what has to be called when it has been read.
func (u *Unpacker) inflate(ctx context.Context, r *bufio.Reader) (io.Reader, func(), error) {
	head, err := r.Peek(18) // the longest header of a zstd frame; shorter at the end of the blob
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, err
		}
		z.Multistream(false)
		return &members{r, z}, func() {}, nil
	case isZstd(head):
		return u.inflateZstd(ctx, r, head)
	}
	return r, func() {}, nil
}

// members reads the members of gzip one after the other. Not gzip's own way to do that, because it
// refuses the zeros that some writers pad with.
type members struct {
	r *bufio.Reader
	z *gzip.Reader
}

func (m *members) Read(p []byte) (int, error) {
	for {
		n, err := m.z.Read(p)
		if !errors.Is(err, io.EOF) || n > 0 {
			if errors.Is(err, io.EOF) {
				err = nil // comes again
			}
			return n, err
		}
		if err := m.next(); err != nil {
			return 0, err
		}
	}
}

// next goes to the next member, or returns io.EOF.
func (m *members) next() error {
	b, err := m.r.ReadByte()
	switch {
	case err != nil:
		return err
	case b == 0:
		return m.padding()
	}
	if err := m.r.UnreadByte(); err != nil {
		return err
	}
	if err := m.z.Reset(m.r); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("after the end of gzip: %w", err)
	}
	m.z.Multistream(false)
	return nil
}

// padding returns io.EOF if zeros are all that is left.
func (m *members) padding() error {
	for {
		b, err := m.r.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return errors.New("after the end of gzip: neither zeros nor another member")
		}
	}
}

// isZstd knows a frame, and a frame to be skipped (RFC 8878, 3.1.1 and 3.1.2).
func isZstd(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

func (u *Unpacker) inflateZstd(ctx context.Context, r *bufio.Reader, head []byte) (io.Reader, func(), error) {
	var h zstd.Header
	if err := h.Decode(head); err != nil {
		return nil, nil, err
	}
	need := h.WindowSize
	if h.SingleSegment {
		need = h.FrameContentSize
	}
	// The frames of a stream come from one encoder, so the first one tells what all need. One that is to be
	// skipped tells nothing.
	window := int64(smallWindow)
	if need > smallWindow || h.Skippable {
		window = maxWindow
	}
	if need > maxWindow && !h.SingleSegment {
		return nil, nil, fmt.Errorf("zstd window is %d bytes, more than %d", need, maxWindow)
	}
	if err := u.windows.take(ctx, window); err != nil {
		return nil, nil, err
	}
	// One decoder, and no goroutines of its own: inflating has a processor to itself already.
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(uint64(window)), zstd.WithDecoderMaxMemory(1<<62))
	if err != nil {
		u.windows.give(window)
		return nil, nil, err
	}
	return z, func() { z.Close(); u.windows.give(window) }, nil
}

// A budget is bytes that are taken and given back.
type budget struct {
	mu sync.Mutex
	// +checklocks:mu
	free int64
	// queue holds who waits, in order, so that the large ones are not passed over for ever.
	// +checklocks:mu
	queue []*waiter
}

type waiter struct {
	n     int64
	ready chan struct{}
}

func newBudget(n int64) *budget { return &budget{free: n} }

// take waits until n bytes are free, or the context ends.
func (b *budget) take(ctx context.Context, n int64) error {
	b.mu.Lock()
	if len(b.queue) == 0 && b.free >= n {
		b.free -= n
		b.mu.Unlock()
		return nil
	}
	w := &waiter{n, make(chan struct{})}
	b.queue = append(b.queue, w)
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, other := range b.queue {
		if other == w {
			b.queue = append(b.queue[:i], b.queue[i+1:]...)
			b.serveLocked() // who stood behind may fit
			return context.Cause(ctx)
		}
	}
	b.free += n // it was served meanwhile
	b.serveLocked()
	return context.Cause(ctx)
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	b.serveLocked()
}

// +checklocks:b.mu
func (b *budget) serveLocked() {
	for len(b.queue) > 0 && b.free >= b.queue[0].n {
		b.free -= b.queue[0].n
		close(b.queue[0].ready)
		b.queue = b.queue[1:]
	}
}
