// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/store/content"
)

// maxLayers is how many lower folders overlayfs takes (OVL_MAX_STACK, kernel 6.7; before, a page of options).
const maxLayers = 500

// A Mount describes a root file system. Nothing is mounted here: the executor does that.
type Mount struct {
	Lower       []string // the topmost first; two or more if there is no Upper
	Upper, Work string   // "": nothing can be written
	Volatile    bool     // nothing is synced at unmount
}

// stack returns the folders of a chain of layers, the topmost first, and the one whose attributes the
// root has.
func (s *Store) stack(chain []content.Digest) (lower []string, root string, err error) {
	root = s.path(emptyFolder)
	given := false
	for i := len(chain) - 1; i >= 0; i-- {
		layer, err := s.Layer(chain[i])
		if err != nil {
			return nil, "", err
		}
		lower = append(lower, s.layerPath(layer.ID, fsFolder))
		if layer.RootGiven && !given {
			given, root = true, s.layerPath(layer.ID, rootFolder)
		}
		if layer.RootOpaque { // overlayfs itself does not look at roots
			break
		}
	}
	// One is for the topmost folder of a view, or for empty/.
	if len(lower) >= maxLayers {
		return nil, "", fmt.Errorf("%w: %d", ErrTooManyLayers, len(lower))
	}
	return lower, root, nil
}

// View describes layers, the lowest first, as they are, for reading only.
func (s *Store) View(chain []content.Digest) (Mount, error) {
	lower, root, err := s.stack(chain)
	if err != nil {
		return Mount{}, err
	}
	if len(lower) == 0 {
		return Mount{}, ErrNoLayers
	}
	// An empty folder at the top has the root's attributes, and makes two of one.
	return Mount{Lower: append([]string{root}, lower...)}, nil
}

// Container makes what a container writes to, above layers, the lowest first, and
// describes its root file system. For a container that is there it only does the
// latter: a create that was broken off can be done again.
//
// Names are of 1 to 128 letters, digits, "-", "_" and ".", and do not begin with a dot.
func (s *Store) Container(ctx context.Context, name string, chain []content.Digest) (Mount, error) {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return Mount{}, err
	}
	lower, root, err := s.stack(chain)
	if err != nil {
		return Mount{}, err
	}
	if len(lower) == 0 {
		lower = []string{s.path(emptyFolder)}
	}
	m := Mount{
		Lower: lower, Upper: s.path(containersFolder, name, upperFolder), Work: s.path(containersFolder, name, workFolder),
		Volatile: s.volatile,
	}
	// The upper folder comes last: where it is, the container has begun to own it.
	if _, err := os.Lstat(m.Upper); err == nil {
		return m, nil
	}
	draft := s.path(containersFolder, name, ".upper")
	for _, path := range []string{s.path(containersFolder, name), m.Work, draft} {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return Mount{}, fmt.Errorf("overlay: %w", err)
		}
	}
	if err := copyAttributes(draft, root); err != nil {
		return Mount{}, fmt.Errorf("overlay: %w", err)
	}
	if err := os.Rename(draft, m.Upper); err != nil {
		return Mount{}, fmt.Errorf("overlay: %w", err)
	}
	return m, nil
}

// RemoveContainer takes away what a container wrote. One that is not there is no error.
//
// Preconditions: it is not mounted.
func (s *Store) RemoveContainer(ctx context.Context, name string) error {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return err
	}
	if err := s.trash.take(s.path(containersFolder, name)); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, name)
	return nil
}

// Containers returns the names of all containers that have a folder, so that those
// that the store does not name can be removed.
func (s *Store) Containers() ([]string, error) {
	entries, err := os.ReadDir(s.path(containersFolder))
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	var names []string
	for _, e := range entries {
		if checkName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func checkName(name string) error {
	ok := len(name) > 0 && len(name) <= 128 && name[0] != '.'
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return fmt.Errorf("%w: %.130q", ErrName, name)
	}
	return nil
}

// copyAttributes gives a folder the owner, mode, time and extended attributes of another, but for those
// of overlayfs and of security modules, which label new folders themselves.
func copyAttributes(to, from string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(from, names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return &os.PathError{Op: "listxattr", Path: from, Err: err}
	}
	for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") || strings.HasPrefix(name, "security.") {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return &os.PathError{Op: "copy xattr " + name, Path: from, Err: err}
		}
	}
	return os.Chtimes(to, time.Time{}, time.Unix(st.Mtim.Sec, st.Mtim.Nsec))
}
