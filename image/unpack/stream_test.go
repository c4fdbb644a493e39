// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/image/unpack"
	"github.com/berth-cri/berth/store/content"
)

func zstandard(t testing.TB, b []byte, o ...zstd.EOption) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, o...)
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

// noise is bytes that no compression makes smaller.
func noise(n int) string {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(b)
	return string(b)
}

func TestStreams(t *testing.T) {
	raw := archive(t, root(), file("big", noise(1<<20)), file("small", "x"))
	half := len(raw) / 2
	gz, zs := zip(t, raw), zstandard(t, raw)
	otherSum := slices.Clone(gz)
	otherSum[len(gz)-8] ^= 1
	skip := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "skip"...)
	for name, c := range map[string]struct {
		blob []byte
		want error
	}{
		"plain":                     {raw, nil},
		"gzip":                      {gz, nil},
		"gzip, two members":         {slices.Concat(zip(t, raw[:half]), zip(t, raw[half:])), nil},
		"gzip, an empty member":     {slices.Concat(zip(t, nil), gz, zip(t, nil)), nil},
		"gzip, zeros behind":        {slices.Concat(gz, make([]byte, 1000)), nil},
		"gzip, garbage behind":      {slices.Concat(gz, []byte("garbage, and a lot of it")), unpack.ErrArchive},
		"gzip, garbage after zeros": {slices.Concat(gz, make([]byte, 10), []byte{1}), unpack.ErrArchive},
		"gzip, half a header":       {slices.Concat(gz, []byte{0x1f, 0x8b, 8}), unpack.ErrArchive},
		"gzip, cut":                 {gz[:half], unpack.ErrArchive},
		"gzip, cut in its trailer":  {gz[:len(gz)-3], unpack.ErrArchive},
		"gzip, other sum":           {otherSum, unpack.ErrArchive},
		"zstd":                      {zs, nil},
		"zstd, two frames":          {slices.Concat(zstandard(t, raw[:half]), zstandard(t, raw[half:])), nil},
		"zstd, frames to skip":      {slices.Concat(skip, zs, skip), nil},
		"zstd, garbage behind":      {slices.Concat(zs, []byte("garbage")), unpack.ErrArchive},
		"zstd, cut":                 {zs[:half], unpack.ErrArchive},
		"zstd, window of 16 MiB":    {zstandard(t, raw, zstd.WithWindowSize(16<<20)), nil},
		"zstd, window of 64 MiB":    {zstandard(t, raw, zstd.WithWindowSize(64<<20)), unpack.ErrArchive},
		"plain, cut":                {raw[:half], unpack.ErrArchive},
		"plain, no end":             {raw[:len(raw)-1024], nil},
		"plain, more behind":        {slices.Concat(raw, []byte("garbage")), nil},
		"plain, megabytes behind":   {slices.Concat(raw, make([]byte, 4<<20)), nil},
		"not a tar":                 {[]byte(strings.Repeat("garbage ", 100)), unpack.ErrArchive},
		"one byte":                  {[]byte("x"), unpack.ErrArchive},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayer(t)
			err := l.unpack(unpack.New(unpack.Options{}), c.blob)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("error is %v, want %v", err, c.want)
			}
			if err != nil {
				return
			}
			want := digest(raw)
			if strings.HasPrefix(name, "plain") {
				want = digest(c.blob)
			}
			if l.result.DiffID != want {
				t.Errorf("diffID is %s, want %s", l.result.DiffID, want)
			}
			equal(t, l.tree(), []string{"/ 755", "big 644 \"" + string(digest([]byte(noise(1<<20)))) + "\"", "small 644 \"x\""})
		})
	}
	t.Run("empty", func(t *testing.T) {
		l := newLayer(t)
		if err := l.unpack(unpack.New(unpack.Options{}), nil); err != nil || l.result.DiffID != digest(nil) {
			t.Errorf("%v", err)
		}
	})
}

func TestMediaTypes(t *testing.T) {
	for mediaType, want := range map[string]bool{
		"application/vnd.oci.image.layer.v1.tar":                       true,
		"application/vnd.oci.image.layer.v1.tar+gzip":                  true,
		"application/vnd.oci.image.layer.v1.tar+zstd":                  true,
		"application/vnd.oci.image.layer.v1.tar+zstd; x=y":             true,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
		"application/vnd.docker.image.rootfs.diff.tar":                 true,
		"application/vnd.docker.image.rootfs.diff.tar.gzip":            true,
		"application/vnd.docker.image.rootfs.diff.tar.zstd":            true,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    true,
		"application/vnd.oci.image.layer.v1.tar+xz":                    false,
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted":        false,
		"application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted":  false,
		"application/vnd.oci.image.config.v1+json":                     false,
		"application/vnd.cncf.helm.chart.content.v1.tar+gzip":          false,
		"": false,
	} {
		if unpack.IsLayer(mediaType) != want {
			t.Errorf("%q: %v", mediaType, !want)
		}
	}
	l := newLayer(t)
	_, err := unpack.New(unpack.Options{}).Unpack(t.Context(), unpack.Source{Blob: strings.NewReader(""), MediaType: "text/plain"}, l.target)
	if !errors.Is(err, unpack.ErrMediaType) {
		t.Error(err)
	}
}

func TestDiffID(t *testing.T) {
	raw := archive(t, root(), file("a", "1"))
	for want, err := range map[string]error{"": nil, string(digest(raw)): nil, string(digest([]byte("x"))): unpack.ErrDiffID} {
		l := newLayer(t)
		_, got := unpack.New(unpack.Options{}).Unpack(t.Context(), unpack.Source{
			Blob: bytes.NewReader(zip(t, raw)), MediaType: plain, DiffID: content.Digest(want),
		}, l.target)
		if !errors.Is(got, err) || (got == nil) != (err == nil) {
			t.Errorf("%q: %v", want, got)
		}
	}
}

// TestBlobError has the blob fail: its error arrives as it is, and nothing keeps running.
func TestBlobError(t *testing.T) {
	leak.Check(t, leak.Goroutines(), leak.Descriptors())
	broken := errors.New("connection reset")
	raw := archive(t, root(), file("big", noise(2<<20)))
	for name, blob := range map[string][]byte{"plain": raw, "gzip": zip(t, raw), "zstd": zstandard(t, raw)} {
		for _, n := range []int{0, 1, 100, 300 << 10, 1 << 20} {
			l := newLayer(t)
			_, err := unpack.New(unpack.Options{}).Unpack(t.Context(), unpack.Source{
				Blob: io.MultiReader(bytes.NewReader(blob[:n]), iotest.ErrReader(broken)), MediaType: plain,
			}, l.target)
			if !errors.Is(err, broken) || errors.Is(err, unpack.ErrArchive) {
				t.Errorf("%s after %d: %v", name, n, err)
			}
		}
	}
}

func TestCancel(t *testing.T) {
	leak.Check(t, leak.Goroutines(), leak.Descriptors())
	raw := archive(t, root(), file("big", noise(2<<20)))
	ctx, cancel := context.WithCancelCause(t.Context())
	tired := errors.New("nobody waits any more")
	read := 0
	blob := readerFunc(func(p []byte) (int, error) {
		n := copy(p, raw[read:])
		if read += n; read > 1<<20 {
			cancel(tired)
		}
		return n, nil
	})
	l := newLayer(t)
	if _, err := unpack.New(unpack.Options{}).Unpack(ctx, unpack.Source{Blob: blob, MediaType: plain}, l.target); !errors.Is(err, tired) {
		t.Error(err)
	}
}

// TestStopsReading has an archive be refused at its beginning: the rest is not waited for.
func TestStopsReading(t *testing.T) {
	leak.Check(t, leak.Goroutines(), leak.Descriptors())
	raw := archive(t, file("../x", "", format(tar.FormatUSTAR), modTime(time.Unix(1, 0))))[:512]
	endless := io.MultiReader(bytes.NewReader(raw), readerFunc(func(p []byte) (int, error) { return len(p), nil }))
	l := newLayer(t)
	if _, err := unpack.New(unpack.Options{}).Unpack(t.Context(), unpack.Source{Blob: endless, MediaType: plain}, l.target); !errors.Is(err, unpack.ErrName) {
		t.Error(err)
	}
}

// TestWindows has many layers with large windows share a budget for one: each gets its turn, and one that
// is given up frees its place in the queue.
func TestWindows(t *testing.T) {
	leak.Check(t, leak.Goroutines(), leak.Descriptors())
	raw := archive(t, root(), file("big", noise(1<<20)))
	large := zstandard(t, raw, zstd.WithWindowSize(32<<20))
	u := unpack.New(unpack.Options{Windows: 1})

	r, w := io.Pipe()
	started := make(chan error, 1)
	first := newLayer(t)
	go func() {
		_, err := u.Unpack(t.Context(), unpack.Source{Blob: r, MediaType: plain}, first.target)
		started <- err
	}()
	if _, err := w.Write(large[:500_000]); err != nil { // it has its window now: more was read than the head
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	second := newLayer(t)
	_, err := u.Unpack(ctx, unpack.Source{Blob: bytes.NewReader(large), MediaType: plain}, second.target)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second did not wait: %v", err)
	}
	done := make(chan error, 3)
	for range cap(done) {
		l := newLayer(t)
		go func() { done <- l.unpack(u, large) }()
	}
	if _, err := w.Write(large[500_000:]); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := <-started; err != nil {
		t.Error(err)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// FuzzUnpack has any bytes as an archive: whatever they say, nothing is made beside the folder, and what
// was accepted agrees with its list.
func FuzzUnpack(f *testing.F) {
	for _, entries := range [][]*tar.Header{
		{root(), dir("d"), file("d/a", "hello"), symlink("d/s", "../../etc"), hardlink("h", "d/a"), file("d/s/x", "1")},
		{symlink("up", "../.."), file("up/x", "1"), symlink("abs", "/"), file("abs/y", "2"), hardlink("z", "up/outside")},
		{file("../x", ""), file("/y", ""), file(".wh.z", "")},
		{file("a", "1", attr("user.x", "y")), file("a", "2"), symlink("a", "b"), dir("a"), hardlink("b", "lower")},
	} {
		f.Add(archive(f, entries...))
	}
	f.Add(zip(f, archive(f, root(), file("a", "1"))))
	u := unpack.New(unpack.Options{Limits: unpack.Limits{Bytes: 8 << 20, Sparse: 1 << 20, Entries: 1000}})
	f.Fuzz(func(t *testing.T, blob []byte) {
		l := newLayer(t)
		outside := list(t, strings.TrimSuffix(l.path, "/fs"))
		err := l.unpack(u, blob)
		if err == nil && l.result.Dependent() {
			err = l.settle()
		}
		if err == nil {
			l.check()
		}
		inside := func(line string) bool { return strings.HasPrefix(line, "fs/") || strings.HasPrefix(line, "/") }
		before := slices.DeleteFunc(outside, inside)
		after := slices.DeleteFunc(list(t, strings.TrimSuffix(l.path, "/fs")), inside)
		equal(t, after, before)
	})
}
