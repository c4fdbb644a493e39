// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package unpack_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tarInOrder extracts archives one above the other with GNU tar, and removes what their whiteouts say
// when it comes to them.
func tarInOrder(t *testing.T, layers [][]*tar.Header) string {
	t.Helper()
	folder := t.TempDir()
	for _, entries := range layers {
		var part []*tar.Header
		flush := func() {
			cmd := exec.Command("tar", "--extract", "--preserve-permissions", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--directory", folder)
			cmd.Stdin = bytes.NewReader(archive(t, part...))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v: %s", err, out)
			}
			part = nil
		}
		for _, h := range entries {
			parent, base := path.Split(h.Name)
			hides, isWhiteout := strings.CutPrefix(base, ".wh.")
			isFolder := slices.ContainsFunc(part, func(other *tar.Header) bool {
				return other.Typeflag == tar.TypeDir && other.Name == h.Name || strings.HasPrefix(other.Name, h.Name+"/")
			})
			if info, err := os.Lstat(filepath.Join(folder, h.Name)); err == nil && info.IsDir() {
				isFolder = true
			}
			if isWhiteout {
				flush()
				remove := []string{filepath.Join(folder, parent, hides)}
				if base == ".wh..wh..opq" {
					remove, _ = filepath.Glob(filepath.Join(folder, parent, "*"))
				}
				for _, path := range remove {
					if err := os.RemoveAll(path); err != nil {
						t.Fatal(err)
					}
				}
				continue
			}
			if isFolder && h.Typeflag != tar.TypeDir { // tar refuses to replace a folder that is not empty
				flush()
				if err := os.RemoveAll(filepath.Join(folder, h.Name)); err != nil {
					t.Fatal(err)
				}
			}
			part = append(part, h)
		}
		flush()
	}
	return folder
}

// overlaid calls f with a read-only overlay of layers, the lowest first, in a mount namespace of its own.
func overlaid(t *testing.T, layers []*layer, f func(path string)) {
	t.Helper()
	target, empty := t.TempDir(), t.TempDir()
	if err := os.Chmod(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	lower := []string{}
	for _, l := range layers {
		lower = append(lower, l.path)
	}
	lower = append(slices.Clone(lower), "")
	copy(lower[1:], lower)
	lower[0] = empty // there must be two
	slices.Reverse(lower)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, and its namespace with it
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
				return fmt.Errorf("overlay: %w", err)
			}
			f(target)
			return unix.Unmount(target, unix.MNT_DETACH)
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// folderTime is the time of a folder: tar's depends on when it ran.
var folderTime = regexp.MustCompile(`(?m)^(.*/ [0-7]+.*?) time=\d+`)

func compare(t *testing.T, layers [][]*tar.Header) {
	t.Helper()
	var ours []*layer
	for _, entries := range layers {
		lower := slices.Clone(ours)
		slices.Reverse(lower)
		ours = append(ours, unpacked(t, entries, lower...))
	}
	normal := func(lines []string) []string {
		lines = slices.Clone(lines)
		for i, line := range lines {
			lines[i] = folderTime.ReplaceAllString(line, "$1")
		}
		return lines[1:] // the root is a matter of who makes the overlay
	}
	want := normal(list(t, tarInOrder(t, layers)))
	overlaid(t, ours, func(path string) {
		got := normal(list(t, path))
		equal(t, got, want)
	})
	if t.Failed() {
		for i, entries := range layers {
			for _, h := range entries {
				t.Logf("layer %d: %c %s %s", i, h.Typeflag, h.Name, h.Linkname)
			}
		}
	}
}

func TestAsTar(t *testing.T) {
	base := []*tar.Header{
		root(), dir("tmp", mode(0o1777)), dir("usr", mode(0o751), owner(3, 4), attr("user.x", "y")), dir("usr/bin"), file("usr/bin/a", "a", mode(0o4755)),
		file("usr/bin/b", "b"), symlink("bin", "usr/bin"), dir("etc"), file("etc/conf", "1"), dir("etc/d", mode(0o750)), file("etc/d/x", "x"), entry(tar.TypeChar, "null", device(1, 3)),
	}
	for name, layers := range map[string][][]*tar.Header{
		"one":                         {base},
		"implicit parents":            {base, {file("tmp/x", "1"), file("usr/bin/c", "c")}},
		"implicit in every one":       {base, {file("usr/1", "1")}, {dir("usr", mode(0o700), attr("user.x", "z"))}, {file("usr/2", "2")}},
		"hard link to below":          {base, {hardlink("usr/bin/c", "usr/bin/a")}},
		"hard link two below":         {base, {dir("x")}, {hardlink("x/c", "usr/bin/a"), hardlink("x/d", "x/c")}},
		"folder by file and and back": {base, {file("etc", "file")}, {dir("etc"), file("etc/new", "1")}},
		"the same in one":             {base, {file("etc", "file"), dir("etc"), file("etc/new", "1")}},
		"folder by symbolic link":     {base, {symlink("etc", "usr"), file("usr/x", "1")}},
		"removed and made anew":       {base, {file(".wh.etc", ""), file("etc/new", "1")}},
		"opaque":                      {base, {dir("etc"), file("etc/.wh..wh..opq", ""), file("etc/new", "1")}},
		"opaque and implicit":         {base, {file("etc/.wh..wh..opq", ""), file("etc/new", "1")}},
		"implicit below opaque":       {base, {file("etc/.wh..wh..opq", ""), file("etc/d/new", "1")}},
		"implicit above opaque":       {base, {dir("etc"), file("etc/.wh..wh..opq", ""), dir("etc/d", mode(0o711)), file("etc/d/new", "1")}, {file("etc/d/newer", "1")}},
		"opaque below opaque":         {base, {dir("etc"), file("etc/.wh..wh..opq", ""), dir("etc/d"), file("etc/d/.wh..wh..opq", "")}},
		"link and then remove":        {base, {hardlink("usr/bin/c", "usr/bin/a"), file("usr/bin/.wh.a", "")}},
		"link and then replace":       {base, {hardlink("usr/bin/c", "usr/bin/a"), file("usr/bin/a", "new")}},
		"modes of folders":            {base, {dir("tmp", mode(0o700)), dir("usr/bin", mode(0o2755))}},
	} {
		t.Run(name, func(t *testing.T) { compare(t, layers) })
	}
}

// TestAsTarRandom lets chance make layers, of few names so that they collide.
func TestAsTarRandom(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			g := generator{r: rand.New(rand.NewPCG(seed, 0)), now: map[string]*thing{"": {kind: tar.TypeDir}}}
			var layers [][]*tar.Header
			for range 3 {
				layers = append(layers, g.layer())
			}
			compare(t, layers)
		})
	}
}

// A generator makes layers that tar can extract, and knows what there is after each entry.
type generator struct {
	r   *rand.Rand
	now map[string]*thing // by path
	own map[string]bool   // paths of the layer that is being made
	n   int
}

type thing struct {
	kind  byte
	layer int
	names int
}

func (g *generator) layer() []*tar.Header {
	g.n++
	g.own = make(map[string]bool)
	var out []*tar.Header
	for range 12 {
		if h := g.entry(); h != nil {
			out = append(out, h)
		}
	}
	return out
}

func (g *generator) entry() *tar.Header {
	folders := g.paths(func(_ string, th *thing) bool { return th.kind == tar.TypeDir })
	parent := folders[g.r.IntN(len(folders))]
	name := strings.TrimPrefix(path.Join(parent, string(rune('a'+g.r.IntN(4)))), "/")
	what := g.r.IntN(9)
	if th := g.now[name]; what <= 4 && g.r.IntN(4) == 0 && (th == nil || th.kind == tar.TypeDir) { // below a folder without an entry
		if parent = name; th == nil {
			g.put(parent, tar.TypeDir)
			delete(g.own, parent)
		}
		name = path.Join(parent, string(rune('a'+g.r.IntN(4))))
	}
	text := fmt.Sprintf("%d-%d", g.n, g.r.IntN(1000))
	perm := mode([]int64{0o755, 0o700, 0o4711, 0o1777, 0o640}[g.r.IntN(5)])
	switch what {
	case 0, 1:
		if th := g.now[name]; th == nil || th.kind != tar.TypeDir {
			g.put(name, tar.TypeDir)
		}
		g.own[name] = true
		return dir(name, perm)
	case 2, 3:
		g.put(name, tar.TypeReg)
		return file(name, text, perm, owner(g.r.IntN(3), g.r.IntN(3)))
	case 4:
		g.put(name, tar.TypeSymlink)
		return symlink(name, text)
	case 5, 6:
		// A lower file that has two names is one that no overlay could keep together.
		files := g.paths(func(p string, th *thing) bool {
			return th.kind == tar.TypeReg && (th.layer == g.n || th.names == 1) && p != name && !strings.HasPrefix(p, name+"/")
		})
		if len(files) == 0 {
			return nil
		}
		target := files[g.r.IntN(len(files))]
		th := g.now[target]
		g.put(name, tar.TypeReg)
		g.now[name] = th
		th.names++
		th.layer = g.n // it is copied up
		return hardlink(name, target)
	case 7:
		// Whiteouts are for lower layers: this one has not touched what they hide.
		if g.now[name] == nil || g.touched(name) {
			return nil
		}
		g.remove(name)
		g.own[name] = true
		return file(path.Join(parent, ".wh."+path.Base(name)), "")
	default:
		if parent == "" || g.touched(parent) {
			return nil
		}
		for _, p := range g.paths(func(p string, _ *thing) bool { return strings.HasPrefix(p, parent+"/") }) {
			g.remove(p)
		}
		g.own[parent] = true
		return file(path.Join(parent, ".wh..wh..opq"), "")
	}
}

// paths returns those that want wants, sorted.
func (g *generator) paths(want func(string, *thing) bool) []string {
	var out []string
	for p, th := range g.now {
		if want(p, th) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// touched says whether this layer has something at a path, or above or below it.
func (g *generator) touched(name string) bool {
	for p := range maps.Keys(g.own) {
		if p == name || strings.HasPrefix(p, name+"/") || strings.HasPrefix(name, p+"/") {
			return true
		}
	}
	return false
}

func (g *generator) put(name string, kind byte) {
	g.remove(name)
	g.now[name] = &thing{kind: kind, layer: g.n, names: 1}
	g.own[name] = true
}

func (g *generator) remove(name string) {
	for _, p := range g.paths(func(p string, _ *thing) bool { return p == name || strings.HasPrefix(p, name+"/") }) {
		g.now[p].names--
		delete(g.now, p)
	}
}
