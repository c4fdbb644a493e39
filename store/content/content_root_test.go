// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package content_test

import (
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/store/content"
)

// TestFullDisk fills a file system of 1 MiB: the blob that does not fit is refused and leaves no byte,
// and the next one fits again.
func TestFullDisk(t *testing.T) {
	folder := t.TempDir()
	leak.Check(t, leak.Mounts(folder))
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := reopen(t, folder)
	kept := put(t, s, "kept")
	big := make([]byte, 2<<20)
	rand.Read(big)
	for range 3 {
		w, err := s.Writer(t.Context(), content.FromBytes(big), int64(len(big)))
		if err != nil {
			t.Fatal(err)
		}
		for chunk := range slices.Chunk(big, 64<<10) {
			if _, err = w.Write(chunk); err != nil {
				break
			}
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("error is %v", err)
		}
		_, err = w.Commit()
		wantErr(t, err, unix.ENOSPC)
	}
	if files := names(t, folder); len(files) != 1 {
		t.Errorf("files %q", files)
	}
	fits := put(t, s, string(big[:512<<10]))
	for _, d := range []content.Digest{kept, fits} {
		if err := s.Check(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
}
