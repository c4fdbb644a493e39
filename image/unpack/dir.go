// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/seal"
)

const opaqueXattr = "trusted.overlay.opaque"

// folderEntry makes a folder, or gives one that is there the attributes of its new entry. What is in it stays.
func (t *tree) folderEntry(parent *folder, base, raw string, attrs attributes) error {
	path := join(parent.path, base)
	var st unix.Stat_t
	err := unix.Fstatat(parent.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		delete(t.implicit, t.hash(path))
		fd, err := openFolder(parent.fd, base)
		if err != nil {
			return pathError("open", parent, base, err)
		}
		d := &folder{path: path, fd: fd}
		t.folders.keep(raw, d)
		return t.enterAgain(d, attrs)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return pathError("stat", parent, base, err)
	}
	replaces := err == nil
	if replaces {
		if err := t.remove(parent, base, &st); err != nil {
			return err
		}
	}
	d, err := t.makeFolder(parent, base)
	if err != nil {
		return err
	}
	t.folders.keep(raw, d)
	if replaces {
		// A file or a whiteout stood here, and took the lower layer's folder away.
		if err := t.setOpaque(d); err != nil {
			return err
		}
	}
	return t.settleFolder(d, attrs)
}

// makeFolder makes and opens a folder that nobody else can enter, yet.
func (t *tree) makeFolder(parent *folder, base string) (*folder, error) {
	if err := unix.Mkdirat(parent.fd, base, 0o700); err != nil {
		return nil, pathError("mkdir", parent, base, err)
	}
	fd, err := openFolder(parent.fd, base)
	if err != nil {
		return nil, pathError("open", parent, base, err)
	}
	t.inodes++
	t.bytes += t.blockSize
	return &folder{path: join(parent.path, base), fd: fd}, nil
}

// settleFolder gives a folder its attributes, and records it. Its time is a matter of finishFolders.
func (t *tree) settleFolder(d *folder, attrs attributes) error {
	if err := unix.Fchown(d.fd, int(attrs.uid), int(attrs.gid)); err != nil {
		return pathError("chown", d, "", err)
	}
	if err := unix.Fchmod(d.fd, attrs.mode); err != nil {
		return pathError("chmod", d, "", err)
	}
	if err := setXattrs(attrs.xattrs, unix.S_IFDIR, func(name string, value []byte) error {
		return unix.Fsetxattr(d.fd, name, value, 0)
	}); err != nil {
		return pathError("setxattr", d, "", err)
	}
	r := t.record(d, "", unix.S_IFDIR, attrs)
	r.Path = d.path
	return t.seal.Append(r)
}

// enterAgain gives a folder other attributes than it has, and takes back what was recorded of it.
func (t *tree) enterAgain(d *folder, attrs attributes) error {
	if err := t.seal.Append(seal.Record{Kind: seal.Drop, Path: d.path}); err != nil {
		return err
	}
	if opaque, err := isOpaque(d.fd); err != nil {
		return pathError("getxattr", d, "", err)
	} else if opaque {
		if err := t.seal.Append(seal.Record{Kind: seal.Opaque, Path: d.path}); err != nil {
			return err
		}
	}
	return t.settleFolder(d, attrs)
}

// setOpaque makes a folder hide what lower layers have in it.
func (t *tree) setOpaque(d *folder) error {
	if err := unix.Fsetxattr(d.fd, opaqueXattr, []byte{'y'}, 0); err != nil {
		return pathError("setxattr "+opaqueXattr, d, "", err)
	}
	t.rootOpaque = t.rootOpaque || d.path == ""
	return t.seal.Append(seal.Record{Kind: seal.Opaque, Path: d.path})
}

// whiteout hides what lower layers have under a name.
func (t *tree) whiteout(d *folder, base string) error {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := unix.Mknodat(d.fd, base, unix.S_IFCHR, 0); err != nil {
			return pathError("mknod whiteout", d, base, err)
		}
		if err := unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("stat", d, base, err)
		}
		// Its attributes are of no use to anybody, and what they are is the kernel's business.
		attrs := t.implicitAttributes()
		attrs.mode, attrs.uid, attrs.gid, attrs.access = 0, st.Uid, st.Gid, attrs.time
		return t.finishOther(d, base, t.record(d, base, unix.S_IFCHR, attrs), attrs)
	case err != nil:
		return pathError("stat", d, base, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil // it masks the lower one as it is
	}
	fd, err := openFolder(d.fd, base)
	if err != nil {
		return pathError("open", d, base, err)
	}
	defer unix.Close(fd)
	path := join(d.path, base)
	delete(t.implicit, t.hash(path)) // the folder whose heir it would be is gone
	return t.setOpaque(&folder{path: path, fd: fd})
}

// remove takes away what an earlier entry of the archive has made. All folders but d may be closed then.
func (t *tree) remove(d *folder, base string, st *unix.Stat_t) error {
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFDIR || kind == unix.S_IFLNK {
		t.folders.forget(d)
	}
	return t.take(d, base, st)
}

func (t *tree) take(d *folder, base string, st *unix.Stat_t) error {
	kind := st.Mode & unix.S_IFMT
	path := join(d.path, base)
	flags := 0
	if kind == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
		if err := t.empty(d, base); err != nil {
			return err
		}
		delete(t.implicit, t.hash(path))
	}
	if err := unix.Unlinkat(d.fd, base, flags); err != nil {
		return pathError("remove", d, base, err)
	}
	if t.foreign.drop(path, st.Ino) {
		return nil // nothing has been recorded or counted
	}
	if kind == unix.S_IFDIR || st.Nlink == 1 {
		t.inodes--
		t.bytes -= t.blocks(st.Mode, st.Size)
		if kind == unix.S_IFREG {
			t.size -= st.Size
			t.bytes += max(0, t.blocks(st.Mode, st.Size)-st.Blocks*512) // holes
		}
	}
	return t.seal.Append(seal.Record{Kind: seal.Drop, Path: path})
}

// empty removes what is in a folder.
func (t *tree) empty(parent *folder, base string) error {
	fd, err := openFolder(parent.fd, base)
	if err != nil {
		return pathError("open", parent, base, err)
	}
	d := &folder{path: join(parent.path, base), fd: fd}
	file := os.NewFile(uintptr(fd), d.path)
	defer file.Close()
	for {
		names, err := file.Readdirnames(256)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return pathError("stat", d, name, err)
			}
			if err := t.take(d, name, &st); err != nil {
				return err
			}
		}
		// Removing may make the kernel skip what it has not shown yet.
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}
