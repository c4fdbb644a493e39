// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/seal"
	"github.com/berth-cri/berth/store/content"
)

// A tree is a folder that an archive is unpacked into.
type tree struct {
	limits  Limits
	seal    *seal.Writer
	folders folders
	buf     []byte

	// blockSize is in what sizes the file system gives space away.
	blockSize int64
	uid, gid  uint32 // of the process: owner of what no archive and no lower layer tells about

	entries, inodes, bytes int64
	size                   int64 // of files as they appear
	sparse                 int64 // of that, in sparse files

	rootGiven, rootOpaque bool

	// implicit has hashes of the folders that were made without an entry, and got none later.
	implicit map[uint64]struct{}
	seed     maphash.Seed
	foreign  foreign
}

// attributes of what is made.
type attributes struct {
	mode     uint32 // permissions
	uid, gid uint32
	time     time.Time // of modification
	access   time.Time
	xattrs   []xattr
	implicit bool
}

func newTree(l Limits, to Target) (*tree, error) {
	t := openTree(l, to)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(t.folders.root.fd, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: to.Root.Name(), Err: err}
	}
	t.blockSize = max(fs.Bsize, 1)
	t.inodes, t.bytes = 1, t.blockSize
	return t, t.settleFolder(t.folders.root, t.implicitAttributes())
}

// openTree returns the tree of a folder that something may be in.
func openTree(l Limits, to Target) *tree {
	return &tree{
		limits: l, seal: to.Seal, folders: newFolders(to.Root), buf: make([]byte, chunkSize),
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()),
		implicit: make(map[uint64]struct{}), seed: maphash.MakeSeed(), foreign: newForeign(),
	}
}

func (t *tree) close() { t.folders.forget(nil) }

func (t *tree) implicitAttributes() attributes {
	return attributes{mode: 0o755, uid: t.uid, gid: t.gid, time: time.Unix(0, 0), implicit: true}
}

func (t *tree) result(diffID content.Digest) *Result {
	return &Result{
		DiffID: diffID, Entries: t.entries, Inodes: t.inodes, Bytes: t.bytes, Size: t.size,
		ImplicitParents: len(t.implicit), ForeignLinks: len(t.foreign.names),
		RootGiven: t.rootGiven, RootOpaque: t.rootOpaque,
		tree: t,
	}
}

// extract makes what an archive says.
func (t *tree) extract(r io.Reader) error {
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, tar.ErrInsecurePath): // only if the process asks for it; here each name is looked at
		case err != nil:
			return archiveError(err)
		}
		if t.entries++; t.entries > t.limits.Entries {
			return fmt.Errorf("%w: more than %d entries", ErrTooLarge, t.limits.Entries)
		}
		if err := t.entry(h, archive); err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
}

// archiveError tells an archive that cannot be read. If the blob is to blame, stream knows, and says that instead.
func archiveError(err error) error { return fmt.Errorf("%w: %w", ErrArchive, err) }

func (t *tree) entry(h *tar.Header, data io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // its records belong to whoever made the archive
	}
	path, err := clean(h.Name)
	if err != nil {
		return err
	}
	meaning, parent, base, err := mean(path)
	if err != nil || meaning == nothing {
		return err
	}
	attrs, err := t.attributes(h)
	if err != nil {
		return err
	}
	if path == "" {
		return t.rootEntry(h, attrs)
	}
	if meaning == aNode && h.Typeflag == tar.TypeLink {
		return t.link(parent, base, h.Linkname)
	}
	d, err := t.folder(parent, true)
	if err != nil {
		return err
	}
	switch meaning {
	case aWhiteout:
		return t.whiteout(d, base)
	case anOpaque:
		return t.setOpaque(d)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, '\x00':
		return t.file(d, base, h, attrs, data)
	case tar.TypeDir:
		return t.folderEntry(d, base, path, attrs)
	case tar.TypeSymlink:
		return t.symlink(d, base, h.Linkname, attrs)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return t.device(d, base, h, attrs)
	}
	return fmt.Errorf("%w: %q", ErrType, h.Typeflag)
}

// attributes takes over what an entry says of itself, or refuses it.
func (t *tree) attributes(h *tar.Header) (attributes, error) {
	const noID = 1<<32 - 1 // means "leave it" to the kernel
	if h.Uid < 0 || h.Uid >= noID || h.Gid < 0 || h.Gid >= noID {
		return attributes{}, fmt.Errorf("%w: owner %d:%d", ErrAttribute, h.Uid, h.Gid)
	}
	if h.Mode < 0 {
		return attributes{}, fmt.Errorf("%w: mode %d", ErrAttribute, h.Mode)
	}
	xattrs, err := xattrsOf(h)
	if err != nil {
		return attributes{}, err
	}
	a := attributes{
		mode: uint32(h.Mode & 0o7777), uid: uint32(h.Uid), gid: uint32(h.Gid),
		time: h.ModTime, access: h.AccessTime, xattrs: xattrs,
	}
	if a.time.IsZero() {
		a.time = time.Unix(0, 0)
	}
	if a.access.IsZero() {
		a.access = a.time
	}
	return a, nil
}

func (t *tree) rootEntry(h *tar.Header, attrs attributes) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: %q for the root", ErrType, h.Typeflag)
	}
	t.rootGiven = true
	return t.enterAgain(t.folders.root, attrs)
}

// noteImplicit notes a folder that was made without an entry.
func (t *tree) noteImplicit(path string) error {
	if len(t.implicit)+len(t.foreign.names) >= t.limits.Noted {
		return fmt.Errorf("%w: more than %d parents without an entry", ErrTooLarge, t.limits.Noted)
	}
	t.implicit[t.hash(path)] = struct{}{}
	return nil
}

func (t *tree) hash(path string) uint64 { return maphash.String(t.seed, path) }

// made counts and records what was made.
func (t *tree) made(r seal.Record) error {
	t.inodes++
	t.bytes += t.blocks(r.Mode, r.Size)
	return t.seal.Append(r)
}

// blocks is what a file takes on the disk: whole blocks; but a symbolic link of up to 59 bytes lies in
// its inode, as do devices.
func (t *tree) blocks(mode uint32, size int64) int64 {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return (size + t.blockSize - 1) / t.blockSize * t.blockSize
	case unix.S_IFDIR:
		return t.blockSize
	case unix.S_IFLNK:
		if size > 59 {
			return t.blockSize
		}
	}
	return 0
}

// finishFolders gives folders their times, after all that is in them has been made. The records say
// which: an archive may have more folders than memory should hold.
func (t *tree) finishFolders() error {
	for r, err := range t.seal.Records() {
		if err != nil {
			return err
		}
		if r.Kind != seal.Node || r.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		path := r.Path
		if path == "" {
			path = "."
		}
		fd, err := openFolder(t.folders.root.fd, path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // replaced since
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: r.Path, Err: err}
		}
		err = unix.UtimesNanoAt(fd, ".", timespecs(r.ModTime, r.ModTime), 0)
		unix.Close(fd)
		if err != nil {
			return &os.PathError{Op: "utimensat", Path: r.Path, Err: err}
		}
	}
	return nil
}

func timespecs(access, modification time.Time) []unix.Timespec {
	return []unix.Timespec{
		{Sec: access.Unix(), Nsec: int64(access.Nanosecond())},
		{Sec: modification.Unix(), Nsec: int64(modification.Nanosecond())},
	}
}
