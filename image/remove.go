// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"slices"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
)

// Remove removes the image that a name, an id, or the beginning of an id stands for,
// with all its names. None is no error. Containers of it go on, and keep its layers.
func (s *Store) Remove(ctx context.Context, name string) error {
	i, err := s.find(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.inUse(i.ID) {
		return s.db.Update(ctx, func(tx *store.Tx) error {
			old, ok := tx.Image(i.ID)
			if !ok {
				return nil
			}
			old.Names, old.RepoDigests, old.Pinned = nil, nil, false
			return tx.PutImage(old)
		})
	}
	return s.drain(ctx, i)
}

// drain removes an image and the layers that only it had.
func (s *Store) drain(ctx context.Context, i store.Image) error {
	if err := s.db.DeleteImage(ctx, i.ID); err != nil {
		return err
	}
	s.cfg.Log.Info("Removed image", "id", i.ID, "names", i.Names)
	// From the top: one that depends on another keeps it.
	for _, id := range slices.Backward(i.Layers) {
		if err := s.removeLayer(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// inUse says whether a container has the image.
func (s *Store) inUse(id store.ImageID) bool {
	for c := range s.db.Containers() {
		if c.ImageID == id {
			return true
		}
	}
	return false
}

// removeLayer removes a layer unless somebody needs it.
func (s *Store) removeLayer(ctx context.Context, id store.LayerID) error {
	s.mu.Lock()
	if s.pins[id] > 0 || s.removing[id] != nil {
		s.mu.Unlock()
		return nil
	}
	gone := make(chan struct{})
	s.removing[id] = gone
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.removing, id)
		s.mu.Unlock()
		close(gone)
	}()
	// The record first: it says that the layer is there.
	err := s.db.DeleteLayer(ctx, id)
	if errors.Is(err, store.ErrInUse) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.layers.Remove(ctx, content.Digest(id))
}
