// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/store/content"
)

// Names below the root, and in a layer's and a container's folder.
const (
	layersFolder     = "layers"
	draftsFolder     = "drafts"
	containersFolder = "containers"
	trashFolder      = "trash"
	emptyFolder      = "empty"

	fsFolder    = "fs"
	rootFolder  = "root"
	sealFile    = "seal"
	layerFile   = "layer.json"
	upperFolder = "upper"
	workFolder  = "work"
)

// Options of a Store.
type Options struct {
	// Volatile asks for containers' mounts that never sync what is written to them (kernel 5.10): a
	// container does not outlive a reboot, and without it each unmount syncs the whole file system.
	Volatile bool
}

// A Store is a folder of layers and of what containers write. Its methods may be
// called by many goroutines.
type Store struct {
	root     string
	volatile bool
	trash    *trash

	// changes is held while layers/ changes, so that the map says what the disk does. Readers never take
	// it: a rename may wait for the disk.
	changes sync.Mutex

	// mu is taken after changes, and is held over nothing that waits.
	mu sync.Mutex
	// layers is what stands in layers/.
	// +checklocks:mu
	layers map[content.Digest]entry
	// used is what Measure found last.
	// +checklocks:mu
	used map[string]Usage

	// step is called before each step of a commit, under the names that doc.go gives; an error is
	// taken for that of the step. It is nil but in tests.
	step func(name string) error
}

// An entry is a layer, or why it cannot be used.
type entry struct {
	layer Layer
	err   error
}

// A Layer is one that was committed.
type Layer struct {
	ID     content.Digest `json:"id"`               // its diffID, or its chainID if it depends on those below it
	DiffID content.Digest `json:"diffId"`           // of its archive
	Parent content.Digest `json:"parent,omitempty"` // the ID of the layer below, if it depends on it
	Bytes  int64          `json:"bytes"`            // on the disk
	Size   int64          `json:"size"`             // of all files as they appear
	Inodes int64          `json:"inodes"`

	RootGiven  bool `json:"rootGiven,omitempty"`  // its archive has an entry for the root
	RootOpaque bool `json:"rootOpaque,omitempty"` // it hides all that is below it
}

// ChainID identifies a layer together with all that is below it: the diffID of the
// lowest one, and the digest of "PARENT DIFFID" of any other (image-spec,
// config.md, "Layer ChainID").
func ChainID(parent, diffID content.Digest) content.Digest {
	if parent == "" {
		return diffID
	}
	return content.FromBytes([]byte(parent.String() + " " + diffID.String()))
}

// Open opens a folder, which is made (with mode 0700) if it is not there. Drafts
// become trash, and what is in the trash is deleted in the background until Close.
//
// A layer that has lost its layer.json, or has a bad one, stays where it is and is
// ErrDamaged.
func Open(root string, o Options) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	s := &Store{root: root, volatile: o.Volatile, layers: make(map[content.Digest]entry), used: make(map[string]Usage)}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	s.trash = newTrash(s.path(trashFolder))
	if err := s.sweep(); err != nil {
		s.trash.close()
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return s, nil
}

// Close ends the deleting of trash, which goes on after the next Open. No other
// method may be called during or after it.
func (s *Store) Close() error {
	s.trash.close()
	return nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.root}, parts...)...)
}

// prepare makes the folders, reads what layers there are, and syncs their folder: a process that was
// killed between rename and fsync has left a layer that everybody sees and that a power cut would still
// take away.
func (s *Store) prepare() error {
	for _, name := range []string{"", layersFolder, draftsFolder, containersFolder, trashFolder} {
		if err := os.MkdirAll(s.path(name), 0o700); err != nil {
			return err
		}
	}
	if err := makeFolder(s.path(emptyFolder)); err != nil {
		return err
	}
	names, err := os.ReadDir(s.path(layersFolder))
	if err != nil {
		return err
	}
	for _, name := range names {
		if id, ok := layerID(name.Name()); ok { // another is not ours, so not ours to judge
			layer, err := s.read(id)
			s.mu.Lock()
			s.layers[id] = entry{layer, err}
			s.mu.Unlock()
		}
	}
	if err := syncFolder(s.path(layersFolder)); err != nil {
		return err
	}
	return syncFolder(s.root)
}

// makeFolder makes a folder that everybody may look into, whatever the umask. One that is there is
// left as it is.
func makeFolder(path string) error {
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// layerName is the name of a layer's folder: a digest without the colon, which is a separator in
// overlayfs's options.
func layerName(id content.Digest) string { return id.Algorithm() + "-" + id.Hex() }

func layerID(name string) (content.Digest, bool) {
	algorithm, hex, _ := strings.Cut(name, "-")
	id, err := content.Parse(algorithm + ":" + hex)
	return id, err == nil
}

func (s *Store) layerPath(id content.Digest, parts ...string) string {
	return s.path(append([]string{layersFolder, layerName(id)}, parts...)...)
}

// read reads what layer.json says.
func (s *Store) read(id content.Digest) (Layer, error) {
	b, err := os.ReadFile(s.layerPath(id, layerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Layer{}, fmt.Errorf("%w: %s has no %s", ErrDamaged, id, layerFile)
	}
	if err != nil {
		return Layer{}, err
	}
	var l Layer
	if err := json.Unmarshal(b, &l); err != nil || l.ID != id {
		return Layer{}, fmt.Errorf("%w: %s of %s is not its own", ErrDamaged, layerFile, id)
	}
	return l, nil
}

// sweep throws away drafts, and what the process that left them had not deleted.
func (s *Store) sweep() error {
	drafts, err := os.ReadDir(s.path(draftsFolder))
	if err != nil {
		return err
	}
	for _, draft := range drafts {
		if err := s.trash.take(s.path(draftsFolder, draft.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Layer tells of a layer, or returns ErrNotFound or ErrDamaged.
func (s *Store) Layer(id content.Digest) (Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.layers[id]
	if !ok {
		return Layer{}, fmt.Errorf("%w: layer %s", ErrNotFound, id)
	}
	return e.layer, e.err
}

// Layers returns the IDs of all layers, damaged ones as well, in no order.
func (s *Store) Layers() []content.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]content.Digest, 0, len(s.layers))
	for id := range s.layers {
		ids = append(ids, id)
	}
	return ids
}

// Total adds up what all layers take on the disk, from memory.
func (s *Store) Total() (bytes, inodes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.layers {
		bytes += e.layer.Bytes
		inodes += e.layer.Inodes
	}
	return bytes, inodes
}

// Open opens the content of a layer, for image/unpack to look into from a layer
// above it. The caller closes it.
func (s *Store) Open(id content.Digest) (*os.File, error) {
	if _, err := s.Layer(id); err != nil {
		return nil, err
	}
	return os.OpenFile(s.layerPath(id, fsFolder), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// Remove takes a layer away, damaged or not. One that is not there is no error. It
// does not wait for the disk: after a power cut the layer may be there again, and
// nobody names it.
//
// Preconditions: no container uses it, and no layer is committed that names it as its parent.
func (s *Store) Remove(ctx context.Context, id content.Digest) error {
	if err := errors.Join(ctx.Err(), id.Validate()); err != nil {
		return err
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	if err := s.trash.take(s.layerPath(id)); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.layers, id)
	return nil
}
