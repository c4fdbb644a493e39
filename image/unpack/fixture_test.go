// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/seal"
	"github.com/berth-cri/berth/image/unpack"
	"github.com/berth-cri/berth/store/content"
)

const plain = "application/vnd.oci.image.layer.v1.tar"

var stamp = time.Unix(1_600_000_000, 123_456_789)

// entry makes a header; what is not set is of the test's own user, so that tests need no root.
func entry(kind byte, name string, change ...func(*tar.Header)) *tar.Header {
	h := &tar.Header{Typeflag: kind, Name: name, Mode: 0o644, Uid: os.Getuid(), Gid: os.Getgid(), ModTime: stamp, Format: tar.FormatPAX}
	if kind == tar.TypeDir {
		h.Mode = 0o755
	}
	for _, f := range change {
		f(h)
	}
	return h
}

func dir(name string, change ...func(*tar.Header)) *tar.Header {
	return entry(tar.TypeDir, name, change...)
}

// file is a file that has its text in a record which is taken out again when it is written.
func file(name, text string, change ...func(*tar.Header)) *tar.Header {
	h := entry(tar.TypeReg, name, change...)
	h.Size = int64(len(text))
	h.Uname = text
	return h
}

func symlink(name, to string) *tar.Header {
	return entry(tar.TypeSymlink, name, func(h *tar.Header) { h.Linkname = to })
}

func hardlink(name, to string) *tar.Header {
	return entry(tar.TypeLink, name, func(h *tar.Header) { h.Linkname = to })
}

func mode(m int64) func(*tar.Header)          { return func(h *tar.Header) { h.Mode = m } }
func owner(uid, gid int) func(*tar.Header)    { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }
func modTime(t time.Time) func(*tar.Header)   { return func(h *tar.Header) { h.ModTime = t } }
func format(f tar.Format) func(h *tar.Header) { return func(h *tar.Header) { h.Format = f } }
func device(major, minor int64) func(*tar.Header) {
	return func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }
}

func attr(name, value string) func(*tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

// archive writes entries.
func archive(t testing.TB, entries ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		h := *h
		text := h.Uname
		h.Uname = ""
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func digest(b []byte) content.Digest {
	sum := sha256.Sum256(b)
	return content.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// A layer is a folder with its list.
type layer struct {
	t      testing.TB
	path   string
	root   *os.File
	list   *os.File
	target unpack.Target
	result *unpack.Result
}

// newLayer makes the folder within another, so that a test sees what would be made beside it.
func newLayer(t testing.TB) *layer {
	t.Helper()
	l := &layer{t: t, path: filepath.Join(t.TempDir(), "fs")}
	var err error
	if err = os.Mkdir(l.path, 0o700); err != nil {
		t.Fatal(err)
	}
	if l.root, err = os.Open(l.path); err != nil {
		t.Fatal(err)
	}
	if l.list, err = os.OpenFile(filepath.Join(t.TempDir(), "seal"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.root.Close(); l.list.Close() })
	l.target = unpack.Target{Root: l.root, Seal: seal.NewWriter(l.list)}
	return l
}

func (l *layer) unpack(u *unpack.Unpacker, blob []byte) error {
	var err error
	l.result, err = u.Unpack(l.t.Context(), unpack.Source{Blob: bytes.NewReader(blob), MediaType: plain}, l.target)
	return err
}

func (l *layer) settle(lower ...*layer) error {
	var roots []*os.File
	for _, other := range lower {
		roots = append(roots, other.root)
	}
	return unpack.New(unpack.Options{}).Settle(l.t.Context(), l.target, l.result, roots)
}

// check says that the list agrees with the folder, and the counts with a walk.
func (l *layer) check() {
	l.t.Helper()
	if err := l.target.Seal.Finish(); err != nil {
		l.t.Fatal(err)
	}
	if err := seal.Check(l.t.Context(), l.root, l.list); err != nil {
		l.t.Error(err)
	}
	var inodes, size int64
	seen := make(map[uint64]bool)
	err := filepath.WalkDir(l.path, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || seen[st.Ino] {
			return err
		}
		seen[st.Ino] = true
		inodes++
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			size += st.Size
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if r := l.result; r.Inodes != inodes || r.Size != size {
		l.t.Errorf("counted %d inodes and %d bytes, there are %d and %d", r.Inodes, r.Size, inodes, size)
	}
}

// unpacked is a layer of entries, settled above others, the topmost first.
func unpacked(t testing.TB, entries []*tar.Header, lower ...*layer) *layer {
	t.Helper()
	l := newLayer(t)
	if err := l.unpack(unpack.New(unpack.Options{}), archive(t, entries...)); err != nil {
		t.Fatal(err)
	}
	if l.result.Dependent() {
		if err := l.settle(lower...); err != nil {
			t.Fatal(err)
		}
	}
	l.check()
	return l
}

// tree lists a folder: a line for each path below it, without what is the same for all.
func (l *layer) tree() []string {
	l.t.Helper()
	return list(l.t, l.path)
}

// list tells of each path: type, mode, owner if another's, device, time if it is not that of entries,
// extended attributes, text, and the first path of the same file.
func list(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	first := make(map[uint64]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if other, ok := first[st.Ino]; ok {
			lines = append(lines, fmt.Sprintf("%s = %s", name, other))
			return nil
		}
		first[st.Ino] = name
		lines = append(lines, name+describe(t, path, &st))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func describe(t testing.TB, path string, st *unix.Stat_t) string {
	t.Helper()
	var b strings.Builder
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		fmt.Fprintf(&b, "/ %o", st.Mode&0o7777)
	case unix.S_IFREG:
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 40 {
			text = []byte(digest(text))
		}
		fmt.Fprintf(&b, " %o %q", st.Mode&0o7777, text)
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, " -> %s", to)
	case unix.S_IFCHR, unix.S_IFBLK:
		if st.Rdev == 0 {
			return " whiteout"
		}
		fmt.Fprintf(&b, " device %o %d:%d", st.Mode, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	default:
		fmt.Fprintf(&b, " other %o", st.Mode)
	}
	if int(st.Uid) != os.Getuid() || int(st.Gid) != os.Getgid() {
		fmt.Fprintf(&b, " owner=%d:%d", st.Uid, st.Gid)
	}
	if st.Mtim.Nano() != stamp.UnixNano() {
		fmt.Fprintf(&b, " time=%d", st.Mtim.Sec)
	}
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		t.Fatal(err)
	}
	attrs := slices.Sorted(strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00"))
	for _, name := range attrs {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, " %s=%q", name, value[:n])
	}
	return b.String()
}

func equal(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}
