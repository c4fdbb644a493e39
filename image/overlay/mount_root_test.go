// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package overlay_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/overlay"
	"github.com/berth-cri/berth/store/content"
)

// mounted mounts what a Mount describes, as the executor does, until the test ends.
func mounted(t *testing.T, m overlay.Mount) string {
	t.Helper()
	target := t.TempDir()
	options := "lowerdir=" + strings.Join(m.Lower, ":")
	if m.Upper != "" {
		options += ",upperdir=" + m.Upper + ",workdir=" + m.Work
	}
	if m.Volatile {
		options += ",volatile"
	}
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		t.Fatalf("%+v: %v", m, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return target
}

// TestRealMounts mounts containers and views: the root has the attributes of the topmost layer that has
// some, a view cannot be written to, and an opaque root hides what is below.
func TestRealMounts(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	s := open(t, t.TempDir())
	// layer makes one with a file of that name, and a root that has a mode if it is given.
	layer := func(name string, mode uint32, opaque bool) content.Digest {
		r := draft(t, s, name, func(l *overlay.Layer) { l.RootGiven, l.RootOpaque = mode != 0, opaque })
		root := r.Draft.Root().Name()
		if mode != 0 {
			if err := errors.Join(unix.Chmod(root, mode), os.Chown(root, 5, 6), unix.Setxattr(root, "user.x", []byte(name), 0)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(filepath.Join(root, "file"), filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		return r.Layer.ID
	}
	base, given, bare, opaque := layer("base", 0o700, false), layer("given", 0o1777, false), layer("bare", 0, false), layer("opaque", 0, true)
	for name, c := range map[string]struct {
		chain []content.Digest
		mode  uint32
		x     string // of user.x
		files []string
	}{
		"given at the top": {[]content.Digest{base, bare, given}, 0o1777, "given", []string{"bare", "base", "given"}},
		"given below":      {[]content.Digest{given, bare}, 0o1777, "given", []string{"bare", "given"}},
		"one":              {[]content.Digest{base}, 0o700, "base", []string{"base"}},
		"none given":       {[]content.Digest{bare}, 0o755, "", []string{"bare"}},
		"opaque":           {[]content.Digest{given, opaque, bare}, 0o755, "", []string{"bare", "opaque"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := s.Container(t.Context(), "c", c.chain)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { wantErr(t, s.RemoveContainer(context.WithoutCancel(t.Context()), "c"), nil) })
			view, err := s.View(c.chain)
			if err != nil {
				t.Fatal(err)
			}
			for what, m := range map[string]overlay.Mount{"container": m, "view": view} {
				path := mounted(t, m)
				var st unix.Stat_t
				if err := unix.Stat(path, &st); err != nil {
					t.Fatal(err)
				}
				if st.Mode&0o7777 != c.mode || (st.Uid == 5) != (c.x != "") || (st.Gid == 6) != (c.x != "") {
					t.Errorf("%s: mode %o, owner %d:%d", what, st.Mode, st.Uid, st.Gid)
				}
				value := make([]byte, 10)
				n, err := unix.Getxattr(path, "user.x", value)
				if got := string(value[:max(n, 0)]); got != c.x || err != nil && !errors.Is(err, unix.ENODATA) {
					t.Errorf("%s: user.x is %q, %v", what, got, err)
				}
				if got := names(t, path); !slices.Equal(got, c.files) {
					t.Errorf("%s: has %q", what, got)
				}
				err = os.WriteFile(path+"/new", nil, 0o600)
				if what == "view" && !errors.Is(err, unix.EROFS) || what == "container" && err != nil {
					t.Errorf("%s: write: %v", what, err)
				}
			}
			if got := names(t, m.Upper); !slices.Contains(got, "new") {
				t.Errorf("upper has %q", got)
			}
		})
	}
	t.Run("no layers", func(t *testing.T) {
		m, err := s.Container(t.Context(), "scratch", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := names(t, mounted(t, m)); len(got) != 0 {
			t.Errorf("has %q", got)
		}
	})
	for _, id := range s.Layers() { // nothing that was mounted has changed a layer
		if got := names(t, rootOf(t, s, id)); len(got) != 1 {
			t.Errorf("layer has %q", got)
		}
	}
}

func rootOf(t *testing.T, s *overlay.Store, id content.Digest) string {
	t.Helper()
	f, err := s.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return f.Name()
}
