// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
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

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/image/overlay"
	"github.com/berth-cri/berth/image/seal"
	"github.com/berth-cri/berth/store/content"
)

func open(t *testing.T, root string) *overlay.Store {
	t.Helper()
	s, err := overlay.Open(root, overlay.Options{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func id(word string) content.Digest { return content.FromBytes([]byte(word)) }

// draft makes a layer with one file of that text.
func draft(t *testing.T, s *overlay.Store, text string, change ...func(*overlay.Layer)) overlay.Ready {
	t.Helper()
	d, err := s.Draft()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Root().Name(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	if err := os.Chtimes(path, now, now); err != nil {
		t.Fatal(err)
	}
	if err := d.Seal().Append(seal.Record{
		Kind: seal.Node, Path: "file", Mode: unix.S_IFREG | 0o600, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
		Size: int64(len(text)), Sum: seal.Sum(0, []byte(text)), ModTime: now,
	}); err != nil {
		t.Fatal(err)
	}
	l := overlay.Layer{ID: id(text), DiffID: id(text), Bytes: 8192, Size: int64(len(text)), Inodes: 2}
	for _, f := range change {
		f(&l)
	}
	return overlay.Ready{Draft: d, Layer: l}
}

func commit(t *testing.T, s *overlay.Store, text string, change ...func(*overlay.Layer)) content.Digest {
	t.Helper()
	r := draft(t, s, text, change...)
	if err := s.Commit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return r.Layer.ID
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || (err == nil) != (want == nil) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

// names lists a folder.
func names(t *testing.T, parts ...string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestLayers(t *testing.T) {
	leak.Check(t, leak.Goroutines(), leak.Descriptors())
	root := t.TempDir()
	s, err := overlay.Open(root, overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := commit(t, s, "a", func(l *overlay.Layer) { l.RootGiven = true })
	b := commit(t, s, "b", func(l *overlay.Layer) { l.Parent = a; l.Bytes = 4096 })

	check := func(s *overlay.Store) {
		t.Helper()
		l, err := s.Layer(b)
		if want := (overlay.Layer{ID: b, DiffID: b, Parent: a, Bytes: 4096, Size: 1, Inodes: 2}); err != nil || l != want {
			t.Errorf("%+v, %v", l, err)
		}
		ids := s.Layers()
		slices.Sort(ids)
		if want := []content.Digest{a, b}; !slices.Equal(ids, want) {
			slices.Sort(want)
			if !slices.Equal(ids, want) {
				t.Errorf("layers %q", ids)
			}
		}
		if bytes, inodes := s.Total(); bytes != 8192+4096 || inodes != 4 {
			t.Errorf("total %d bytes, %d inodes", bytes, inodes)
		}
		for _, id := range ids {
			wantErr(t, s.Verify(t.Context(), id), nil)
		}
		f, err := s.Open(a)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if text, err := os.ReadFile(filepath.Join(f.Name(), "file")); err != nil || string(text) != "a" {
			t.Errorf("%q, %v", text, err)
		}
	}
	check(s)
	again, err := overlay.Open(root, overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	check(again)

	_, err = s.Layer(id("c"))
	wantErr(t, err, overlay.ErrNotFound)
	_, err = s.Open(id("c"))
	wantErr(t, err, overlay.ErrNotFound)
	wantErr(t, s.Verify(t.Context(), id("c")), overlay.ErrNotFound)
	wantErr(t, s.Remove(t.Context(), id("c")), nil)
	if err := s.Remove(t.Context(), "../../etc"); err == nil {
		t.Error("removed a path")
	}
	wantErr(t, s.Remove(t.Context(), b), nil)
	_, err = s.Layer(b)
	wantErr(t, err, overlay.ErrNotFound)
	wantErr(t, s.Drain(t.Context()), nil)
	if left := names(t, root, "trash"); len(left) != 0 {
		t.Errorf("trash %q", left)
	}
	if left := names(t, root, "layers"); len(left) != 1 {
		t.Errorf("layers %q", left)
	}
}

func TestChainID(t *testing.T) {
	// The example of image-spec has no digests; these are by sha256sum.
	a, b := content.Digest("sha256:"+strings.Repeat("a", 64)), content.Digest("sha256:"+strings.Repeat("b", 64))
	if got := overlay.ChainID("", a); got != a {
		t.Errorf("lowest: %s", got)
	}
	if got, want := overlay.ChainID(a, b), content.FromBytes([]byte("sha256:"+strings.Repeat("a", 64)+" sha256:"+strings.Repeat("b", 64))); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestTwice has two pulls commit one layer: the first stays, the second leaves nothing.
func TestTwice(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	first, second := draft(t, s, "a"), draft(t, s, "a")
	wantErr(t, s.Commit(t.Context(), first), nil)
	f, err := s.Open(first.Layer.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Commit(t.Context(), second), nil)
	after, err := os.Stat(f.Name())
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("was replaced: %v", err)
	}
	wantErr(t, s.Commit(t.Context(), second), overlay.ErrDone)
	wantErr(t, second.Draft.Discard(), nil)
	wantErr(t, s.Drain(t.Context()), nil)
	if left := append(names(t, root, "drafts"), names(t, root, "trash")...); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}

// TestCrash stops a commit of two layers before each of its steps. What the next process finds is all of
// a layer or nothing of it, and the commit can be made again.
func TestCrash(t *testing.T) {
	crash := errors.New("crash")
	steps := []string{"seal", "seal", "sync", "rename", "rename", "sync folder"}
	for at := range len(steps) + 1 {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			var taken []string
			s.OnStep(func(name string) error {
				if len(taken) == at {
					return crash
				}
				taken = append(taken, name)
				return nil
			})
			err := s.Commit(t.Context(), draft(t, s, "a"), draft(t, s, "b"))
			if want := map[bool]error{true: crash}[at < len(steps)]; !errors.Is(err, want) {
				t.Fatal(err)
			}
			if !slices.Equal(taken, steps[:at]) {
				t.Errorf("steps %q", taken)
			}
			s.Close()

			s = open(t, root)
			renamed := max(0, min(at-3, 2))
			if got := s.Layers(); len(got) != renamed {
				t.Errorf("%d layers, want %d", len(got), renamed)
			}
			for _, id := range s.Layers() {
				wantErr(t, s.Verify(t.Context(), id), nil)
			}
			if left := names(t, root, "drafts"); len(left) != 0 {
				t.Errorf("drafts %q", left)
			}
			wantErr(t, s.Drain(t.Context()), nil)
			wantErr(t, s.Commit(t.Context(), draft(t, s, "a"), draft(t, s, "b")), nil)
			wantErr(t, s.Verify(t.Context(), id("a")), nil)
			wantErr(t, s.Verify(t.Context(), id("b")), nil)
		})
	}
}

func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"zeros":         func(p string) error { return os.WriteFile(p+"/fs/file", make([]byte, 5), 0o600) },
		"truncated":     func(p string) error { return os.Truncate(p+"/fs/file", 2) },
		"no file":       func(p string) error { return os.Remove(p + "/fs/file") },
		"no content":    func(p string) error { return os.RemoveAll(p + "/fs") },
		"no root":       func(p string) error { return os.RemoveAll(p + "/root") },
		"no seal":       func(p string) error { return os.Remove(p + "/seal") },
		"empty seal":    func(p string) error { return os.Truncate(p+"/seal", 0) },
		"no layer.json": func(p string) error { return os.Remove(p + "/layer.json") },
		"empty json":    func(p string) error { return os.Truncate(p+"/layer.json", 0) },
		"another's":     func(p string) error { return os.WriteFile(p+"/layer.json", []byte(`{"id":"sha256:00"}`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			id := commit(t, s, "hello")
			s.Close()
			if err := damage(filepath.Join(root, "layers", "sha256-"+id.Hex())); err != nil {
				t.Fatal(err)
			}
			s = open(t, root)
			wantErr(t, s.Verify(t.Context(), id), overlay.ErrDamaged)
			if len(s.Layers()) != 1 {
				t.Error("layer is not listed")
			}
			if strings.Contains(name, "json") || name == "another's" {
				_, err := s.View([]content.Digest{id})
				wantErr(t, err, overlay.ErrDamaged)
			}
			wantErr(t, s.Remove(t.Context(), id), nil)
			commit(t, s, "hello")
			wantErr(t, s.Verify(t.Context(), id), nil)
		})
	}
}

func TestStrangers(t *testing.T) {
	root := t.TempDir()
	wantErr(t, open(t, root).Close(), nil)
	strange := filepath.Join(root, "layers", "lost+found")
	if err := os.Mkdir(strange, 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, root)
	if got := s.Layers(); len(got) != 0 {
		t.Errorf("layers %q", got)
	}
	if _, err := os.Stat(strange); err != nil {
		t.Error(err)
	}
}

func TestMounts(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	given := func(l *overlay.Layer) { l.RootGiven = true }
	a, b, c := commit(t, s, "a", given), commit(t, s, "b"), commit(t, s, "c", func(l *overlay.Layer) { l.RootOpaque = true })
	path := func(id content.Digest, name string) string {
		return filepath.Join(root, "layers", "sha256-"+id.Hex(), name)
	}
	empty := filepath.Join(root, "empty")
	for name, test := range map[string]struct {
		chain     []content.Digest
		container []string
		view      []string
		err       error
	}{
		"none":     {nil, []string{empty}, nil, nil},
		"one":      {[]content.Digest{a}, []string{path(a, "fs")}, []string{path(a, "root"), path(a, "fs")}, nil},
		"two":      {[]content.Digest{a, b}, []string{path(b, "fs"), path(a, "fs")}, []string{path(a, "root"), path(b, "fs"), path(a, "fs")}, nil},
		"no root":  {[]content.Digest{b}, []string{path(b, "fs")}, []string{empty, path(b, "fs")}, nil},
		"opaque":   {[]content.Digest{a, c, b}, []string{path(b, "fs"), path(c, "fs")}, []string{empty, path(b, "fs"), path(c, "fs")}, nil},
		"missing":  {[]content.Digest{a, id("x")}, nil, nil, overlay.ErrNotFound},
		"too many": {slices.Repeat([]content.Digest{a}, 500), nil, nil, overlay.ErrTooManyLayers},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // the second time it is there
				m, err := s.Container(t.Context(), "c1", test.chain)
				wantErr(t, err, test.err)
				if !slices.Equal(m.Lower, test.container) {
					t.Errorf("lower %q", m.Lower)
				}
				if folder := filepath.Join(root, "containers/c1"); err == nil && (m.Upper != folder+"/upper" || m.Work != folder+"/work" || !m.Volatile) {
					t.Errorf("%+v", m)
				}
			}
			wantErr(t, s.RemoveContainer(t.Context(), "c1"), nil)
			m, err := s.View(test.chain)
			if test.chain == nil {
				test.err = overlay.ErrNoLayers
			}
			wantErr(t, err, test.err)
			if !slices.Equal(m.Lower, test.view) || m.Upper != "" || m.Volatile {
				t.Errorf("view %+v", m)
			}
		})
	}
}

func TestContainers(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	for _, name := range []string{"", ".", "..", "a/b", ".hidden", strings.Repeat("x", 129), "a\n", "a:b", "a,b"} {
		_, err := s.Container(t.Context(), name, nil)
		wantErr(t, err, overlay.ErrName)
		wantErr(t, s.RemoveContainer(t.Context(), name), overlay.ErrName)
		_, err = s.Measure(t.Context(), name)
		wantErr(t, err, overlay.ErrName)
	}
	_, err := s.Measure(t.Context(), "none")
	wantErr(t, err, overlay.ErrNotFound)
	wantErr(t, s.RemoveContainer(t.Context(), "none"), nil)

	m, err := s.Container(t.Context(), "web", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Usage("web"); ok {
		t.Error("usage before it was measured")
	}
	if err := os.MkdirAll(m.Upper+"/d/e", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(m.Upper+"/d/f", make([]byte, 10_000), 0o600), os.Link(m.Upper+"/d/f", m.Upper+"/d/g"), os.Link(m.Upper+"/d/f", m.Upper+"/h")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Container(t.Context(), "web", nil); err != nil { // asked again, it keeps what is there
		t.Fatal(err)
	}
	var want int64
	for _, path := range []string{"", "/d", "/d/e", "/d/f"} {
		var st unix.Stat_t
		if err := unix.Lstat(m.Upper+path, &st); err != nil {
			t.Fatal(err)
		}
		want += st.Blocks * 512
	}
	u, err := s.Measure(t.Context(), "web")
	if err != nil || u.Inodes != 4 || u.Bytes != want || u.Bytes < 10_000 || time.Since(u.Time) > time.Hour {
		t.Errorf("%+v, want %d bytes: %v", u, want, err)
	}
	if last, ok := s.Usage("web"); !ok || last != u {
		t.Errorf("%+v", last)
	}
	if got, err := s.Containers(); err != nil || !slices.Equal(got, []string{"web"}) {
		t.Errorf("%q, %v", got, err)
	}
	wantErr(t, s.RemoveContainer(t.Context(), "web"), nil)
	if _, ok := s.Usage("web"); ok {
		t.Error("usage after it was removed")
	}
	wantErr(t, s.Drain(t.Context()), nil)
	if left := append(names(t, root, "containers"), names(t, root, "trash")...); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}

// TestDeepTrash has a container that has nested its folders deeper than anybody has descriptors or a path for.
func TestDeepTrash(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	m, err := s.Container(t.Context(), "deep", nil)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(m.Upper, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	unix.Close(fd)
	if u, err := s.Measure(t.Context(), "deep"); err != nil || u.Inodes < 60 {
		t.Errorf("%+v, %v", u, err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = 200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.RemoveContainer(t.Context(), "deep"), nil)
	wantErr(t, s.Drain(t.Context()), nil)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if left := names(t, root, "trash"); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}

// TestTrashGoesOn has a process die with things in the trash: the next one deletes them.
func TestTrashGoesOn(t *testing.T) {
	root := t.TempDir()
	wantErr(t, open(t, root).Close(), nil)
	if err := os.MkdirAll(filepath.Join(root, "trash/x/y"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "trash/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, root)
	wantErr(t, s.Drain(t.Context()), nil)
	if left := names(t, root, "trash"); len(left) != 0 {
		t.Errorf("left %q", left)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := draft(t, s, "a")
	wantErr(t, s.Commit(ctx, r), context.Canceled)
	wantErr(t, r.Draft.Discard(), nil)
	wantErr(t, s.Remove(ctx, id("a")), context.Canceled)
}
