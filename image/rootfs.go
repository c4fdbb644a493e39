// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-cri/berth/image/overlay"
	"github.com/berth-cri/berth/image/unpack"
	"github.com/berth-cri/berth/store"
)

// Image is what a container must know of its image.
type Image struct {
	ID     store.ImageID
	Name   string // the first of its names, or the digest by which a registry knows it
	Ref    string // that digest, or the id where there is none
	Config imagespec.ImageConfig
}

// Resolve finds the image that a name, an id, or the beginning of an id stands for.
func (s *Store) Resolve(_ context.Context, name string) (Image, error) {
	i, err := s.find(name)
	if err != nil {
		return Image{}, err
	}
	c, err := configOf(i)
	if err != nil {
		return Image{}, err
	}
	img := Image{ID: i.ID, Name: string(i.ID), Ref: string(i.ID), Config: c.Config}
	if len(i.RepoDigests) > 0 {
		img.Name, img.Ref = i.RepoDigests[0], i.RepoDigests[0]
	}
	if len(i.Names) > 0 {
		img.Name = i.Names[0]
	}
	return img, nil
}

// Rootfs makes what a container writes to, above an image's layers, and describes its
// root file system. Again is no error.
func (s *Store) Rootfs(ctx context.Context, id store.ContainerID, image store.ImageID) (overlay.Mount, error) {
	i, ok := s.db.Image(image)
	if !ok {
		return overlay.Mount{}, fmt.Errorf("%s: %w", image, ErrNotFound)
	}
	return s.layers.Container(ctx, string(id), chain(i))
}

// RemoveRootfs takes away what a container wrote. None is no error. The image goes
// with it if it was removed before and this was the last container that had it.
func (s *Store) RemoveRootfs(ctx context.Context, id store.ContainerID) error {
	if err := s.layers.RemoveContainer(ctx, string(id)); err != nil {
		return err
	}
	c, ok := s.db.Container(id)
	if !ok {
		return nil
	}
	i, ok := s.db.Image(c.ImageID)
	if !ok || shown(i) {
		return nil
	}
	for other := range s.db.Containers() {
		if other.ID != id && other.ImageID == i.ID {
			return nil
		}
	}
	return s.drain(ctx, i)
}

// ReadFile reads a file of an image, as a container would see it: fs.ErrNotExist where
// there is none, an error for one of more than limit bytes.
func (s *Store) ReadFile(_ context.Context, image store.ImageID, path string, limit int64) (b []byte, err error) {
	i, ok := s.db.Image(image)
	if !ok {
		return nil, fmt.Errorf("%s: %w", image, ErrNotFound)
	}
	var layers []*os.File
	defer func() {
		for _, f := range layers {
			f.Close()
		}
	}()
	for _, d := range slices.Backward(chain(i)) {
		f, err := s.layers.Open(d)
		if err != nil {
			return nil, err
		}
		layers = append(layers, f)
	}
	return unpack.ReadFile(layers, path, limit)
}

// measurePause is the least time between two walks through what containers write. It
// is longer where they have much: the walks take a twentieth of the time at most.
const measurePause = 10 * time.Second

// Measure walks again and again through what containers have written, so that Usage
// knows, until ctx ends.
func (s *Store) Measure(ctx context.Context) {
	pause := measurePause
	for {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		began := time.Now()
		names, err := s.layers.Containers()
		for _, n := range names {
			if _, merr := s.layers.Measure(ctx, n); merr != nil && !errors.Is(merr, overlay.ErrNotFound) {
				err = errors.Join(err, merr)
			}
		}
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Error(err, "What containers have written could not be measured")
		}
		pause = max(measurePause, 20*time.Since(began))
	}
}

// Usage returns what a container has written, as measured last; the first time it is
// measured now.
func (s *Store) Usage(ctx context.Context, id store.ContainerID) (overlay.Usage, error) {
	if u, ok := s.layers.Usage(string(id)); ok {
		return u, nil
	}
	return s.layers.Measure(ctx, string(id))
}
