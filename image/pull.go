// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/image/overlay"
	"github.com/berth-cri/berth/image/ref"
	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
)

// Stage is what happens to a layer.
type Stage string

// The stages of a layer.
const (
	Waiting   Stage = "waiting"
	Fetching  Stage = "fetching" // and unpacking at the same time
	Unpacked  Stage = "unpacked" // and waits for those below, and for the disk
	Done      Stage = "done"
	IsPresent Stage = "present" // was there before
)

// Progress tells how far a layer is.
type Progress struct {
	Layer content.Digest // of its blob
	Stage Stage
	Done  int64 // bytes of the blob
	Size  int64
}

// pullKey is what makes two pulls one: the name, and who asks.
type pullKey struct {
	name string
	auth content.Digest // of the credentials
}

// pull is an image being pulled, for all who wait for it.
type pull struct {
	*shared
	id store.ImageID
}

// Pull fetches the image that a name stands for, and returns its id. Two who ask for
// the same with the same credentials wait for one pull. The end of ctx ends the
// waiting; the pull goes on for a while, in case that somebody asks again. report,
// which may be nil, is called often, by several goroutines.
func (s *Store) Pull(ctx context.Context, name string, auth *cri.AuthConfig, report func(Progress)) (store.ImageID, error) {
	r, err := ref.Parse(name)
	if err != nil {
		return "", err
	}
	who, err := proto.MarshalOptions{Deterministic: true}.Marshal(auth)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	repo, err := s.client.Repository(r, authOf(auth))
	if err != nil {
		return "", err
	}
	key := pullKey{r.String(), content.FromBytes(who)}
	s.mu.Lock()
	p := s.pulls[key]
	if p == nil || !p.join() {
		if err := s.holdLocked(); err != nil {
			s.mu.Unlock()
			return "", err
		}
		p = &pull{shared: newShared(s.ctx, s.cfg.Linger)}
		s.pulls[key] = p
		go func() {
			defer s.work.Done()
			p.id, p.err = s.pull(p.ctx, repo, report)
			s.mu.Lock()
			if s.pulls[key] == p {
				delete(s.pulls, key)
			}
			s.mu.Unlock()
			p.finish()
		}()
	}
	s.mu.Unlock()
	if err := p.wait(ctx); err != nil {
		return "", fmt.Errorf("pull %s: %w", r, err)
	}
	return p.id, nil
}

func authOf(a *cri.AuthConfig) registry.Auth {
	return registry.Auth{
		Username: a.GetUsername(), Password: registry.NewSecret(a.GetPassword()), Encoded: registry.NewSecret(a.GetAuth()),
		ServerAddress: a.GetServerAddress(), IdentityToken: registry.NewSecret(a.GetIdentityToken()),
		RegistryToken: registry.NewSecret(a.GetRegistryToken()),
	}
}

// pull does it.
func (s *Store) pull(ctx context.Context, repo *registry.Repository, report func(Progress)) (store.ImageID, error) {
	began := time.Now()
	if report == nil {
		report = func(Progress) {}
	}
	root, err := repo.Resolve(ctx)
	if err != nil {
		return "", err
	}
	m, err := repo.Manifest(ctx, root)
	if err != nil {
		return "", err
	}
	raw, err := repo.Config(ctx, m.Config)
	if err != nil {
		return "", err
	}
	var c imagespec.Image
	if err := json.Unmarshal(raw, &c); err != nil {
		return "", fmt.Errorf("%w: configuration %s: %w", ErrBadImage, m.Config.Digest, err)
	}
	chain, release, err := s.fetchLayers(ctx, repo, m.Layers, c.RootFS, report)
	defer release()
	if err != nil {
		return "", err
	}
	i := store.Image{
		ID: store.ImageID(m.Config.Digest), Manifest: m.Digest, Config: m.Config.Digest, ConfigBytes: raw,
		Layers: chain, PulledAt: time.Now().UTC().Round(0),
	}
	if err := s.record(ctx, i, repo.Ref(), root.Digest); err != nil {
		return "", err
	}
	s.cfg.Log.Info("Pulled image", "image", repo.Ref().String(), "id", i.ID, "layers", len(chain), "took", time.Since(began).Round(time.Millisecond))
	return i.ID, nil
}

// fetchLayers brings all layers of an image, and returns their ids, the lowest first.
// They are not removed before release is called.
func (s *Store) fetchLayers(ctx context.Context, repo *registry.Repository, blobs []registry.Descriptor, fs imagespec.RootFS, report func(Progress)) (ids []store.LayerID, release func(), err error) {
	var jobs []*job
	release = func() {
		for _, j := range jobs {
			j.leave()
			s.drop(j)
		}
	}
	if len(fs.DiffIDs) != len(blobs) {
		return nil, release, fmt.Errorf("%w: %d layers in the manifest, %d in the configuration", ErrBadImage, len(blobs), len(fs.DiffIDs))
	}
	var below *job
	parent := content.Digest("")
	for n, blob := range blobs {
		diffID, err := content.Parse(fs.DiffIDs[n].String())
		if err != nil {
			return nil, release, fmt.Errorf("%w: diff id %d: %w", ErrBadImage, n, err)
		}
		chainID := overlay.ChainID(parent, diffID)
		j, err := s.claim(layer{chainID: chainID, diffID: diffID, blob: blob, below: below}, repo, report)
		if err != nil {
			return nil, release, err
		}
		jobs, below, parent = append(jobs, j), j, chainID
	}
	var wg sync.WaitGroup
	errs := make([]error, len(jobs))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for n := range jobs {
		wg.Go(func() {
			if errs[n] = jobs[n].await(ctx); errs[n] != nil {
				cancel() // the others' errors are of no interest
			}
		})
	}
	wg.Wait()
	if err := firstCause(errs); err != nil {
		return nil, release, err
	}
	for _, j := range jobs {
		ids = append(ids, j.id)
	}
	return ids, release, nil
}

// firstCause returns the error that made the others give up.
func firstCause(errs []error) error {
	return slices.MinFunc(append(errs, nil), func(a, b error) int { return cmp.Compare(rank(a), rank(b)) })
}

func rank(err error) int {
	switch {
	case err == nil:
		return 2
	case isCanceled(err):
		return 1
	default:
		return 0
	}
}

// record writes down that the image is there, by its names.
func (s *Store) record(ctx context.Context, i store.Image, r ref.Ref, root content.Digest) error {
	byDigest := r.Name() + "@" + root.String()
	var tag string
	if t, ok := r.Tagged(); ok && r.Digest() == "" {
		tag = t.String()
	}
	c, err := configOf(i)
	if err != nil {
		return err
	}
	i.UID, i.Username = s.cfg.User(c.Config.User)
	i.Size = int64(len(i.ConfigBytes))
	for _, id := range i.Layers {
		l, err := s.layers.Layer(content.Digest(id))
		if err != nil {
			return err
		}
		i.Size += l.Bytes
	}
	return s.db.Update(ctx, func(tx *store.Tx) error {
		next := i
		if old, ok := tx.Image(i.ID); ok {
			next.Names, next.RepoDigests, next.Pinned = slices.Clone(old.Names), slices.Clone(old.RepoDigests), old.Pinned
		}
		if tag != "" {
			if other, ok := tx.ImageNamed(tag); ok && other.ID != i.ID {
				other.Names = slices.DeleteFunc(slices.Clone(other.Names), func(n string) bool { return n == tag })
				if err := tx.PutImage(other); err != nil {
					return err
				}
			}
			next.Names = with(next.Names, tag)
		}
		next.RepoDigests = with(next.RepoDigests, byDigest)
		next.Pinned = next.Pinned || s.pinned(next.Names)
		return tx.PutImage(next)
	})
}

func (s *Store) pinned(names []string) bool {
	for _, n := range names {
		for _, p := range s.cfg.Pinned {
			if ok, err := path.Match(p, n); err == nil && ok {
				return true
			}
		}
	}
	return false
}

func with(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}
