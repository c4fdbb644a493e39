// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/seal"
)

// maxForeignBytes bounds what is kept of names and targets of links to lower layers.
const maxForeignBytes = 8 << 20

// foreign is the links whose file only a lower layer can have. Until Settle an empty file stands for
// each: whatever later entries do to it (replace it, link to it, remove its folder) is then done.
type foreign struct {
	names map[string]*placeholder // by path
	files map[uint64]*placeholder // by inode
	order []string                // of paths, as the archive had them; some may be gone
	bytes int
}

// A placeholder is a file that is to become a copy of one of a lower layer.
type placeholder struct {
	target string
	inode  uint64
	names  int
}

func newForeign() foreign {
	return foreign{names: make(map[string]*placeholder), files: make(map[uint64]*placeholder)}
}

func (f *foreign) add(path string, p *placeholder) {
	f.names[path] = p
	f.files[p.inode] = p
	f.order = append(f.order, path)
	f.bytes += len(path) + len(p.target)
	p.names++
}

// drop forgets a path, and says whether a placeholder stood there.
func (f *foreign) drop(path string, inode uint64) bool {
	p := f.files[inode]
	if p == nil || f.names[path] != p {
		return false
	}
	delete(f.names, path)
	if p.names--; p.names == 0 {
		delete(f.files, inode) // the number will be given to another
	}
	return true
}

// link gives a file one more name.
func (t *tree) link(parent, base, linkname string) error {
	target, err := clean(linkname)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", linkname, err)
	}
	targetParent, targetBase := split(target)
	if targetBase == "" || hidden(target) {
		return fmt.Errorf("%w: to %.200q", ErrLink, linkname)
	}
	d, err := t.folder(parent, true)
	if err != nil {
		return err
	}
	from, st, lost, err := t.lookUp(targetParent, targetBase)
	if err != nil {
		return err
	}
	if lost == nil && d.path == from.path && base == targetBase {
		return nil // to itself
	}
	var old unix.Stat_t
	if err := unix.Fstatat(d.fd, base, &old, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		if lost == nil && old.Ino == st.Ino {
			return nil
		}
		if err := t.remove(d, base, &old); err != nil {
			return err
		}
		// With the folder that stood here the target may have gone.
		if from, st, lost, err = t.lookUp(targetParent, targetBase); err != nil {
			return err
		}
	}
	if lost != nil {
		return t.linkBelow(d, base, lost)
	}
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFDIR || isWhiteout(&st) {
		return fmt.Errorf("%w: %.200q is a folder, or has been removed", ErrLink, linkname)
	}
	if err := unix.Linkat(from.fd, targetBase, d.fd, base, 0); err != nil {
		return pathError("link", d, base, err)
	}
	path := join(d.path, base)
	if p := t.foreign.files[st.Ino]; p != nil {
		return t.noteForeign(path, p)
	}
	return t.seal.Append(seal.Record{Kind: seal.Link, Path: path, Target: join(from.path, targetBase)})
}

// lookUp looks for a file in this layer. If it is not there, lost says where it would be.
func (t *tree) lookUp(parent, base string) (d *folder, st unix.Stat_t, lost *missing, err error) {
	d, err = t.folder(parent, false)
	var m *missing
	switch {
	case errors.As(err, &m):
		return nil, st, &missing{path: join(m.path, base), gone: m.gone}, nil
	case err != nil:
		return nil, st, nil, err
	}
	err = unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, st, &missing{path: join(d.path, base)}, nil
	case err != nil:
		return nil, st, nil, pathError("stat", d, base, err)
	}
	return d, st, nil, nil
}

// linkBelow notes a link to a file of a lower layer.
func (t *tree) linkBelow(d *folder, base string, target *missing) error {
	gone, err := t.hides(target.path)
	if err != nil {
		return err
	}
	if target.gone || gone {
		return fmt.Errorf("%w: %.200q has been removed", ErrLink, target.path)
	}
	fd, err := createFile(d.fd, base)
	if err != nil {
		return pathError("create", d, base, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError("stat", d, base, err)
	}
	return t.noteForeign(join(d.path, base), &placeholder{target: target.path, inode: st.Ino})
}

func (t *tree) noteForeign(path string, p *placeholder) error {
	t.foreign.add(path, p)
	if len(t.implicit)+len(t.foreign.order) > t.limits.Noted || t.foreign.bytes > maxForeignBytes {
		return fmt.Errorf("%w: too many hard links to lower layers", ErrTooLarge)
	}
	return nil
}

// hides says whether this layer hides what lower ones have under a path that it does not have itself: a
// folder on the way is opaque, or is none.
func (t *tree) hides(path string) (bool, error) {
	d := &folder{fd: t.folders.root.fd}
	defer func() {
		if d.path != "" {
			unix.Close(d.fd)
		}
	}()
	for {
		if opaque, err := isOpaque(d.fd); opaque || err != nil {
			return opaque, pathError("getxattr", d, "", err)
		}
		name, _ := firstOf(path[len(d.path):])
		fd, err := openFolder(d.fd, name)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return true, nil
		}
		if err != nil {
			return false, pathError("open", d, name, err)
		}
		next := &folder{path: join(d.path, name), fd: fd}
		if d.path != "" {
			unix.Close(d.fd)
		}
		d = next
		if len(d.path) >= len(path) {
			return true, nil // it does have it
		}
	}
}

// firstOf returns the first name of a path, and what follows it.
func firstOf(path string) (name, rest string) {
	for len(path) > 0 && path[0] == '/' {
		path = path[1:]
	}
	for i := range len(path) {
		if path[i] == '/' {
			return path[:i], path[i+1:]
		}
	}
	return path, ""
}
