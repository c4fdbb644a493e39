// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/berth-cri/berth/store/content"
)

// worth is after how many bytes a connection was worth its while, so that retries are counted anew.
const worth = 1 << 20

// distrust remembers which hosts gave wrong bytes for a digest.
type distrust struct {
	mu sync.Mutex
	// +checklocks:mu
	hosts map[content.Digest]map[*endpoint]error
}

func (d *distrust) add(digest content.Digest, e *endpoint, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hosts == nil {
		d.hosts = make(map[content.Digest]map[*endpoint]error)
	}
	if d.hosts[digest] == nil {
		d.hosts[digest] = make(map[*endpoint]error)
	}
	d.hosts[digest][e] = err
}

// of returns why a host is not asked for a digest, nil if it is.
func (d *distrust) of(digest content.Digest, e *endpoint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hosts[digest][e]
}

// A Blob is the bytes of a blob while they come. A connection that breaks, or over which no byte came for
// Options.NoProgress, is given up, and the reading goes on where it was, at the next host if there is
// one.
//
// Read gives no byte beyond the descriptor's size, and io.EOF after the last one only. The digest is not
// verified here: who stores the bytes hashes them (content.Writer does), and hashing twice would cost a
// second for two gigabytes. Until that is done they are to be trusted in nothing; if they are wrong, say so
// with Blame and begin anew.
type Blob struct {
	p      *Repository
	d      Descriptor
	offset int64 // of the next byte
	round  *round
	body   io.ReadCloser
	from   *endpoint   // whose body it is
	mark   int64       // offset at which progress was last noted
	served []*endpoint // who gave bytes
	whole  map[*endpoint]bool
	reopen func() error // with the context that came with the Blob
	broken func(e *endpoint, err error) error
	err    error // what ended it
}

// Blob begins to fetch a blob at an offset. The context ends the reading, too.
func (p *Repository) Blob(ctx context.Context, d Descriptor, offset int64) (*Blob, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, p.wrap("", err)
	}
	if offset < 0 || offset > d.Size {
		return nil, p.wrap("", fmt.Errorf("%w: offset %d of %d bytes", content.ErrSize, offset, d.Size))
	}
	b := &Blob{p: p, d: d, offset: offset, mark: offset, whole: make(map[*endpoint]bool)}
	r, err := p.round(func(e *endpoint) bool { return e.pull && p.distrust.of(d.Digest, e) == nil })
	if err != nil {
		return nil, p.wrap("blob "+d.Digest.String(), cmpErr(p.wrongBytes(d.Digest), err))
	}
	b.round = r
	b.reopen = func() error { return b.open(ctx) }
	b.broken = func(e *endpoint, err error) error { return r.failed(ctx, e, e.broken(ctx, e.host, err)) }
	if offset == d.Size {
		return b, nil
	}
	if err := b.reopen(); err != nil {
		return nil, p.wrap("blob "+d.Digest.String(), err)
	}
	return b, nil
}

// wrongBytes tells of all hosts that gave wrong bytes for a digest, nil if none did.
func (p *Repository) wrongBytes(digest content.Digest) error {
	var last error
	var others []string
	for _, e := range p.endpoints {
		if err := p.distrust.of(digest, e); err != nil {
			if last != nil {
				others = append(others, last.Error())
			}
			last = e.fail(e.host, ErrMalformed, err.Error(), err)
		}
	}
	if len(others) == 0 {
		return last
	}
	return fmt.Errorf("%w (before that: %s)", last, strings.Join(others, "; "))
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// open asks hosts until one gives the bytes from the offset on.
func (b *Blob) open(ctx context.Context) error {
	for {
		e, err := b.round.host(ctx)
		if err != nil {
			return err
		}
		body, err := b.ask(ctx, e)
		if err == nil {
			b.body, b.from = body, e
			return nil
		}
		if err := b.round.failed(ctx, e, err); err != nil {
			return err
		}
	}
}

// ask asks one host.
func (b *Blob) ask(ctx context.Context, e *endpoint) (io.ReadCloser, error) {
	q := ask{method: http.MethodGet, path: "blobs/" + b.d.Digest.String()}
	if b.offset > 0 && !b.whole[e] {
		// With its end: there are registries that refuse a range without.
		q.span = fmt.Sprintf("bytes=%d-%d", b.offset, b.d.Size-1)
	}
	resp, err := e.do(ctx, q)
	if f := asFailure(err); f != nil && f.status == http.StatusRequestedRangeNotSatisfiable && q.span != "" {
		b.whole[e] = true
		return b.ask(ctx, e)
	}
	if err != nil {
		return nil, err
	}
	if err := b.position(ctx, e, resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

// position makes sure that the next byte of an answer is the one at the offset.
func (b *Blob) position(ctx context.Context, e *endpoint, resp *http.Response) error {
	wrong := func(format string, args ...any) error {
		return e.fail(e.host, ErrMalformed, fmt.Sprintf(format, args...), content.ErrSize)
	}
	if resp.StatusCode == http.StatusPartialContent {
		var from, to, size int64
		value := resp.Header.Get("Content-Range")
		n, _ := fmt.Sscanf(value, "bytes %d-%d/%d", &from, &to, &size)
		switch {
		case n < 2 || from != b.offset:
			return wrong("asked for bytes from %d on, gives %q", b.offset, value)
		case n == 3 && size != b.d.Size:
			return wrong("the blob has %d bytes there, is to have %d", size, b.d.Size)
		}
		return nil
	}
	if n := resp.ContentLength; n >= 0 && n != b.d.Size {
		return wrong("the blob has %d bytes there, is to have %d", n, b.d.Size)
	}
	// The whole of it: what is there already is thrown away.
	if _, err := io.CopyN(io.Discard, resp.Body, b.offset); err != nil {
		return e.broken(ctx, e.host, ended(err, 0, b.d.Size))
	}
	return nil
}

// Read reads on; see Blob.
func (b *Blob) Read(p []byte) (int, error) {
	if len(p) == 0 || b.err != nil {
		return 0, b.err
	}
	for b.offset < b.d.Size {
		if b.body == nil {
			if err := b.reopen(); err != nil {
				b.err = b.p.wrap("blob "+b.d.Digest.String(), err)
				return 0, b.err
			}
		}
		n, err := b.body.Read(p[:min(int64(len(p)), b.d.Size-b.offset)])
		b.offset += int64(n)
		if n > 0 {
			b.note()
		}
		if err != nil && b.offset < b.d.Size {
			if err := b.lost(err); err != nil && n == 0 {
				return 0, b.err
			}
		}
		if n > 0 {
			return n, nil
		}
	}
	b.end(io.EOF)
	return 0, b.err
}

// note takes down who gave bytes, and that it was worth it.
func (b *Blob) note() {
	if !slices.Contains(b.served, b.from) {
		b.served = append(b.served, b.from)
	}
	if b.offset-b.mark >= worth {
		b.mark = b.offset
		b.round.progress()
	}
}

// lost gives a connection up. It returns an error if that is the end of it.
func (b *Blob) lost(err error) error {
	e := b.from
	b.body.Close()
	b.body, b.from = nil, nil
	b.mark = b.offset
	if err := b.broken(e, ended(err, b.offset, b.d.Size)); err != nil {
		b.err = b.p.wrap("blob "+b.d.Digest.String(), err)
	}
	return b.err
}

// ended says how far it came.
func ended(err error, offset, size int64) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w after %d of %d bytes", err, offset, size)
}

func (b *Blob) end(err error) {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
	if b.err == nil {
		b.err = err
	}
}

// Offset is how many bytes come before the next one.
func (b *Blob) Offset() int64 { return b.offset }

// Hosts are those that gave bytes.
func (b *Blob) Hosts() []string {
	var names []string
	for _, e := range b.served {
		names = append(names, e.host)
	}
	return names
}

// Blame says that the bytes turned out to be wrong, and how. The host that gave them is not asked for this
// blob again by this Repository; if there were several it is the first in the order of hosts, since the
// registry itself, the last one, is the least likely to be wrong. When all are to blame the next Blob
// returns the error.
func (b *Blob) Blame(err error) {
	for _, e := range b.p.endpoints {
		if slices.Contains(b.served, e) {
			b.p.distrust.add(b.d.Digest, e, err)
			return
		}
	}
	// Nobody gave anything: an empty blob that is not to be empty.
	for _, e := range b.p.endpoints {
		b.p.distrust.add(b.d.Digest, e, err)
	}
}

// Close ends the reading.
func (b *Blob) Close() error {
	b.end(fs.ErrClosed)
	return nil
}
