// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/seal"
)

// writeback is after how many bytes of a file the kernel is asked to begin to write them to the disk, so
// that the sync at the end does not have all of it to do.
const writeback = 8 << 20

// pathError names what a call was about.
func pathError(op string, d *folder, base string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: join(d.path, base), Err: err}
}

// again calls make, and, if something is in the way, takes that away and calls it again.
func (t *tree) again(d *folder, base string, do func() error) error {
	err := do()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := t.remove(d, base, &st); err != nil {
		return err
	}
	return do()
}

func (t *tree) file(d *folder, base string, h *tar.Header, attrs attributes, data io.Reader) error {
	if h.Size < 0 || t.size > t.limits.Bytes-h.Size {
		return fmt.Errorf("%w: files of more than %d bytes", ErrTooLarge, t.limits.Bytes)
	}
	isSparse := h.Typeflag == tar.TypeGNUSparse || sparseRecord(h)
	if isSparse {
		if t.sparse += h.Size; t.sparse > t.limits.Sparse {
			return fmt.Errorf("%w: sparse files of more than %d bytes", ErrTooLarge, t.limits.Sparse)
		}
	}
	fd := -1
	err := t.again(d, base, func() (err error) {
		fd, err = createFile(d.fd, base)
		return err
	})
	if err != nil {
		return pathError("create", d, base, err)
	}
	defer unix.Close(fd)
	w := fileWriter{fd: fd, holes: isSparse, blockSize: t.blockSize}
	if err := w.copy(data, t.buf); err != nil {
		if w.failed {
			return pathError("write", d, base, err)
		}
		return archiveError(err)
	}
	if w.offset != h.Size {
		return fmt.Errorf("%w: %d bytes of %d", ErrArchive, w.offset, h.Size)
	}
	return t.finishFile(d, base, fd, &w, attrs)
}

func createFile(parent int, base string) (int, error) {
	return unix.Openat2(parent, base, &unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC, Mode: 0o600, Resolve: beneath,
	})
}

// finishFile gives a file that was written its attributes, and records it. The owner comes before the
// mode and the capabilities, because chown takes setuid bits and capabilities away.
func (t *tree) finishFile(d *folder, base string, fd int, w *fileWriter, attrs attributes) error {
	if err := unix.Fchown(fd, int(attrs.uid), int(attrs.gid)); err != nil {
		return pathError("chown", d, base, err)
	}
	if err := unix.Fchmod(fd, attrs.mode); err != nil {
		return pathError("chmod", d, base, err)
	}
	if err := setXattrs(attrs.xattrs, unix.S_IFREG, func(name string, value []byte) error {
		return unix.Fsetxattr(fd, name, value, 0)
	}); err != nil {
		return pathError("setxattr", d, base, err)
	}
	if err := setTimes(d, base, attrs); err != nil {
		return err
	}
	t.size += w.offset
	record := t.record(d, base, unix.S_IFREG, attrs)
	record.Size, record.Sum = w.offset, w.sum
	if err := t.made(record); err != nil {
		return err
	}
	t.bytes -= w.skipped
	return nil
}

func setTimes(d *folder, base string, attrs attributes) error {
	return pathError("utimensat", d, base, unix.UtimesNanoAt(d.fd, base, timespecs(attrs.access, attrs.time), unix.AT_SYMLINK_NOFOLLOW))
}

func (t *tree) record(d *folder, base string, kind uint32, attrs attributes) seal.Record {
	return seal.Record{
		Kind: seal.Node, Path: join(d.path, base), Mode: kind | attrs.mode, UID: attrs.uid, GID: attrs.gid,
		ModTime: attrs.time, Implicit: attrs.implicit,
	}
}

// sparseRecord says whether the PAX records of an entry describe holes.
func sparseRecord(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// A fileWriter writes a file from its beginning to its end.
type fileWriter struct {
	fd        int
	holes     bool // blocks of zeros are left out
	blockSize int64

	offset  int64
	flushed int64 // up to where the kernel was asked to write back
	skipped int64 // bytes that were left out
	sum     uint32
	failed  bool // the error is one of writing
}

// copy writes all of r.
func (w *fileWriter) copy(r io.Reader, buf []byte) error {
	for {
		n, err := readFull(r, buf)
		w.sum = seal.Sum(w.sum, buf[:n])
		if err := w.write(buf[:n]); err != nil {
			w.failed = true
			return err
		}
		if errors.Is(err, io.EOF) {
			if w.skipped > 0 {
				w.failed = true
				return unix.Ftruncate(w.fd, w.offset)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (w *fileWriter) write(b []byte) error {
	if !w.holes {
		return w.writeAll(b)
	}
	for len(b) > 0 {
		n := min(int64(len(b)), w.blockSize-w.offset%w.blockSize)
		if n == w.blockSize && isZero(b[:n]) {
			w.offset += n
			w.skipped += n
		} else if err := w.writeAll(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (w *fileWriter) writeAll(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(w.fd, b, w.offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
		w.offset += int64(n)
	}
	if w.offset-w.flushed >= writeback {
		// A hint: the sync at the end reports what fails.
		_ = unix.SyncFileRange(w.fd, w.flushed, w.offset-w.flushed, unix.SYNC_FILE_RANGE_WRITE)
		w.flushed = w.offset
	}
	return nil
}

func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

func (t *tree) symlink(d *folder, base, target string, attrs attributes) error {
	if target == "" || len(target) > maxPath || strings.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("%w: symbolic link to %.200q", ErrName, target)
	}
	if err := t.again(d, base, func() error { return unix.Symlinkat(target, d.fd, base) }); err != nil {
		return pathError("symlink", d, base, err)
	}
	attrs.mode = 0o777
	record := t.record(d, base, unix.S_IFLNK, attrs)
	record.Size, record.Sum = int64(len(target)), seal.Sum(0, []byte(target))
	return t.finishOther(d, base, record, attrs)
}

func (t *tree) device(d *folder, base string, h *tar.Header, attrs attributes) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	var dev uint64
	if kind != unix.S_IFIFO {
		// The kernel has 12 and 20 bits (include/linux/kdev_t.h).
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fmt.Errorf("%w: device %d:%d", ErrAttribute, h.Devmajor, h.Devminor)
		}
		dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		if kind == unix.S_IFCHR && dev == 0 {
			return fmt.Errorf("%w: character device 0:0", ErrReserved)
		}
	}
	if err := t.again(d, base, func() error { return unix.Mknodat(d.fd, base, kind|0o600, int(dev)) }); err != nil {
		return pathError("mknod", d, base, err)
	}
	record := t.record(d, base, kind, attrs)
	record.Rdev = dev
	return t.finishOther(d, base, record, attrs)
}

// finishOther is finishFile for what is not opened: opening a device or a fifo does something to it.
func (t *tree) finishOther(d *folder, base string, record seal.Record, attrs attributes) error {
	if err := unix.Fchownat(d.fd, base, int(attrs.uid), int(attrs.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("chown", d, base, err)
	}
	kind := record.Mode & unix.S_IFMT
	if kind != unix.S_IFLNK { // and so it follows none
		if err := unix.Fchmodat(d.fd, base, attrs.mode, 0); err != nil {
			return pathError("chmod", d, base, err)
		}
	}
	// There is no fsetxattrat before kernel 6.13.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", d.fd, base)
	if err := setXattrs(attrs.xattrs, kind, func(name string, value []byte) error {
		return unix.Lsetxattr(path, name, value, 0)
	}); err != nil {
		return pathError("setxattr", d, base, err)
	}
	if err := setTimes(d, base, attrs); err != nil {
		return err
	}
	return t.made(record)
}
