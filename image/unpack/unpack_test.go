// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/unpack"
)

func root(change ...func(*tar.Header)) *tar.Header { return dir("./", change...) }

func TestEntries(t *testing.T) {
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 200)
	for name, c := range map[string]struct {
		entries []*tar.Header
		want    []string
	}{
		"nothing":   {nil, []string{"/ 755 time=0"}},
		"the root":  {[]*tar.Header{root(mode(0o1777))}, []string{"/ 1777"}},
		"root as /": {[]*tar.Header{dir("/", mode(0o711))}, []string{"/ 711"}},
		"files": {
			[]*tar.Header{root(), dir("d/"), file("d/a", "hello"), file("d/empty", ""), symlink("d/s", "../../../etc/passwd"), hardlink("h", "d/a")},
			[]string{"/ 755", "d/ 755", "d/a 644 \"hello\"", "d/empty 644 \"\"", "d/s -> ../../../etc/passwd", "h = d/a"},
		},
		"modes": {
			[]*tar.Header{root(), file("suid", "", mode(0o104755)), file("little", "x", mode(0o400)), dir("sgid", mode(0o2775)), dir("sgid/d"), file("sgid/f", "")},
			[]string{"/ 755", "little 400 \"x\"", "sgid/ 2775", "sgid/d/ 755", "sgid/f 644 \"\"", "suid 4755 \"\""},
		},
		"times": {
			[]*tar.Header{root(), dir("d", modTime(time.Unix(1, 0))), file("d/f", "", modTime(time.Unix(2, 0))), symlink("d/s", "x"), file("d/old", "", modTime(time.Unix(-5, 0)))},
			[]string{"/ 755", "d/ 755 time=1", "d/f 644 \"\" time=2", "d/old 644 \"\" time=-5", "d/s -> x"},
		},
		"names": {
			[]*tar.Header{root(), file("./a", "1"), file("/b", "2"), file("c//d", "3"), dir("./e/./f//"), file("not-\xff\xfe-utf8", "4", format(tar.FormatGNU)), file("line\nfeed", "5")},
			[]string{"/ 755", "a 644 \"1\"", "b 644 \"2\"", "c/ 755 time=0", "c/d 644 \"3\"", "e/ 755 time=0", "e/f/ 755", "line\nfeed 644 \"5\"", "not-\xff\xfe-utf8 644 \"4\" time=1600000000"},
		},
		"fifo and contiguous file": {
			[]*tar.Header{root(), entry(tar.TypeFifo, "p", mode(0o620)), entry(tar.TypeCont, "c")},
			[]string{"/ 755", "c 644 \"\"", fmt.Sprintf("p other %o", unix.S_IFIFO|0o620)},
		},
		"attributes": {
			[]*tar.Header{root(attr("user.r", "1")), file("f", "", attr("user.a", "x\x00y"), attr("security.selinux", "label"), attr("security.ima", "z")), dir("d", attr("user.b", ""))},
			[]string{"/ 755 user.r=\"1\"", "d/ 755 user.b=\"\"", "f 644 \"\" user.a=\"x\\x00y\""},
		},
		"global header": {
			[]*tar.Header{{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "abc"}}, root()},
			[]string{"/ 755"},
		},
		"long names": {
			[]*tar.Header{root(), file(long, "pax"), file(long+"g", "gnu", format(tar.FormatGNU)), symlink("s", long)},
			nil,
		},
		"through a symbolic link": {
			[]*tar.Header{root(), dir("usr"), symlink("lib", "usr/lib"), file("lib/a", "1"), symlink("abs", "/usr/lib"), file("abs/b", "2"), symlink("usr/up", "../../../lib"), file("usr/up/c", "3")},
			[]string{"/ 755", "abs -> /usr/lib", "lib -> usr/lib", "usr/ 755", "usr/lib/ 755 time=0", "usr/lib/a 644 \"1\"", "usr/lib/b 644 \"2\"", "usr/lib/c 644 \"3\"", "usr/up -> ../../../lib"},
		},
		"through an absolute one, from below": {
			[]*tar.Header{root(), dir("usr"), symlink("usr/abs", "/etc"), file("usr/abs/d", "1"), hardlink("x", "usr/abs/d")},
			[]string{"/ 755", "etc/ 755 time=0", "etc/d 644 \"1\"", "usr/ 755", "usr/abs -> /etc", "x = etc/d"},
		},
		"hard link to a symbolic link": {
			[]*tar.Header{root(), symlink("s", "x"), hardlink("h", "s")},
			[]string{"/ 755", "h -> x", "s = h"},
		},
		"hard link to itself":      {[]*tar.Header{root(), file("a", "1"), hardlink("a", "./a")}, []string{"/ 755", "a 644 \"1\""}},
		"hard link in the way":     {[]*tar.Header{root(), file("a", "1"), file("b", "2"), hardlink("b", "/a")}, []string{"/ 755", "a 644 \"1\"", "b = a"}},
		"hard link over a folder":  {[]*tar.Header{root(), file("a", "1"), file("b/c", "2"), hardlink("b", "a")}, []string{"/ 755", "a 644 \"1\"", "b = a"}},
		"hard link's link removed": {[]*tar.Header{root(), file("a", "1"), hardlink("b", "a"), file("a", "2")}, []string{"/ 755", "a 644 \"2\"", "b 644 \"1\""}},
	} {
		t.Run(name, func(t *testing.T) {
			l := unpacked(t, c.entries)
			if c.want != nil {
				equal(t, l.tree(), c.want)
				return
			}
			for path, text := range map[string]string{long: "pax", long + "g": "gnu", "s": ""} {
				b, err := os.ReadFile(filepath.Join(l.path, path))
				if path == "s" {
					text = "pax"
				}
				if err != nil || string(b) != text {
					t.Errorf("%q, %v", b, err)
				}
			}
		})
	}
}

// TestReplace has an archive name a path twice: as with tar, the later entry wins.
func TestReplace(t *testing.T) {
	for name, c := range map[string]struct {
		entries []*tar.Header
		want    []string
	}{
		"file by file":           {[]*tar.Header{root(), file("a", "1"), file("a", "22")}, []string{"/ 755", "a 644 \"22\""}},
		"symbolic link by file":  {[]*tar.Header{root(), file("t", "safe"), symlink("a", "t"), file("a", "22")}, []string{"/ 755", "a 644 \"22\"", "t 644 \"safe\""}},
		"file by symbolic link":  {[]*tar.Header{root(), file("a", "1"), symlink("a", "t")}, []string{"/ 755", "a -> t"}},
		"folder by file":         {[]*tar.Header{root(), dir("a"), dir("a/b"), file("a/b/c", "1"), file("a", "22")}, []string{"/ 755", "a 644 \"22\""}},
		"folder by link":         {[]*tar.Header{root(), dir("b"), dir("a"), file("a/c", "1"), symlink("a", "b"), file("a/d", "2")}, []string{"/ 755", "a -> b", "b/ 755", "b/d 644 \"2\""}},
		"folder by folder":       {[]*tar.Header{root(), dir("a"), file("a/c", "1"), dir("a", mode(0o700))}, []string{"/ 755", "a/ 700", "a/c 644 \"1\""}},
		"folder named last":      {[]*tar.Header{root(), file("a/c", "1"), dir("a", mode(0o700))}, []string{"/ 755", "a/ 700", "a/c 644 \"1\""}},
		"link, then another way": {[]*tar.Header{root(), dir("x"), dir("y"), symlink("l", "x"), file("l/1", ""), symlink("l", "y"), file("l/2", "")}, []string{"/ 755", "l -> y", "x/ 755", "x/1 644 \"\"", "y/ 755", "y/2 644 \"\""}},
	} {
		t.Run(name, func(t *testing.T) {
			l := unpacked(t, c.entries)
			equal(t, l.tree(), c.want)
			if l.result.Dependent() && !strings.Contains(name, "x") {
				t.Errorf("depends on others: %+v", l.result)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	deep := strings.Repeat("d/", 600) + "f"
	for name, c := range map[string]struct {
		entries []*tar.Header
		want    error
	}{
		"dotdot":                     {[]*tar.Header{file("../x", "1")}, unpack.ErrName},
		"dotdot within":              {[]*tar.Header{file("a/../../x", "1")}, unpack.ErrName},
		"dotdot alone":               {[]*tar.Header{dir("..")}, unpack.ErrName},
		"absolute dotdot":            {[]*tar.Header{file("/../x", "1")}, unpack.ErrName},
		"link to dotdot":             {[]*tar.Header{hardlink("x", "../../etc/passwd")}, unpack.ErrName},
		"link to the root":           {[]*tar.Header{hardlink("x", "/")}, unpack.ErrLink},
		"link to nothing":            {[]*tar.Header{hardlink("x", "")}, unpack.ErrName},
		"link to a folder":           {[]*tar.Header{dir("d"), hardlink("x", "d")}, unpack.ErrLink},
		"root is a link":             {[]*tar.Header{symlink("/", "x")}, unpack.ErrType},
		"long part":                  {[]*tar.Header{file(strings.Repeat("n", 256), "")}, unpack.ErrName},
		"long path":                  {[]*tar.Header{file(strings.Repeat("nnnnnnnnn/", 410)+"n", "")}, unpack.ErrName},
		"deep path":                  {[]*tar.Header{file(deep, "")}, unpack.ErrName},
		"below a file":               {[]*tar.Header{file("a", ""), file("a/b", "")}, unpack.ErrParent},
		"circle":                     {[]*tar.Header{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}, unpack.ErrParent},
		"circle that grows":          {[]*tar.Header{symlink("a", "a/a"), file("a/x", "")}, unpack.ErrParent},
		"owner too large":            {[]*tar.Header{file("a", "", owner(1<<32-1, 0))}, unpack.ErrAttribute},
		"owner below zero":           {[]*tar.Header{file("a", "", owner(0, -2), format(tar.FormatGNU))}, unpack.ErrAttribute},
		"whiteout device":            {[]*tar.Header{entry(tar.TypeChar, "a")}, unpack.ErrReserved},
		"device number":              {[]*tar.Header{entry(tar.TypeChar, "a", device(1<<12, 0))}, unpack.ErrAttribute},
		"trusted.overlay":            {[]*tar.Header{dir("a", attr("trusted.overlay.opaque", "y"))}, unpack.ErrReserved},
		"trusted.overlay, a link":    {[]*tar.Header{entry(tar.TypeSymlink, "a", attr("trusted.overlay.redirect", "/"), func(h *tar.Header) { h.Linkname = "x" })}, unpack.ErrReserved},
		"user.overlay":               {[]*tar.Header{dir("a", attr("user.overlay.opaque", "y"))}, unpack.ErrReserved},
		"unknown type":               {[]*tar.Header{entry('Z', "a")}, unpack.ErrType},
		"whiteout of nothing":        {[]*tar.Header{file(".wh.", "")}, unpack.ErrName},
		"whiteout of the folder":     {[]*tar.Header{file("d/.wh..", "")}, unpack.ErrName},
		"whiteout of the parent":     {[]*tar.Header{file("d/.wh...", "")}, unpack.ErrName},
		"below a whiteout":           {[]*tar.Header{file(".wh.a/b", "")}, unpack.ErrName},
		"link to a whiteout's name":  {[]*tar.Header{hardlink("x", ".wh.a")}, unpack.ErrLink},
		"symbolic link to nothing":   {[]*tar.Header{entry(tar.TypeSymlink, "a")}, unpack.ErrName},
		"capability that is invalid": {[]*tar.Header{file("a", "", attr("security.capability", "junk"))}, unix.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayer(t)
			err := l.unpack(unpack.New(unpack.Options{}), archive(t, c.entries...))
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			if c.want != nil && len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		limits  unpack.Limits
		entries []*tar.Header
	}{
		"entries":      {unpack.Limits{Entries: 2}, []*tar.Header{root(), dir("a"), dir("b")}},
		"bytes":        {unpack.Limits{Bytes: 2000}, []*tar.Header{root(), file("a", strings.Repeat("x", 2000))}},
		"parents":      {unpack.Limits{Noted: 2}, []*tar.Header{file("a/b/c/d", "")}},
		"links":        {unpack.Limits{Noted: 1}, []*tar.Header{hardlink("a", "x"), hardlink("b", "y")}},
		"links to one": {unpack.Limits{Noted: 2}, []*tar.Header{hardlink("a", "x"), hardlink("b", "a"), hardlink("c", "a")}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayer(t)
			if err := l.unpack(unpack.New(unpack.Options{Limits: c.limits}), archive(t, c.entries...)); !errors.Is(err, unpack.ErrTooLarge) {
				t.Errorf("error is %v", err)
			}
			l = newLayer(t)
			if err := l.unpack(unpack.New(unpack.Options{}), archive(t, c.entries...)); err != nil {
				t.Errorf("without limits: %v", err)
			}
		})
	}
}

// TestManyFolders goes around more folders than are kept open.
func TestManyFolders(t *testing.T) {
	entries := []*tar.Header{root()}
	want := []string{"/ 755"}
	const n = 150
	for i := range n {
		entries = append(entries, dir(fmt.Sprintf("d%03d", i)))
		want = append(want, fmt.Sprintf("d%03d/ 755", i))
	}
	for i := range n {
		entries = append(entries, file(fmt.Sprintf("d%03d/f", i*7%n), fmt.Sprint(i*7%n)))
		want = append(want, fmt.Sprintf("d%03d/f 644 \"%d\"", i, i))
	}
	for i := range n {
		entries = append(entries, hardlink(fmt.Sprintf("d%03d/g", i), fmt.Sprintf("d%03d/f", (i+70)%n)))
	}
	for i := range n { // the first name is what a walk comes to first
		f, g := fmt.Sprintf("d%03d/f", i), fmt.Sprintf("d%03d/g", (i+n-70)%n)
		if g < f {
			want[1+n+i] = strings.Replace(want[1+n+i], f, g, 1)
			f, g = g, f
		}
		want = append(want, g+" = "+f)
	}
	slices.Sort(want)
	equal(t, unpacked(t, entries).tree(), want)
}
