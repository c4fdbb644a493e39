// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/berth-cri/berth/store/content"
)

// copyBuffer is how much of a blob is in memory.
const copyBuffer = 128 << 10

// Fetch brings a blob into a store, verified, and is done when it is on the disk. What is there already
// is not fetched: not the blob, and not what an earlier Fetch, or process, left of it as a draft. Of two
// at a time one fetches and the other waits.
//
// progress, if it is not nil, is called with how many bytes are there, from this goroutine: at the
// beginning, as they come, and at the end. It goes back where a blob has to be fetched anew.
//
// Bytes with another digest are fetched again from the next host; content.ErrDigest is returned, with
// the hosts' names, when there is none left. When the context ends what has come stays as a draft.
func (p *Repository) Fetch(ctx context.Context, d Descriptor, store *content.Store, progress func(done int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	for {
		again, err := p.fetch(ctx, d, store, progress)
		if !again {
			return err
		}
	}
}

// fetch tries once. It says to try again where the bytes were wrong and others may not be.
func (p *Repository) fetch(ctx context.Context, d Descriptor, store *content.Store, progress func(int64)) (again bool, err error) {
	w, err := store.Writer(ctx, d.Digest, d.Size)
	if errors.Is(err, content.ErrExists) {
		progress(d.Size)
		return false, nil
	}
	if err != nil {
		return false, p.wrap("blob "+d.Digest.String(), err)
	}
	defer w.Close()
	resumed := w.Offset() > 0
	progress(w.Offset())
	b, err := p.Blob(ctx, d, w.Offset())
	if err != nil {
		return false, err
	}
	defer b.Close()
	if err := p.copy(w, b, progress); err != nil {
		return false, err
	}
	_, err = w.Commit()
	if !errors.Is(err, content.ErrDigest) {
		if err != nil {
			err = p.wrap("", err)
		}
		return false, err
	}
	// A draft of another time may be what was wrong: then nobody is to blame yet.
	if !resumed {
		b.Blame(err)
	}
	return true, nil
}

// copy moves bytes, and tells errors of the store from those of the registry, which have their names.
func (p *Repository) copy(w *content.Writer, b *Blob, progress func(int64)) error {
	buffer := make([]byte, copyBuffer)
	for {
		n, err := b.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return p.wrap("", fmt.Errorf("storing blob %s: %w", b.d.Digest, err))
			}
			progress(w.Offset())
		}
		switch {
		case errors.Is(err, io.EOF) && w.Offset() == b.d.Size:
			return nil
		case err != nil:
			return err
		}
	}
}
