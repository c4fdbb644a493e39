// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/image/overlay"
	"github.com/berth-cri/berth/image/ref"
	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/image/unpack"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
)

var (
	// ErrNotFound says that the node has no image of that name.
	ErrNotFound = errors.New("no such image on this node")
	// ErrAmbiguous says that more than one image has an id that begins so.
	ErrAmbiguous = errors.New("more than one image id begins so")
	// ErrBadImage refuses an image whose parts do not go together. The message says which.
	ErrBadImage = errors.New("bad image")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("image store is closed")
)

// Config is what a Store is made of.
type Config struct {
	DB *store.DB
	// Root is a folder on a disk: layers, and what containers write.
	Root     string
	Registry registry.Options
	// Downloads is how many layers are fetched and unpacked at a time, over all pulls; 0: 3.
	Downloads int
	// Linger is how long a pull goes on when nobody waits for it any more; 0: 60 s.
	Linger time.Duration
	// User splits the USER of a configuration as statuses have it: oci/spec.ImageUser.
	User func(user string) (uid *int64, name string)
	// Pinned are patterns (path.Match) of names that the kubelet is to keep.
	Pinned []string

	Log klog.Logger
}

// Store is the images of a node. Its methods may be called by many goroutines.
type Store struct {
	cfg      Config
	db       *store.DB
	layers   *overlay.Store
	client   *registry.Client
	unpacker *unpack.Unpacker

	ctx    context.Context //nolint:containedctx // ends what the store does by itself
	cancel context.CancelCauseFunc
	work   sync.WaitGroup
	slots  chan struct{}

	mu sync.Mutex
	// By chainID.
	jobs   map[content.Digest]*job // +checklocks:mu
	pulls  map[pullKey]*pull       // +checklocks:mu
	closed bool                    // +checklocks:mu
	// pins counts who relies on a layer that no image may have yet.
	pins map[store.LayerID]int // +checklocks:mu
	// removing has the layers that are being removed; closed when they are.
	removing map[store.LayerID]chan struct{} // +checklocks:mu

	commits commits
}

// Open opens the images of a node. What a crash left is removed, and after an unclean
// end of the machine the layers that may have suffered are verified.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Downloads == 0 {
		cfg.Downloads = 3
	}
	if cfg.Linger == 0 {
		cfg.Linger = 60 * time.Second
	}
	layers, err := overlay.Open(filepath.Join(cfg.Root, "overlay"), overlay.Options{Volatile: true})
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, db: cfg.DB, layers: layers, client: registry.New(cfg.Registry), unpacker: unpack.New(unpack.Options{}),
		slots: make(chan struct{}, cfg.Downloads),
		jobs:  make(map[content.Digest]*job), pulls: make(map[pullKey]*pull),
		pins: make(map[store.LayerID]int), removing: make(map[store.LayerID]chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.commits.layers = layers
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(err, layers.Close())
	}
	return s, nil
}

// Close ends pulls and waits until nothing moves any more.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel(ErrClosed)
	s.work.Wait()
	s.client.Close()
	return s.layers.Close()
}

// holdLocked makes Close wait for work.Done, unless it is too late for that.
//
// +checklocks:s.mu
func (s *Store) holdLocked() error {
	if s.closed {
		return ErrClosed
	}
	s.work.Add(1)
	return nil
}

// find returns the image that a name, an id, or the beginning of an id stands for.
// Images that were removed and are still in use are not found.
func (s *Store) find(name string) (store.Image, error) {
	if r, err := ref.Parse(name); err == nil {
		if i, ok := s.named(r); ok {
			return i, nil
		}
	}
	hex := strings.TrimPrefix(name, "sha256:")
	if i, ok := s.db.Image(store.ImageID("sha256:" + hex)); ok && shown(i) {
		return i, nil
	}
	var found []store.Image
	if isHex(hex) {
		for i := range s.db.Images() {
			if shown(i) && strings.HasPrefix(string(i.ID), "sha256:"+hex) {
				found = append(found, i)
			}
		}
	}
	switch len(found) {
	case 0:
		return store.Image{}, fmt.Errorf("%q: %w", name, ErrNotFound)
	case 1:
		return found[0], nil
	default:
		return store.Image{}, fmt.Errorf("%q: %w", name, ErrAmbiguous)
	}
}

// named returns the image that has a name, or the digest that the name has.
func (s *Store) named(r ref.Ref) (store.Image, bool) {
	if r.Digest() == "" {
		i, ok := s.db.ImageNamed(r.String())
		return i, ok
	}
	want := r.Name() + "@" + r.Digest().String()
	for i := range s.db.Images() {
		if slices.Contains(i.RepoDigests, want) {
			return i, true
		}
	}
	return store.Image{}, false
}

func isHex(s string) bool {
	return len(s) >= 4 && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// shown says whether an image is to be seen: one that was removed has no name left.
func shown(i store.Image) bool { return len(i.Names)+len(i.RepoDigests) > 0 }

// configOf returns an image's configuration.
func configOf(i store.Image) (imagespec.Image, error) {
	var c imagespec.Image
	if err := json.Unmarshal(i.ConfigBytes, &c); err != nil {
		return c, fmt.Errorf("image %s: configuration: %w", i.ID, err)
	}
	return c, nil
}

// chain returns an image's layers, the lowest first.
func chain(i store.Image) []content.Digest {
	list := make([]content.Digest, len(i.Layers))
	for n, id := range i.Layers {
		list[n] = content.Digest(id)
	}
	return list
}
