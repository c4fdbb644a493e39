// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/seal"
	"github.com/berth-cri/berth/store/content"
)

// A Draft is a layer that is being unpacked. It ends with [Store.Commit] or with
// Discard. Its methods may be called by one goroutine at a time.
type Draft struct {
	store *Store
	path  string
	root  *os.File
	list  *os.File
	seal  *seal.Writer
	done  bool
}

// Draft begins a layer.
func (s *Store) Draft() (*Draft, error) {
	d := &Draft{store: s}
	if err := d.make(); err != nil {
		return nil, errors.Join(fmt.Errorf("overlay: %w", err), d.Discard())
	}
	return d, nil
}

func (d *Draft) make() (err error) {
	if d.path, err = os.MkdirTemp(d.store.path(draftsFolder), ""); err != nil {
		return err
	}
	for _, name := range []string{fsFolder, rootFolder} {
		if err := makeFolder(filepath.Join(d.path, name)); err != nil {
			return err
		}
	}
	if d.root, err = os.OpenFile(filepath.Join(d.path, fsFolder), os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	d.list, err = os.OpenFile(filepath.Join(d.path, sealFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	d.seal = seal.NewWriter(d.list)
	return err
}

// Root is the folder to unpack into. It is closed with the draft.
func (d *Draft) Root() *os.File { return d.root }

// Seal takes a record of each thing that is unpacked.
func (d *Draft) Seal() *seal.Writer { return d.seal }

// Discard throws the draft away. After Commit it is without effect, so that it can be deferred.
func (d *Draft) Discard() error {
	if d.done {
		return nil
	}
	d.close()
	if d.path == "" {
		return nil
	}
	return d.store.trash.take(d.path)
}

func (d *Draft) close() {
	d.done = true
	d.root.Close()
	d.list.Close()
}

// A Ready is a draft, and what it is to become.
type Ready struct {
	Draft *Draft
	Layer Layer
}

// Commit makes layers of drafts: all are synced at once, and then renamed in
// order. When it returns they outlive a power cut. A layer that is there already
// is left as it is, and its draft thrown away.
//
// On error, drafts that have not become layers are the caller's to discard. The
// context is looked at before the sync only: what has been renamed has to be
// synced as well.
//
// Preconditions: the drafts are complete and verified; Layer.ID is what doc.go says.
func (s *Store) Commit(ctx context.Context, drafts ...Ready) error {
	for _, r := range drafts {
		if r.Draft.done {
			return ErrDone
		}
		if err := s.do("seal", func() error { return r.Draft.finish(r.Layer) }); err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
	}
	if err := ctx.Err(); err != nil || len(drafts) == 0 {
		return err
	}
	// The descriptor of the draft was open while all was written, so errors of writing back are seen (kernel 5.8).
	if err := s.do("sync", func() error { return unix.Syncfs(int(drafts[0].Draft.root.Fd())) }); err != nil {
		return fmt.Errorf("overlay: syncfs: %w", err)
	}
	for _, r := range drafts {
		if err := s.do("rename", func() error { return s.rename(r) }); err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
	}
	if err := s.do("sync folder", func() error { return syncFolder(s.path(layersFolder)) }); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	return nil
}

// errSkip has a test show what a step is for.
var errSkip = errors.New("skip")

func (s *Store) do(name string, f func() error) error {
	if s.step != nil {
		if err := s.step(name); errors.Is(err, errSkip) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return f()
}

// finish writes what belongs to a layer besides its content.
func (d *Draft) finish(l Layer) error {
	if err := errors.Join(l.ID.Validate(), l.DiffID.Validate()); err != nil {
		return err
	}
	if err := d.seal.Finish(); err != nil {
		return err
	}
	if err := copyAttributes(filepath.Join(d.path, rootFolder), filepath.Join(d.path, fsFolder)); err != nil {
		return err
	}
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.path, layerFile), b, 0o600)
}

// rename makes a draft a layer.
func (s *Store) rename(r Ready) error {
	s.changes.Lock()
	defer s.changes.Unlock()
	to := s.layerPath(r.Layer.ID)
	err := unix.Renameat2(unix.AT_FDCWD, r.Draft.path, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST):
		return r.Draft.Discard()
	case err != nil:
		return &os.LinkError{Op: "rename", Old: r.Draft.path, New: to, Err: err}
	}
	r.Draft.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers[r.Layer.ID] = entry{layer: r.Layer}
	return nil
}

// Verify reads a layer and compares it with its seal. It returns ErrDamaged with
// the first path that is not as it was unpacked, ErrNotFound if there is no such
// layer, and any other error if the check could not be made.
func (s *Store) Verify(ctx context.Context, id content.Digest) error {
	if _, err := s.Layer(id); err != nil {
		return err
	}
	missing := func(err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return err
	}
	root, err := s.Open(id)
	if err != nil {
		return missing(err)
	}
	defer root.Close()
	if _, err := os.Stat(s.layerPath(id, rootFolder)); err != nil {
		return missing(err)
	}
	list, err := os.Open(s.layerPath(id, sealFile))
	if err != nil {
		return missing(err)
	}
	defer list.Close()
	if err := seal.Check(ctx, root, list); err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	return nil
}
