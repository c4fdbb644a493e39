// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package seal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/seal"
)

var stamp = time.Unix(1_700_000_000, 5)

// layer makes a folder with a file, a link to it, a symbolic link and a folder, and their list.
func layer(t *testing.T, more ...seal.Record) (root string, list *os.File) {
	t.Helper()
	root = t.TempDir()
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	for _, err := range []error{
		os.Mkdir(filepath.Join(root, "d"), 0o755),
		os.WriteFile(filepath.Join(root, "d/f"), content, 0o644),
		os.Link(filepath.Join(root, "d/f"), filepath.Join(root, "d/g")),
		os.Symlink("f", filepath.Join(root, "d/s")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ts := []unix.Timespec{unix.NsecToTimespec(stamp.UnixNano()), unix.NsecToTimespec(stamp.UnixNano())}
	for _, name := range []string{"d/f", "d/s", "d"} {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, name), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	records := append([]seal.Record{
		{Kind: seal.Node, Path: "d", Mode: unix.S_IFDIR | 0o755, UID: uid, GID: gid, ModTime: stamp},
		{Kind: seal.Node, Path: "d/f", Mode: unix.S_IFREG | 0o644, UID: uid, GID: gid, ModTime: stamp, Size: int64(len(content)), Sum: seal.Sum(0, content)},
		{Kind: seal.Link, Path: "d/g", Target: "d/f"},
		{Kind: seal.Node, Path: "d/s", Mode: unix.S_IFLNK | 0o777, UID: uid, GID: gid, ModTime: stamp, Size: 1, Sum: seal.Sum(0, []byte("f"))},
	}, more...)
	return root, write(t, records)
}

func write(t *testing.T, records []seal.Record) *os.File {
	t.Helper()
	list, err := os.OpenFile(filepath.Join(t.TempDir(), "seal"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { list.Close() })
	w := seal.NewWriter(list)
	for _, r := range records {
		if err := w.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return list
}

func check(t *testing.T, root string, list *os.File) error {
	t.Helper()
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	return seal.Check(t.Context(), dir, list)
}

func TestWhole(t *testing.T) {
	root, list := layer(t)
	if err := check(t, root, list); err != nil {
		t.Error(err)
	}
}

// keepTimes does something to a file and gives it back its time, as a lost write does.
func keepTimes(path string, do func() error) error {
	err := do()
	return errors.Join(err, os.Chtimes(path, stamp, stamp))
}

func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(root string) error{
		"truncated": func(root string) error {
			return keepTimes(root+"/d/f", func() error { return os.Truncate(root+"/d/f", 999_999) })
		},
		"empty": func(root string) error {
			return keepTimes(root+"/d/f", func() error { return os.Truncate(root+"/d/f", 0) })
		},
		"zeros at the end": func(root string) error {
			return keepTimes(root+"/d/f", func() error {
				return errors.Join(os.Truncate(root+"/d/f", 900_000), os.Truncate(root+"/d/f", 1_000_000))
			})
		},
		"one bit": func(root string) error {
			return keepTimes(root+"/d/f", func() error {
				f, err := os.OpenFile(root+"/d/f", os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = f.WriteAt([]byte("1"), 500_000)
				return err
			})
		},
		"gone":         func(root string) error { return os.Remove(root + "/d/s") },
		"folder gone":  func(root string) error { return os.RemoveAll(root + "/d") },
		"mode":         func(root string) error { return os.Chmod(root+"/d/f", 0o600) },
		"time":         func(root string) error { return os.Chtimes(root+"/d/f", stamp, stamp.Add(time.Hour)) },
		"another type": func(root string) error { return errors.Join(os.Remove(root+"/d/s"), os.Mkdir(root+"/d/s", 0o777)) },
		"link apart": func(root string) error {
			return errors.Join(os.Remove(root+"/d/g"), os.WriteFile(root+"/d/g", nil, 0o644))
		},
		"symbolic link elsewhere": func(root string) error {
			err := errors.Join(os.Remove(root+"/d/s"), os.Symlink("g", root+"/d/s"))
			ts := []unix.Timespec{unix.NsecToTimespec(stamp.UnixNano()), unix.NsecToTimespec(stamp.UnixNano())}
			return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, root+"/d/s", ts, unix.AT_SYMLINK_NOFOLLOW),
				os.Chtimes(root+"/d", stamp, stamp))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, list := layer(t)
			if err := damage(root); err != nil {
				t.Fatal(err)
			}
			err := check(t, root, list)
			if !errors.Is(err, seal.ErrDamaged) || !strings.Contains(err.Error(), `"d`) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// TestDamagedList cuts a list at each byte, and turns each of its bytes over.
func TestDamagedList(t *testing.T) {
	root, list := layer(t)
	whole, err := os.ReadFile(list.Name())
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		flipped := slices.Clone(whole)
		flipped[i] ^= 0x40
		for what, b := range map[string][]byte{"cut": whole[:i], "flipped": flipped, "longer": append(slices.Clone(whole), 0)} {
			if err := list.Truncate(0); err != nil {
				t.Fatal(err)
			}
			if _, err := list.WriteAt(b, 0); err != nil {
				t.Fatal(err)
			}
			if err := check(t, root, list); !errors.Is(err, seal.ErrDamaged) {
				t.Errorf("%s at %d: %v", what, i, err)
			}
		}
	}
}

func TestDropped(t *testing.T) {
	for name, c := range map[string]struct {
		more []seal.Record
		want error
	}{
		"never there":      {[]seal.Record{{Kind: seal.Node, Path: "x", Mode: unix.S_IFREG}}, seal.ErrDamaged},
		"dropped":          {[]seal.Record{{Kind: seal.Node, Path: "x", Mode: unix.S_IFREG}, {Kind: seal.Drop, Path: "x"}}, nil},
		"dropped too soon": {[]seal.Record{{Kind: seal.Drop, Path: "x"}, {Kind: seal.Node, Path: "x", Mode: unix.S_IFREG}}, seal.ErrDamaged},
		"target dropped":   {[]seal.Record{{Kind: seal.Link, Path: "d/s", Target: "d/t"}, {Kind: seal.Drop, Path: "d/t"}}, nil},
		"target not there": {[]seal.Record{{Kind: seal.Link, Path: "d/s", Target: "d/t"}}, seal.ErrDamaged},
		"beyond a link":    {[]seal.Record{{Kind: seal.Link, Path: "d/s/x", Target: "d/f"}}, seal.ErrDamaged},
		"out of the root":  {[]seal.Record{{Kind: seal.Link, Path: "../x", Target: "d/f"}}, seal.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			root, list := layer(t, c.more...)
			if err := check(t, root, list); !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
		})
	}
}

func TestRecords(t *testing.T) {
	file, err := os.OpenFile(filepath.Join(t.TempDir(), "seal"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := seal.NewWriter(file)
	long := strings.Repeat("x", 4095)
	for i := range 100 {
		if err := w.Append(seal.Record{Kind: seal.Link, Path: fmt.Sprint(i), Target: long}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for r, err := range w.Records() {
		if err != nil || r.Path != fmt.Sprint(n) || r.Target != long {
			t.Fatalf("record %d: %q, %v", n, r.Path, err)
		}
		n++
		if err := w.Append(seal.Record{Kind: seal.Drop, Path: "more"}); err != nil {
			t.Fatal(err)
		}
	}
	if n != 100 {
		t.Errorf("%d records", n)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := w.Append(seal.Record{Kind: seal.Drop}); err == nil {
		t.Error("appended after the end")
	}
}

func TestCheckEnds(t *testing.T) {
	root, list := layer(t)
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := seal.Check(ctx, dir, list); !errors.Is(err, context.Canceled) || errors.Is(err, seal.ErrDamaged) {
		t.Error(err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte("berth seal 1\n"))
	f.Add([]byte("berth seal 1\n\x05\x01\x00\x01a\x01"))
	dir, err := os.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { dir.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := os.OpenFile(filepath.Join(t.TempDir(), "seal"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer list.Close()
		if _, err := list.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := seal.Check(t.Context(), dir, list); err == nil && !bytes.HasPrefix(b, []byte("berth seal 1\n")) {
			t.Error("accepted")
		}
	})
}
