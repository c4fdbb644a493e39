// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// opaqueXattr is what marks a folder that hides what lies below it (kernel,
// Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
const opaqueXattr = "trusted.overlay.opaque"

// Check compares the folder with its list, content included, and returns an error
// that wraps ErrDamaged and names the first path that is not as it must be. Any
// other error says that the check could not be made: of the context, or of a
// machine that is out of descriptors or memory.
//
// It reads all files once, past the page cache, and needs CAP_SYS_ADMIN for
// opaque folders. What is there beyond the list is not looked for: a disk
// forgets, it does not invent.
func Check(ctx context.Context, root, list *os.File) error {
	c := &checker{root: int(root.Fd()), seed: maphash.MakeSeed(), dropped: make(map[uint64]uint64), buf: make([]byte, 256<<10)}
	// The first pass finds what was taken back, and whether the list is whole, before anything is opened.
	err := each(ctx, list, func(n uint64, r Record) error {
		if r.Kind == Drop {
			c.dropped[maphash.String(c.seed, r.Path)] = n
		}
		return nil
	})
	if err != nil {
		return err
	}
	return each(ctx, list, func(n uint64, r Record) error {
		if last, ok := c.dropped[maphash.String(c.seed, r.Path)]; ok && n < last {
			return nil
		}
		if err := c.check(ctx, n, r); err != nil {
			return c.explain(r.Path, err)
		}
		return nil
	})
}

// each calls f for each record, with its number.
func each(ctx context.Context, list *os.File, f func(n uint64, r Record) error) error {
	info, err := list.Stat()
	if err != nil {
		return err
	}
	rd, err := newReader(io.NewSectionReader(list, 0, info.Size()))
	if err != nil {
		return err
	}
	for {
		record, err := rd.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = f(rd.count, record)
		}
		if err != nil {
			return err
		}
	}
}

type checker struct {
	root    int
	seed    maphash.Seed
	dropped map[uint64]uint64 // the last drop of a path, by its hash
	buf     []byte
}

// differs is an error that tells what is wrong with a path.
type differs string

func (d differs) Error() string { return string(d) }

func (c *checker) explain(path string, err error) error {
	for _, ours := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOSYS, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, ours) {
			return fmt.Errorf("%q: %w", path, err)
		}
	}
	return fmt.Errorf("%w: %q: %w", ErrDamaged, path, err)
}

func (c *checker) check(ctx context.Context, n uint64, r Record) error {
	switch r.Kind {
	case Node:
		return c.node(ctx, r)
	case Link:
		return c.link(n, r)
	case Opaque:
		return c.opaque(r)
	}
	return nil
}

func (c *checker) open(path string, flags uint64) (int, error) {
	if path == "" {
		path = "."
	}
	return unix.Openat2(c.root, path, &unix.OpenHow{
		Flags:   flags | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}

func (c *checker) stat(path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := c.open(path, unix.O_PATH)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

func (c *checker) node(ctx context.Context, r Record) error {
	fd, err := c.open(r.Path, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	kind := r.Mode & unix.S_IFMT
	isDevice := kind == unix.S_IFCHR || kind == unix.S_IFBLK
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return differs("is of another type")
	case st.Mode != r.Mode:
		return differs(fmt.Sprintf("mode is %#o, want %#o", st.Mode&0o7777, r.Mode&0o7777))
	case st.Uid != r.UID || st.Gid != r.GID:
		return differs(fmt.Sprintf("owner is %d:%d, want %d:%d", st.Uid, st.Gid, r.UID, r.GID))
	case isDevice && st.Rdev != r.Rdev:
		return differs("is another device")
	case (kind == unix.S_IFREG || kind == unix.S_IFLNK) && st.Size != r.Size:
		return differs(fmt.Sprintf("has %d bytes, want %d", st.Size, r.Size))
	case !sameTime(st, r):
		return differs("has another time")
	}
	switch kind {
	case unix.S_IFREG:
		return c.content(ctx, fd, r)
	case unix.S_IFLNK:
		n, err := unix.Readlinkat(fd, "", c.buf)
		if err != nil {
			return err
		}
		if Sum(0, c.buf[:n]) != r.Sum {
			return differs("points elsewhere")
		}
	}
	return nil
}

// sameTime compares seconds that every file system can hold: what is outside of them the file system
// has bent to its own range.
func sameTime(st unix.Stat_t, r Record) bool {
	want := r.ModTime.Unix()
	return want < 0 || want >= 1<<31 || st.Mtim.Sec == want
}

// content reads a regular file. It does not stay in the page cache, which holds what containers use.
func (c *checker) content(ctx context.Context, node int, r Record) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", node), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var sum uint32
	for offset := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Pread(fd, c.buf, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		sum = Sum(sum, c.buf[:n])
		offset += int64(n)
	}
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	if sum != r.Sum {
		return differs("has other content")
	}
	return nil
}

// link compares inodes, unless the first name has been taken back since: then only this one is there to
// be looked at.
func (c *checker) link(n uint64, r Record) error {
	st, err := c.stat(r.Path)
	if err != nil {
		return err
	}
	if last, ok := c.dropped[maphash.String(c.seed, r.Target)]; ok && n < last {
		return nil
	}
	target, err := c.stat(r.Target)
	if err != nil {
		return err
	}
	if st.Ino != target.Ino {
		return differs(fmt.Sprintf("is not the same file as %q", r.Target))
	}
	return nil
}

func (c *checker) opaque(r Record) error {
	fd, err := c.open(r.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var b [8]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr, b[:])
	if err != nil {
		return err
	}
	if string(b[:n]) != "y" {
		return differs("is not opaque")
	}
	return nil
}
