// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ns_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/ns"
)

func TestPin(t *testing.T) {
	if got, want := ns.Pin("", "abc"), "/run/netns/berth-abc"; got != want {
		t.Errorf("Pin = %q; want %q", got, want)
	}
	if got, want := ns.Pin("/x/y", "abc"), "/x/y/berth-abc"; got != want {
		t.Errorf("Pin = %q; want %q", got, want)
	}
}

func TestRemoveTouchesOnlyOurs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"cni-1", "berth", "berth-", "berth-.x", "berthx"} {
		path := filepath.Join(dir, name)
		write(t, path)
		if err := ns.Remove(path); !errors.Is(err, ns.ErrInvalid) {
			t.Errorf("Remove(%s) = %v; want ErrInvalid", name, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	write(t, filepath.Join(dir, "berth-a"))
	for _, path := range []string{dir + "/../" + filepath.Base(dir) + "/berth-a", dir + "//berth-a", dir + "/berth-a/", "berth-a"} {
		if err := ns.Remove(path); !errors.Is(err, ns.ErrInvalid) {
			t.Errorf("Remove(%s) = %v; want ErrInvalid", path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "berth-a")); err != nil {
		t.Error(err)
	}
	// A link of that name goes, what it points to stays.
	if err := os.Symlink(filepath.Join(dir, "cni-1"), filepath.Join(dir, "berth-link")); err != nil {
		t.Fatal(err)
	}
	removeAll(t, ns.Pin(dir, "link"))
	if _, err := os.Lstat(filepath.Join(dir, "cni-1")); err != nil {
		t.Error(err)
	}
}

// removeAll removes a pin, and once more, since Remove may be called any number of times.
func removeAll(t testing.TB, pin string) {
	t.Helper()
	for range 2 {
		if err := ns.Remove(pin); err != nil && !errors.Is(err, unix.EPERM) { // to unmount takes root
			t.Errorf("Remove(%s) = %v", pin, err)
		}
	}
	if os.Getuid() != 0 {
		return
	}
	if _, err := os.Lstat(pin); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %s: %v", pin, err)
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	if got, err := ns.List(dir + "/missing"); got != nil || err != nil {
		t.Errorf("List of a missing folder = %v, %v", got, err)
	}
	for _, name := range []string{"berth-b", "cni-x", "berth-a", "berth-", "berth-.hidden"} {
		write(t, filepath.Join(dir, name))
	}
	if err := os.Mkdir(filepath.Join(dir, "berth-folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := ns.List(dir)
	if err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("List = %v, %v; want a, b", got, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := ns.Open(filepath.Join(dir, "berth-none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of nothing = %v", err)
	}
	file, fifo, link := filepath.Join(dir, "berth-file"), filepath.Join(dir, "berth-fifo"), filepath.Join(dir, "berth-link")
	write(t, file)
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/ns/net", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, fifo, link} {
		if f, err := ns.Open(path); !errors.Is(err, ns.ErrNotNetNS) {
			t.Errorf("Open(%s) = %v, %v; want ErrNotNetNS", filepath.Base(path), f, err)
		}
	}
}

func write(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
