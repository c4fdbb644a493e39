// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/store"
)

// List returns the images that a name stands for, all for "".
func (s *Store) List(name string) []*cri.Image {
	if name != "" {
		i, err := s.find(name)
		if err != nil {
			return nil
		}
		return []*cri.Image{message(i)}
	}
	var list []*cri.Image
	for i := range s.db.Images() {
		if shown(i) {
			list = append(list, message(i))
		}
	}
	return list
}

// Status returns the image that a name stands for; nil if there is none.
func (s *Store) Status(name string) (*cri.Image, error) {
	i, err := s.find(name)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return message(i), nil
}

// Info is what a verbose status tells besides.
type Info struct {
	ChainIDs  []string `json:"layers"`
	ImageSpec any      `json:"imageSpec"`
	Size      int64    `json:"size"`
	PulledAt  string   `json:"pulledAt,omitempty"`
}

// Info returns what a verbose status tells of an image.
func (s *Store) Info(name string) (*Info, error) {
	i, err := s.find(name)
	if err != nil {
		return nil, err
	}
	c, err := configOf(i)
	if err != nil {
		return nil, err
	}
	info := &Info{ImageSpec: c, Size: i.Size}
	if !i.PulledAt.IsZero() {
		info.PulledAt = i.PulledAt.Format(time.RFC3339)
	}
	for _, id := range i.Layers {
		info.ChainIDs = append(info.ChainIDs, string(id))
	}
	return info, nil
}

// message is an image as the CRI has it. Names are in order, so that it is the same
// whichever of them was asked for.
func message(i store.Image) *cri.Image {
	m := &cri.Image{
		Id: string(i.ID), RepoTags: slices.Sorted(slices.Values(i.Names)), RepoDigests: slices.Sorted(slices.Values(i.RepoDigests)),
		Size: uint64(max(i.Size, 1)), Pinned: i.Pinned, Username: i.Username,
	}
	if i.UID != nil {
		m.Uid = &cri.Int64Value{Value: *i.UID}
	}
	return m
}

// FsUsage is what images and containers take together.
type FsUsage struct {
	Mountpoint string // a path on the file system
	Bytes      uint64
	Inodes     uint64
	At         time.Time
}

// Mountpoint is a path on the file system of images and containers.
func (s *Store) Mountpoint() string { return strings.TrimSuffix(s.cfg.Root, "/") }

// FsInfo adds up what has been counted: nothing is walked.
func (s *Store) FsInfo() (FsUsage, error) {
	bytes, inodes := s.layers.Total()
	names, err := s.layers.Containers()
	if err != nil {
		return FsUsage{}, err
	}
	for _, n := range names {
		if u, ok := s.layers.Usage(n); ok {
			bytes, inodes = bytes+u.Bytes, inodes+u.Inodes
		}
	}
	return FsUsage{Mountpoint: s.Mountpoint(), Bytes: uint64(bytes), Inodes: uint64(inodes), At: time.Now()}, nil
}
