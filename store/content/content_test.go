// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package content_test

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-cri/berth/store/content"
)

func open(t *testing.T) (*content.Store, string) {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "blobs")
	return reopen(t, folder), folder
}

func reopen(t *testing.T, folder string) *content.Store {
	t.Helper()
	s, err := content.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *content.Store, text string) content.Digest {
	t.Helper()
	d, err := s.Put(t.Context(), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func read(t *testing.T, s *content.Store, d content.Digest) string {
	t.Helper()
	r, err := s.Reader(d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// names lists the files below a folder.
func names(t *testing.T, folder string) []string {
	t.Helper()
	var out []string
	for _, algorithm := range []string{"sha256", "sha512"} {
		entries, err := os.ReadDir(filepath.Join(folder, algorithm))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, algorithm+"/"+e.Name())
		}
	}
	return out
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

func sha512Of(text string) content.Digest {
	sum := sha512.Sum512([]byte(text))
	return content.Digest("sha512:" + hex.EncodeToString(sum[:]))
}

func TestWriteAndRead(t *testing.T) {
	for _, c := range []struct {
		name string
		text string
		want content.Digest
		size int64
	}{
		{"sha256", "hello", content.FromBytes([]byte("hello")), 5},
		{"sha512", "hello", sha512Of("hello"), 5},
		{"size not known", "hello", content.FromBytes([]byte("hello")), -1},
		{"empty", "", content.FromBytes(nil), 0},
		{"more than one write-back", strings.Repeat("x", 20<<20), content.FromBytes(bytes.Repeat([]byte("x"), 20<<20)), 20 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, folder := open(t)
			w, err := s.Writer(t.Context(), c.want, c.size)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if _, err := s.Reader(c.want); !errors.Is(err, content.ErrNotFound) {
				t.Errorf("before Commit: %v", err)
			}
			if _, err := io.Copy(w, struct{ io.Reader }{strings.NewReader(c.text)}); err != nil {
				t.Fatal(err)
			}
			d, err := w.Commit()
			if err != nil || d != c.want {
				t.Fatalf("Commit: %s, %v", d, err)
			}
			if got := read(t, s, c.want); got != c.text {
				t.Errorf("read %d bytes, want %d", len(got), len(c.text))
			}
			info, err := s.Stat(c.want)
			if err != nil || info.Size != int64(len(c.text)) || info.Digest != c.want {
				t.Errorf("Stat: %+v, %v", info, err)
			}
			if err := s.Check(t.Context(), c.want); err != nil {
				t.Error(err)
			}
			if files := names(t, folder); len(files) != 1 {
				t.Errorf("files %q", files)
			}
			file, err := os.Stat(filepath.Join(folder, c.want.Algorithm(), c.want.Hex()))
			if err != nil || file.Mode() != 0o444 {
				t.Errorf("mode %v, %v", file.Mode(), err)
			}
			_, err = w.Write([]byte("more"))
			wantErr(t, err, content.ErrClosed)
			_, err = w.Commit()
			wantErr(t, err, content.ErrClosed)
		})
	}
}

func TestIngest(t *testing.T) {
	s, _ := open(t)
	w, err := s.Ingest(t.Context(), "archive.tar ../../etc", -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("hel")); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if w, err = s.Ingest(t.Context(), "archive.tar ../../etc", -1); err != nil || w.Offset() != 3 {
		t.Fatalf("offset %d, %v", w.Offset(), err)
	}
	if _, err := w.Write([]byte("lo")); err != nil {
		t.Fatal(err)
	}
	d, err := w.Commit()
	if err != nil || d != content.FromBytes([]byte("hello")) {
		t.Errorf("%s, %v", d, err)
	}
	if got := read(t, s, d); got != "hello" {
		t.Errorf("read %q", got)
	}
}

func TestWrongBytes(t *testing.T) {
	digest := content.FromBytes([]byte("hello"))
	for _, c := range []struct {
		name, text string
		size       int64
		want       error
	}{
		{"other bytes", "hallo", 5, content.ErrDigest},
		{"too few", "hell", 5, content.ErrSize},
		{"too many", "hello!", 5, content.ErrSize},
		{"too few, size not known", "hell", -1, content.ErrDigest},
		{"none", "", 5, content.ErrSize},
		{"size was a lie", "hello", 4, content.ErrSize},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, folder := open(t)
			w, err := s.Writer(t.Context(), digest, c.size)
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.Write([]byte(c.text))
			if err == nil {
				_, err = w.Commit()
			}
			wantErr(t, err, c.want)
			_, err = w.Commit()
			wantErr(t, err, c.want)
			if files := names(t, folder); len(files) != 0 {
				t.Errorf("left %q", files)
			}
			if got := put(t, s, "hello"); got != digest {
				t.Errorf("then: %s", got)
			}
		})
	}
}

// TestEndlessBytes has a server send more than it announced: none of it reaches the disk.
func TestEndlessBytes(t *testing.T) {
	s, _ := open(t)
	w, err := s.Writer(t.Context(), content.FromBytes([]byte("hello")), 5)
	if err != nil {
		t.Fatal(err)
	}
	n, err := w.Write(make([]byte, 1<<20))
	wantErr(t, err, content.ErrSize)
	if n != 0 || w.Offset() != 0 {
		t.Errorf("wrote %d bytes, offset %d", n, w.Offset())
	}
}

func TestBadDigests(t *testing.T) {
	s, _ := open(t)
	for _, d := range []content.Digest{"", "sha256:", "sha256:../../../../etc/passwd", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		_, err := s.Writer(t.Context(), d, 1)
		wantErr(t, err, content.ErrBadDigest)
		_, err = s.Reader(d)
		wantErr(t, err, content.ErrBadDigest)
		_, err = s.Stat(d)
		wantErr(t, err, content.ErrBadDigest)
		wantErr(t, s.Delete(d), content.ErrBadDigest)
		wantErr(t, s.Check(t.Context(), d), content.ErrBadDigest)
	}
}

func TestResume(t *testing.T) {
	s, folder := open(t)
	digest := content.FromBytes([]byte("hello world"))
	writer := func(s *content.Store, offset int64) *content.Writer {
		t.Helper()
		w, err := s.Writer(t.Context(), digest, 11)
		if err != nil {
			t.Fatal(err)
		}
		if w.Offset() != offset {
			t.Fatalf("offset %d, want %d", w.Offset(), offset)
		}
		return w
	}
	write := func(w *content.Writer, text string) {
		t.Helper()
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}

	w := writer(s, 0)
	write(w, "hello ")
	w.Close()
	w = writer(reopen(t, folder), 6) // as the next process does
	write(w, "wor")
	w.Close()
	w = writer(s, 9)
	if err := w.Restart(); err != nil || w.Offset() != 0 {
		t.Fatalf("Restart: %v, offset %d", err, w.Offset())
	}
	write(w, "hello")
	w.Close()
	w = writer(s, 5)
	write(w, " world")
	w.Close()
	w = writer(s, 11) // all is there: only Commit was missing
	if _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, digest); got != "hello world" {
		t.Errorf("read %q", got)
	}

	t.Run("a draft that lost bytes", func(t *testing.T) {
		s, folder := open(t)
		w, err := s.Writer(t.Context(), digest, 11)
		if err != nil {
			t.Fatal(err)
		}
		write(w, "hello ")
		w.Close()
		draft := filepath.Join(folder, names(t, folder)[0])
		if err := os.WriteFile(draft, make([]byte, 6), 0o600); err != nil { // as a power cut leaves it
			t.Fatal(err)
		}
		if w, err = s.Writer(t.Context(), digest, 11); err != nil {
			t.Fatal(err)
		}
		write(w, "world")
		_, err = w.Commit()
		wantErr(t, err, content.ErrDigest)
		put(t, s, "hello world")
	})
	t.Run("a draft that is too long", func(t *testing.T) {
		s, _ := open(t)
		w, err := s.Writer(t.Context(), digest, -1)
		if err != nil {
			t.Fatal(err)
		}
		write(w, "hello world and more")
		w.Close()
		if w, err = s.Writer(t.Context(), digest, 11); err != nil || w.Offset() != 0 {
			t.Fatalf("%v, offset %d", err, w.Offset())
		}
		w.Close()
	})
	t.Run("a draft in the way of Put", func(t *testing.T) {
		s, _ := open(t)
		w, err := s.Writer(t.Context(), digest, 11)
		if err != nil {
			t.Fatal(err)
		}
		write(w, "hello ")
		w.Close()
		if d := put(t, s, "hello world"); read(t, s, d) != "hello world" {
			t.Error("wrong blob")
		}
	})
}

func TestDiscard(t *testing.T) {
	s, folder := open(t)
	w, err := s.Writer(t.Context(), content.FromBytes([]byte("hello")), 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("he")); err != nil {
		t.Fatal(err)
	}
	if err := w.Discard(); err != nil {
		t.Fatal(err)
	}
	if err := w.Discard(); err != nil {
		t.Fatal(err)
	}
	_, err = w.Write([]byte("llo"))
	wantErr(t, err, content.ErrClosed)
	if files := names(t, folder); len(files) != 0 {
		t.Errorf("left %q", files)
	}
}

func TestExists(t *testing.T) {
	s, _ := open(t)
	d := put(t, s, "hello")
	_, err := s.Writer(t.Context(), d, 5)
	wantErr(t, err, content.ErrExists)
	if got := put(t, s, "hello"); got != d {
		t.Errorf("again: %s", got)
	}
}

// TestShare has many writers of one digest: one writes, the others find the blob.
func TestShare(t *testing.T) {
	s, _ := open(t)
	digest := content.FromBytes([]byte("hello"))
	var (
		wg          sync.WaitGroup
		mu          sync.Mutex
		wrote, told int
	)
	for range 20 {
		wg.Go(func() {
			w, err := s.Writer(t.Context(), digest, 5)
			if errors.Is(err, content.ErrExists) {
				mu.Lock()
				told++
				mu.Unlock()
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			if w.Offset() != 0 {
				t.Errorf("two writers at once: offset %d", w.Offset())
			}
			for _, c := range []byte("hello") {
				if _, err := w.Write([]byte{c}); err != nil {
					t.Error(err)
				}
			}
			if _, err := w.Commit(); err != nil {
				t.Error(err)
			}
			mu.Lock()
			wrote++
			mu.Unlock()
		})
	}
	wg.Wait()
	if wrote != 1 || told != 19 {
		t.Errorf("%d wrote, %d were told", wrote, told)
	}
}

// TestTakeOver has a second writer wait for the first, which goes away.
func TestTakeOver(t *testing.T) {
	s, _ := open(t)
	digest := content.FromBytes([]byte("hello"))
	first, err := s.Writer(t.Context(), digest, 5)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Writer(ended, digest, 5)
	wantErr(t, err, context.Canceled)

	second := make(chan *content.Writer)
	go func() {
		w, err := s.Writer(t.Context(), digest, 5)
		if err != nil {
			t.Error(err)
		}
		second <- w
	}()
	if _, err := first.Write([]byte("he")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-second:
		t.Fatal("did not wait")
	default:
	}
	first.Close()
	w := <-second
	if w.Offset() != 2 {
		t.Errorf("offset %d", w.Offset())
	}
	w.Close()
}

func TestDelete(t *testing.T) {
	s, folder := open(t)
	d := put(t, s, "hello")
	r, err := s.Reader(d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 {
		if err := s.Delete(d); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "hello" {
		t.Errorf("a reader that was open reads %q, %v", b, err)
	}
	_, err = s.Reader(d)
	wantErr(t, err, content.ErrNotFound)
	_, err = s.Stat(d)
	wantErr(t, err, content.ErrNotFound)
	wantErr(t, s.Check(t.Context(), d), content.ErrNotFound)
	if files := names(t, folder); len(files) != 0 {
		t.Errorf("left %q", files)
	}
}

func TestWalk(t *testing.T) {
	s, folder := open(t)
	want := map[content.Digest]int64{put(t, s, "a"): 1, put(t, s, "bb"): 2}
	w, err := s.Writer(t.Context(), content.FromBytes([]byte("draft")), 5)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := os.WriteFile(filepath.Join(folder, "sha256", "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(folder, "sha256", strings.Repeat("0", 64)), 0o700); err != nil {
		t.Fatal(err)
	}
	err = s.Walk(t.Context(), func(info content.Info) error {
		if want[info.Digest] != info.Size {
			t.Errorf("%s of %d bytes", info.Digest, info.Size)
		}
		delete(want, info.Digest)
		return s.Delete(info.Digest)
	})
	if err != nil || len(want) != 0 {
		t.Errorf("%v; not seen: %v", err, want)
	}
	put(t, s, "a")
	stop := errors.New("stop")
	wantErr(t, s.Walk(t.Context(), func(content.Info) error { return stop }), stop)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, s.Walk(ended, func(content.Info) error { return nil }), context.Canceled)
}

func TestCheckFindsRot(t *testing.T) {
	s, folder := open(t)
	d := put(t, s, "hello")
	path := filepath.Join(folder, "sha256", d.Hex())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for _, rotten := range []string{"hellp", "hell", "", "hello\x00"} {
		if err := os.WriteFile(path, []byte(rotten), 0o600); err != nil {
			t.Fatal(err)
		}
		wantErr(t, s.Check(t.Context(), d), content.ErrDigest)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, s.Check(ended, d), context.Canceled)
}

func TestSweep(t *testing.T) {
	s, folder := open(t)
	d := put(t, s, "kept")
	draft := func(text string) *content.Writer {
		w, err := s.Writer(t.Context(), content.FromBytes([]byte(text)), int64(len(text)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text[:2])); err != nil {
			t.Fatal(err)
		}
		return w
	}
	old := draft("old one")
	old.Close()
	oldName := filepath.Join(folder, "sha256")
	for _, name := range names(t, folder) {
		if strings.Contains(name, "draft") {
			oldName = filepath.Join(folder, name)
		}
	}
	hourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(oldName, hourAgo, hourAgo); err != nil {
		t.Fatal(err)
	}
	newer := draft("newer one")
	newer.Close()
	open := draft("open one")
	defer open.Close()

	freed, err := s.Sweep(t.Context(), time.Now().Add(-time.Minute))
	if err != nil || freed != 2 {
		t.Errorf("old ones: %d, %v", freed, err)
	}
	if n := len(names(t, folder)); n != 3 {
		t.Errorf("%d files stay", n)
	}
	freed, err = s.Sweep(t.Context(), time.Now().Add(time.Minute))
	if err != nil || freed != 2 {
		t.Errorf("all: %d, %v", freed, err)
	}
	if n := len(names(t, folder)); n != 2 {
		t.Errorf("%d files stay", n)
	}
	if read(t, s, d) != "kept" {
		t.Error("the blob is gone")
	}
	if _, err := open.Write([]byte("en one")); err != nil {
		t.Fatal(err)
	}
	if _, err := open.Commit(); err != nil {
		t.Errorf("the open draft: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := content.Open(file); err == nil {
		t.Error("opened a file")
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "sha512"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := content.Open(folder); err == nil {
		err := s.Walk(t.Context(), func(content.Info) error { return nil })
		t.Errorf("opened a folder with a file in the way; Walk: %v", err)
	}
}
