// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"

	"github.com/berth-cri/berth/image/overlay"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
)

// recover makes records and folders agree again.
func (s *Store) recover(ctx context.Context) error {
	if s.db.Rebooted() && !s.db.CleanShutdown() {
		if err := s.verifySuspects(ctx); err != nil {
			return err
		}
	}
	// Layers that a record names and that are not there, or not readable.
	for l := range s.db.Layers() {
		if _, err := s.layers.Layer(content.Digest(l.ID)); err != nil {
			if err := s.lose(ctx, l.ID, err); err != nil {
				return err
			}
		}
	}
	// Layers that no record names: committed when the process died.
	for _, d := range s.layers.Layers() {
		if _, ok := s.db.Layer(store.LayerID(d)); !ok {
			if err := s.layers.Remove(ctx, d); err != nil {
				return err
			}
		}
	}
	// Layers that no image has: of a pull that did not come to its end. The topmost of
	// those that depend on each other first.
	for again := true; again; {
		again = false
		for l := range s.db.Layers() {
			if s.needed(l.ID) {
				continue
			}
			if err := s.removeLayer(ctx, l.ID); err != nil {
				return err
			}
			if _, still := s.db.Layer(l.ID); !still {
				again = true
			}
		}
	}
	return s.recoverContainers(ctx)
}

// recoverContainers removes what is left of containers that the store does not name,
// and images that were removed while a container had them.
func (s *Store) recoverContainers(ctx context.Context) error {
	names, err := s.layers.Containers()
	if err != nil {
		return err
	}
	for _, n := range names {
		id := store.ContainerID(n)
		_, ok := s.db.Container(id)
		_, live := s.db.LiveContainers().Get(id)
		if !ok && !live { // else package sandbox takes it back
			if err := s.layers.RemoveContainer(ctx, n); err != nil {
				return err
			}
		}
	}
	for i := range s.db.Images() {
		if !shown(i) && !s.inUse(i.ID) {
			if err := s.drain(ctx, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// needed says whether an image has a layer.
func (s *Store) needed(id store.LayerID) bool {
	for range s.db.ImagesOf(id) {
		return true
	}
	return false
}

// verifySuspects reads the layers that were committed since the machine was last shut
// down in order, and compares them with what they were.
func (s *Store) verifySuspects(ctx context.Context) error {
	for l := range s.db.Layers() {
		if l.Verified || l.Run <= s.db.LastCleanRun() {
			continue
		}
		err := s.layers.Verify(ctx, content.Digest(l.ID))
		switch {
		case err == nil:
			l.Verified = true
			if err := s.db.PutLayer(ctx, l); err != nil {
				return err
			}
		case errors.Is(err, overlay.ErrDamaged), errors.Is(err, overlay.ErrNotFound):
			if err := s.lose(ctx, l.ID, err); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}

// lose gives up a layer that is damaged, with all that is of no use without it:
// kubelets pull the images again.
func (s *Store) lose(ctx context.Context, id store.LayerID, why error) error {
	s.cfg.Log.Error(why, "Layer is given up; its images have to be pulled again", "layer", id)
	for i := range s.db.ImagesOf(id) {
		s.cfg.Log.Info("Image is given up", "id", i.ID, "names", i.Names)
		if err := s.db.DeleteImage(ctx, i.ID); err != nil {
			return err
		}
	}
	for l := range s.db.Layers() {
		if l.Parent == id {
			if err := s.lose(ctx, l.ID, why); err != nil {
				return err
			}
		}
	}
	if err := s.db.DeleteLayer(ctx, id); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return s.layers.Remove(ctx, content.Digest(id))
}
