// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/berth-cri/berth/store/content"
)

const (
	chunkSize = 256 << 10
	chunks    = 8
)

// A ring is the buffers of one layer.
type ring struct{ chunks [chunks]chunk }

// A chunk of the uncompressed archive is read by two, who each let go of it.
type chunk struct {
	buf     [chunkSize]byte
	n       int
	readers atomic.Int32
}

// pipe carries chunks from the one who inflates to the one who hashes and the one who writes.
type pipe struct {
	free, hash, write chan *chunk
	stop              chan struct{} // closed when the writer has failed
	failed            error         // why there are no more chunks; set before write is closed
}

func (p *pipe) release(c *chunk) {
	if c.readers.Add(-1) == 0 {
		p.free <- c // never blocks: it has room for all
	}
}

// stream inflates a blob, hands the archive to extract, and returns its digest.
func (u *Unpacker) stream(ctx context.Context, blob io.Reader, extract func(io.Reader) error) (content.Digest, error) {
	buffers, _ := u.rings.Get().(*ring)
	if buffers == nil {
		buffers = new(ring)
	}
	defer u.rings.Put(buffers)
	p := &pipe{
		free: make(chan *chunk, chunks), hash: make(chan *chunk, chunks), write: make(chan *chunk, chunks),
		stop: make(chan struct{}),
	}
	for i := range buffers.chunks {
		p.free <- &buffers.chunks[i]
	}

	var workers sync.WaitGroup
	sum := sha256.New()
	workers.Go(func() {
		for c := range p.hash {
			sum.Write(c.buf[:c.n])
			p.release(c)
		}
	})
	var extractErr error
	workers.Go(func() {
		r := &chunkReader{p: p}
		if extractErr = extract(r); extractErr == nil {
			extractErr = r.drain()
		}
		if extractErr != nil {
			close(p.stop)
		}
	})
	p.failed = u.fill(ctx, blob, p)
	close(p.hash)
	close(p.write)
	workers.Wait()
	// If the stream has failed, then the writer has at most found that out.
	if p.failed != nil && !errors.Is(p.failed, errStopped) {
		return "", p.failed
	}
	if extractErr != nil {
		return "", extractErr
	}
	return content.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))), nil
}

// errStopped ends the stream when the writer has failed.
var errStopped = errors.New("stopped")

// fill reads and inflates the blob to its end.
func (u *Unpacker) fill(ctx context.Context, blob io.Reader, p *pipe) error {
	source := &source{r: blob, cancel: func() error { return context.Cause(ctx) }}
	buffered, _ := u.readers.Get().(*bufio.Reader)
	if buffered == nil {
		buffered = bufio.NewReaderSize(source, readSize)
	} else {
		buffered.Reset(source)
	}
	defer func() {
		buffered.Reset(nil)
		u.readers.Put(buffered)
	}()
	archive, done, err := u.inflate(ctx, buffered)
	if err != nil {
		return source.explain(err)
	}
	defer done()
	for total := int64(0); ; {
		var c *chunk
		select {
		case c = <-p.free:
		case <-p.stop:
			return errStopped
		}
		c.n, err = readFull(archive, c.buf[:])
		if total += int64(c.n); total > u.limits.Bytes {
			return fmt.Errorf("%w: more than %d bytes uncompressed", ErrTooLarge, u.limits.Bytes)
		}
		if c.n > 0 {
			c.readers.Store(2)
			p.hash <- c
			p.write <- c
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return source.explain(err)
		}
	}
}

// readFull is io.ReadFull that leaves io.EOF and io.ErrUnexpectedEOF as they are: the one is the end of
// the archive, the other that of a blob that was cut.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// source is the blob. It tells an error of the blob from one of its content.
type source struct {
	r      io.Reader
	err    error
	cancel func() error // of the context
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.cancel(); err != nil {
		s.err = err
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *source) explain(err error) error {
	switch {
	case s.err != nil:
		return s.err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err // while it waited for a window
	}
	return fmt.Errorf("%w: %w", ErrArchive, err)
}

// chunkReader reads chunks as they come.
type chunkReader struct {
	p    *pipe
	c    *chunk
	used int
}

func (r *chunkReader) next() bool {
	if r.c != nil {
		r.p.release(r.c)
	}
	r.c, r.used = <-r.p.write, 0
	return r.c != nil
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for r.c == nil || r.used == r.c.n {
		if !r.next() {
			if r.p.failed != nil {
				return 0, r.p.failed
			}
			return 0, io.EOF
		}
	}
	n := copy(p, r.c.buf[r.used:r.c.n])
	r.used += n
	return n, nil
}

// drain reads what follows the end of the tar, so that all of it is hashed.
func (r *chunkReader) drain() error {
	for r.next() {
	}
	return r.p.failed
}
