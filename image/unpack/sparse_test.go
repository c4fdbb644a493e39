// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/unpack"
)

// TestSparse has files with holes in the four ways that GNU tar has written them: the holes come back, and
// are not counted as if they took space.
func TestSparse(t *testing.T) {
	folder := t.TempDir()
	const size = 10 << 20
	content := make([]byte, size)
	f, err := os.OpenFile(filepath.Join(folder, "holes"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{1 << 20, 5<<20 + 1000, 7 << 20} {
		copy(content[at:], noise(20_000))
		if _, err := f.WriteAt([]byte(noise(20_000)), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	for name, how := range map[string][]string{
		"old GNU": {"--format=gnu"},
		"PAX 0.0": {"--format=posix", "--sparse-version=0.0"},
		"PAX 0.1": {"--format=posix", "--sparse-version=0.1"},
		"PAX 1.0": {"--format=posix", "--sparse-version=1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "tar", append([]string{"--create", "--sparse", "--directory", folder}, append(how, "holes")...)...)
			blob, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(blob) > size/2 {
				t.Skip("tar has found no holes")
			}
			l := newLayer(t)
			if err := l.unpack(unpack.New(unpack.Options{}), blob); err != nil {
				t.Fatal(err)
			}
			l.check()
			got, err := os.ReadFile(filepath.Join(l.path, "holes"))
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("other content, %v", err)
			}
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(l.path, "holes"), &st); err != nil || st.Blocks*512 > 1<<20 {
				t.Errorf("takes %d bytes, %v", st.Blocks*512, err)
			}
			if r := l.result; r.Size != size || r.Bytes < 60_000 || r.Bytes > 1<<20 {
				t.Errorf("%+v", r)
			}
			err = newLayer(t).unpack(unpack.New(unpack.Options{Limits: unpack.Limits{Sparse: size - 1}}), blob)
			if !errors.Is(err, unpack.ErrTooLarge) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// TestReplaceSparse takes a file with holes away again: what is counted is what there is.
func TestReplaceSparse(t *testing.T) {
	l := unpacked(t, nil)
	want := l.result.Bytes
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(folder, "f"), 4<<20); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tar")
	for _, how := range []string{"--create", "--append"} {
		if out, err := exec.CommandContext(t.Context(), "tar", how, "--file", path, "--sparse", "--directory", folder, "f").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	blob, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	l = newLayer(t)
	if err := l.unpack(unpack.New(unpack.Options{}), blob); err != nil {
		t.Fatal(err)
	}
	l.check()
	if block := l.result.Bytes - want; block < 512 || block > 64<<10 {
		t.Errorf("counted %d bytes", block)
	}
}
