// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-cri/berth/image/overlay"
	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/image/unpack"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
)

// layer is one that an image needs.
type layer struct {
	chainID, diffID content.Digest
	blob            registry.Descriptor
	below           *job // nil for the lowest
}

// job brings a layer, for all who need it.
type job struct {
	*shared
	layer
	id store.LayerID // once it is done: the name under which it is kept, pinned
	// holders are those who may still use id, the job's own goroutine among them.
	holders atomic.Int32
}

// claim returns the job of a layer, which is begun if there is none.
func (s *Store) claim(l layer, repo *registry.Repository, report func(Progress)) (*job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[l.chainID]; j != nil && j.join() {
		j.holders.Add(1) // its own goroutine has not dropped it, while it is in jobs
		return j, nil
	}
	if err := s.holdLocked(); err != nil {
		return nil, err
	}
	j := &job{shared: newShared(s.ctx, s.cfg.Linger), layer: l}
	j.holders.Store(2)
	s.jobs[l.chainID] = j
	go func() {
		defer s.work.Done()
		defer s.drop(j)
		j.id, j.err = s.bring(j.ctx, j, repo, report)
		s.mu.Lock()
		if s.jobs[l.chainID] == j {
			delete(s.jobs, l.chainID)
		}
		s.mu.Unlock()
		j.finish()
	}()
	return j, nil
}

// drop lets go of a job's layer.
func (s *Store) drop(j *job) {
	if j.holders.Add(-1) == 0 && j.id != "" {
		s.unpin(j.id)
	}
}

// pin keeps a layer from being removed; one that is being removed is waited for.
func (s *Store) pin(id store.LayerID) {
	for {
		s.mu.Lock()
		gone := s.removing[id]
		if gone == nil {
			s.pins[id]++
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		<-gone
	}
}

func (s *Store) unpin(id store.LayerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[id]--; s.pins[id] == 0 {
		delete(s.pins, id)
	}
}

// present returns the name under which a layer is kept already, pinned.
func (s *Store) present(l layer) (store.LayerID, bool) {
	for _, d := range []content.Digest{l.chainID, l.diffID} {
		id := store.LayerID(d)
		s.pin(id)
		if r, ok := s.db.Layer(id); ok && r.DiffID == l.diffID {
			if _, err := s.layers.Layer(d); err == nil {
				return id, true
			}
		}
		s.unpin(id)
	}
	return "", false
}

// bring makes a layer, unless it is there.
func (s *Store) bring(ctx context.Context, j *job, repo *registry.Repository, report func(Progress)) (store.LayerID, error) {
	p := Progress{Layer: j.blob.Digest, Size: j.blob.Size, Stage: Waiting}
	if id, ok := s.present(j.layer); ok {
		p.Stage, p.Done = IsPresent, p.Size
		report(p)
		return id, nil
	}
	report(p)
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	free := sync.OnceFunc(func() { <-s.slots })
	defer free()
	p.Stage = Fetching
	draft, got, err := s.unpackBlob(ctx, j.layer, repo, func(done int64) { p.Done = done; report(p) })
	if err != nil {
		return "", err
	}
	defer draft.Discard() //nolint:errcheck // what remains is swept at the next start
	free()
	p.Stage, p.Done = Unpacked, p.Size
	report(p)
	if j.below != nil { // no image is whole without it, and what depends on it has to look into it
		if err := j.below.await(ctx); err != nil {
			return "", err
		}
	}
	if got.Dependent() {
		if err := s.settle(ctx, j, draft, got); err != nil {
			return "", err
		}
	}
	id, err := s.commit(ctx, j, draft, got)
	if err == nil {
		p.Stage = Done
		report(p)
	}
	return id, err
}

// unpackBlob fetches a layer's blob and unpacks it while it comes. Bytes that turn out
// to be wrong are fetched again, from another host if there is one.
func (s *Store) unpackBlob(ctx context.Context, l layer, repo *registry.Repository, progress func(int64)) (*overlay.Draft, *unpack.Result, error) {
	for {
		draft, got, again, err := s.unpackOnce(ctx, l, repo, progress)
		if err == nil {
			return draft, got, nil
		}
		if !again {
			return nil, nil, fmt.Errorf("layer %s: %w", l.blob.Digest, err)
		}
		s.cfg.Log.Info("Layer is fetched again", "layer", l.blob.Digest, "error", err)
	}
}

func (s *Store) unpackOnce(ctx context.Context, l layer, repo *registry.Repository, progress func(int64)) (draft *overlay.Draft, got *unpack.Result, again bool, err error) {
	blob, err := repo.Blob(ctx, l.blob, 0)
	if err != nil {
		return nil, nil, false, err
	}
	defer blob.Close()
	if draft, err = s.layers.Draft(); err != nil {
		return nil, nil, false, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, draft.Discard())
			draft = nil
		}
	}()
	in := &verifier{from: blob, want: l.blob, hash: newHasher(l.blob.Digest), progress: progress}
	defer in.hash.end()
	got, err = s.unpacker.Unpack(ctx, unpack.Source{Blob: in, MediaType: l.blob.MediaType, DiffID: l.diffID},
		unpack.Target{Root: draft.Root(), Seal: draft.Seal()})
	if err == nil {
		// An archive may end before its blob does.
		_, err = io.Copy(io.Discard, in)
	}
	switch {
	case ctx.Err() != nil:
		return draft, got, false, errors.Join(context.Cause(ctx), err)
	case in.failed != nil: // the registry's, and it has tried all hosts
		return draft, got, false, in.failed
	case err != nil && !in.ended:
		// The archive is bad, or its bytes are: only the digest of all of them can tell.
		if _, cerr := io.Copy(io.Discard, in); cerr != nil {
			return draft, got, false, errors.Join(err, cerr)
		}
	}
	if derr := in.check(); derr != nil {
		blob.Blame(derr)
		return draft, got, true, derr
	}
	return draft, got, false, err
}

// settle takes from the layers below what this one's archive does not say.
func (s *Store) settle(ctx context.Context, j *job, draft *overlay.Draft, got *unpack.Result) error {
	var lower []*os.File
	defer func() {
		for _, f := range lower {
			f.Close()
		}
	}()
	for b := j.below; b != nil; b = b.below {
		if err := b.await(ctx); err != nil {
			return err
		}
		f, err := s.layers.Open(content.Digest(b.id))
		if err != nil {
			return err
		}
		lower = append(lower, f)
	}
	return s.unpacker.Settle(ctx, unpack.Target{Root: draft.Root(), Seal: draft.Seal()}, got, lower)
}

// commit makes a layer of the draft, and writes down that it is there.
func (s *Store) commit(ctx context.Context, j *job, draft *overlay.Draft, got *unpack.Result) (store.LayerID, error) {
	id, parent := j.diffID, store.LayerID("")
	if got.Dependent() {
		id = j.chainID
		if j.below != nil {
			parent = j.below.id
		}
	}
	ready := overlay.Ready{Draft: draft, Layer: overlay.Layer{
		ID: id, DiffID: j.diffID, Parent: content.Digest(parent),
		Bytes: got.Bytes, Size: got.Size, Inodes: got.Inodes, RootGiven: got.RootGiven, RootOpaque: got.RootOpaque,
	}}
	s.pin(store.LayerID(id))
	if err := s.commits.commit(ctx, ready); err != nil {
		s.unpin(store.LayerID(id))
		return "", err
	}
	r := store.Layer{
		ID: store.LayerID(id), DiffID: j.diffID, Parent: parent, Blob: j.blob.Digest, Bytes: got.Bytes, Inodes: got.Inodes,
		ImplicitParents: got.ImplicitParents > 0, ForeignLinks: got.ForeignLinks > 0,
		CommittedAt: time.Now().UTC().Round(0), Run: s.db.Run(),
	}
	if err := s.db.PutLayer(context.WithoutCancel(ctx), r); err != nil {
		s.unpin(r.ID)
		return "", err
	}
	return r.ID, nil
}

// commits makes layers of drafts: those that are ready while others are synced are
// synced together, since one sync costs as much as many.
type commits struct {
	layers *overlay.Store

	mu      sync.Mutex
	waiting []*commitment // +checklocks:mu
	running bool          // +checklocks:mu
}

type commitment struct {
	ready overlay.Ready
	done  chan error
}

func (c *commits) commit(ctx context.Context, r overlay.Ready) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	mine := &commitment{ready: r, done: make(chan error, 1)}
	c.mu.Lock()
	c.waiting = append(c.waiting, mine)
	lead := !c.running
	c.running = true
	c.mu.Unlock()
	if lead {
		c.lead()
	}
	return <-mine.done // what has begun to be a layer is not given up
}

// lead commits all that wait, until nobody does.
func (c *commits) lead() {
	for {
		c.mu.Lock()
		batch := c.waiting
		c.waiting, c.running = nil, len(batch) > 0
		c.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		list := make([]overlay.Ready, len(batch))
		for i, m := range batch {
			list[i] = m.ready
		}
		err := c.layers.Commit(context.Background(), list...)
		for _, m := range batch {
			m.done <- err
		}
	}
}
