// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/seal"
)

// Settle completes a layer that is [Result.Dependent] with what it takes from
// those below it, the topmost first: none is needed for the lowest layer of an
// image. It brings the result up to date.
//
// A hard link whose file no layer has is ErrLink. On error the target is of no use
// but to be removed.
//
// Preconditions: Unpack has returned the result for the same target, nothing has
// changed in it since, and Settle is called once.
func (u *Unpacker) Settle(ctx context.Context, to Target, r *Result, lower []*os.File) error {
	root, err := mergedRoot(lower)
	if err != nil {
		return err
	}
	s := settler{r.tree, root}
	s.folders = newFolders(to.Root)
	defer s.close()
	if err := s.parents(ctx); err != nil {
		return err
	}
	if err := s.links(ctx); err != nil {
		return err
	}
	if err := s.finishFolders(); err != nil {
		return err
	}
	after := s.result(r.DiffID)
	r.Inodes, r.Bytes, r.Size = after.Inodes, after.Bytes, after.Size
	return nil
}

// A settler goes on with the tree of a layer, above the lower ones.
type settler struct {
	*tree
	lower merged
}

// parents gives folders that the archive did not mention the attributes of the lower ones.
func (s *settler) parents(ctx context.Context) error {
	for r, err := range s.seal.Records() {
		if err != nil {
			return err
		}
		if _, ok := s.implicit[s.hash(r.Path)]; !ok || !r.Implicit {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.inherit(r.Path); err != nil {
			return fmt.Errorf("parent %.200q: %w", r.Path, err)
		}
	}
	return nil
}

// inherit gives a folder the attributes of the topmost lower one of its path, if there is one that this
// layer does not hide.
func (s *settler) inherit(path string) error {
	if hidden, err := s.belowOpaque(path); hidden || err != nil {
		return err
	}
	from, err := s.lower.folderAt(path)
	if errors.Is(err, errNotThere) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.close()
	if len(from) == 0 { // the root of nothing
		return nil
	}
	attrs, err := attributesOf(fmt.Sprintf("/proc/self/fd/%d", from[0]), true)
	if err != nil {
		return err
	}
	d, err := s.folder(path, false)
	if err != nil {
		return err
	}
	return s.enterAgain(d, attrs)
}

// belowOpaque says whether a folder above the path hides what lower layers have in it.
func (s *settler) belowOpaque(path string) (bool, error) {
	for path != "" {
		path, _ = split(path)
		d, err := s.folder(path, false)
		if err != nil {
			return false, err
		}
		if opaque, err := isOpaque(d.fd); opaque || err != nil {
			return opaque, pathError("getxattr", d, "", err)
		}
	}
	return false, nil
}

// attributesOf reads the attributes of a file of a lower layer. What overlayfs remembers of it is not
// taken over.
func attributesOf(path string, follow bool) (attributes, error) {
	var st unix.Stat_t
	stat, list, get := unix.Lstat, unix.Llistxattr, unix.Lgetxattr
	if follow {
		stat, list, get = unix.Stat, unix.Listxattr, unix.Getxattr
	}
	if err := stat(path, &st); err != nil {
		return attributes{}, err
	}
	a := attributes{
		mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid,
		time: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), access: time.Unix(st.Atim.Sec, st.Atim.Nsec),
	}
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := list(path, names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return attributes{}, err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
		if take, err := taken(name); !take || err != nil {
			continue
		}
		n, err := get(path, name, value)
		if err != nil {
			return attributes{}, err
		}
		a.xattrs = append(a.xattrs, xattr{name, slices.Clone(value[:n])})
	}
	return a, nil
}

// links puts copies of lower files in the place of placeholders, and under the names that they have below.
func (s *settler) links(ctx context.Context) error {
	copies := make(map[string]string) // from targets, links resolved, to the first names of their copies
	for _, path := range s.foreign.order {
		p := s.foreign.names[path]
		if p == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.linkTo(ctx, path, p, copies); err != nil {
			return fmt.Errorf("hard link %.200q to %.200q: %w", path, p.target, err)
		}
		delete(s.foreign.names, path) // a path may have come twice
	}
	return nil
}

func (s *settler) linkTo(ctx context.Context, path string, p *placeholder, copies map[string]string) error {
	parent, base := split(path)
	d, err := s.folder(parent, false)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(d.fd, base, 0); err != nil {
		return pathError("remove", d, base, err)
	}
	target, err := s.lower.resolve(p.target)
	if err == nil {
		if first, ok := copies[target]; ok {
			return s.linkAgain(d, base, first)
		}
		err = s.copyUp(ctx, target, d, base)
	}
	if errors.Is(err, errNotThere) {
		return fmt.Errorf("%w: %w", ErrLink, err)
	}
	if err != nil {
		return err
	}
	copies[target] = path
	return s.mask(target, path)
}

// linkAgain gives a copy one more name.
func (s *settler) linkAgain(d *folder, base, first string) error {
	parent, firstBase := split(first)
	from, err := s.folder(parent, false)
	if err != nil {
		return err
	}
	if err := unix.Linkat(from.fd, firstBase, d.fd, base, 0); err != nil {
		return pathError("link", d, base, err)
	}
	return s.seal.Append(seal.Record{Kind: seal.Link, Path: join(d.path, base), Target: first})
}

// mask puts the copy in the place of the lower file as well, else the two names would be two files. Where
// this layer has something of that name, or has removed it after the link, that is left alone.
func (s *settler) mask(target, first string) error {
	gone, err := s.hides(target)
	if gone || err != nil {
		return err
	}
	parent, base := split(target)
	known := len(s.implicit)
	d, err := s.folder(parent, true)
	if err != nil {
		return err
	}
	if len(s.implicit) != known { // folders were made on the way
		for path := parent; path != ""; path, _ = split(path) {
			if _, ok := s.implicit[s.hash(path)]; ok {
				if err := s.inherit(path); err != nil {
					return err
				}
			}
		}
		if d, err = s.folder(parent, false); err != nil {
			return err
		}
	}
	return s.linkAgain(d, base, first)
}

// copyUp makes a copy of a lower file, with all that it has.
func (s *settler) copyUp(ctx context.Context, target string, d *folder, base string) error {
	parent, name := split(target)
	at, err := s.lower.folderAt(parent)
	if err != nil {
		return err
	}
	defer at.close()
	sub, in, st, err := at.child(name)
	defer sub.close()
	switch {
	case err != nil:
		return err
	case sub != nil:
		return fmt.Errorf("%w: it is a folder", ErrLink)
	case in < 0:
		return errNotThere
	}
	attrs, err := attributesOf(fmt.Sprintf("/proc/self/fd/%d/%s", in, name), false)
	if err != nil {
		return err
	}
	switch kind := st.Mode & unix.S_IFMT; kind {
	case unix.S_IFREG:
		return s.copyFile(ctx, in, name, &st, d, base, attrs)
	case unix.S_IFLNK:
		text := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(in, name, text)
		if err != nil {
			return err
		}
		return s.symlink(d, base, string(text[:n]), attrs)
	default:
		if err := unix.Mknodat(d.fd, base, kind|0o600, int(st.Rdev)); err != nil {
			return pathError("mknod", d, base, err)
		}
		record := s.record(d, base, kind, attrs)
		record.Rdev = st.Rdev
		return s.finishOther(d, base, record, attrs)
	}
}

func (s *settler) copyFile(ctx context.Context, in int, name string, st *unix.Stat_t, d *folder, base string, attrs attributes) error {
	from, err := unix.Openat2(in, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: beneath})
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(from), name)
	defer file.Close()
	fd, err := createFile(d.fd, base)
	if err != nil {
		return pathError("create", d, base, err)
	}
	defer unix.Close(fd)
	w := fileWriter{fd: fd, holes: st.Blocks*512 < st.Size, blockSize: s.blockSize}
	err = w.copy(readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return file.Read(p)
	}), s.buf)
	if err != nil {
		return pathError("copy", d, base, err)
	}
	return s.finishFile(d, base, fd, &w, attrs)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

var _ io.Reader = readerFunc(nil)
