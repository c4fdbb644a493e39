// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package unpack_test

import (
	"archive/tar"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/unpack"
)

const opaque = ` trusted.overlay.opaque="y"`

func whiteout(name string) *tar.Header { return file(name, "") }

// TestWhiteouts has golden cases, in both orders: what a whiteout hides does not depend on where in the
// archive it stands.
func TestWhiteouts(t *testing.T) {
	for name, c := range map[string]struct {
		entries []*tar.Header
		want    []string
	}{
		"file":                {[]*tar.Header{root(), dir("d"), whiteout("d/.wh.a")}, []string{"/ 755", "d/ 755", "d/a whiteout"}},
		"at the root":         {[]*tar.Header{root(), whiteout(".wh.a")}, []string{"/ 755", "a whiteout"}},
		"as a folder":         {[]*tar.Header{root(), dir(".wh.a")}, []string{"/ 755", "a whiteout"}},
		"twice":               {[]*tar.Header{root(), whiteout(".wh.a"), whiteout(".wh.a")}, []string{"/ 755", "a whiteout"}},
		"then file":           {[]*tar.Header{root(), whiteout(".wh.a"), file("a", "1")}, []string{"/ 755", "a 644 \"1\""}},
		"after file":          {[]*tar.Header{root(), file("a", "1"), whiteout(".wh.a")}, []string{"/ 755", "a 644 \"1\""}},
		"then link":           {[]*tar.Header{root(), whiteout(".wh.a"), symlink("a", "b")}, []string{"/ 755", "a -> b"}},
		"then hard link":      {[]*tar.Header{root(), file("b", "1"), whiteout(".wh.a"), hardlink("a", "b")}, []string{"/ 755", "a 644 \"1\"", "b = a"}},
		"then folder":         {[]*tar.Header{root(), whiteout(".wh.a"), dir("a"), file("a/x", "1")}, []string{"/ 755", "a/ 755" + opaque, "a/x 644 \"1\""}},
		"after folder":        {[]*tar.Header{root(), dir("a"), file("a/x", "1"), whiteout(".wh.a")}, []string{"/ 755", "a/ 755" + opaque, "a/x 644 \"1\""}},
		"then parent":         {[]*tar.Header{root(), whiteout(".wh.a"), file("a/x", "1")}, []string{"/ 755", "a/ 755 time=0" + opaque, "a/x 644 \"1\""}},
		"after parent":        {[]*tar.Header{root(), file("a/x", "1"), whiteout(".wh.a")}, []string{"/ 755", "a/ 755 time=0" + opaque, "a/x 644 \"1\""}},
		"opaque first":        {[]*tar.Header{root(), dir("a"), whiteout("a/.wh..wh..opq"), file("a/x", "1"), dir("a/d")}, []string{"/ 755", "a/ 755" + opaque, "a/d/ 755", "a/x 644 \"1\""}},
		"opaque last":         {[]*tar.Header{root(), dir("a"), file("a/x", "1"), dir("a/d"), whiteout("a/.wh..wh..opq")}, []string{"/ 755", "a/ 755" + opaque, "a/d/ 755", "a/x 644 \"1\""}},
		"opaque before all":   {[]*tar.Header{root(), whiteout("a/.wh..wh..opq"), dir("a", mode(0o700)), file("a/x", "1")}, []string{"/ 755", "a/ 700" + opaque, "a/x 644 \"1\""}},
		"opaque root":         {[]*tar.Header{root(), file("x", "1"), whiteout(".wh..wh..opq")}, []string{"/ 755" + opaque, "x 644 \"1\""}},
		"opaque and whiteout": {[]*tar.Header{root(), dir("a"), whiteout("a/.wh..wh..opq"), whiteout("a/.wh.y")}, []string{"/ 755", "a/ 755" + opaque, "a/y whiteout"}},
		"folder for a file":   {[]*tar.Header{root(), file("a", "1"), dir("a")}, []string{"/ 755", "a/ 755" + opaque}},
		"folder for a link":   {[]*tar.Header{root(), symlink("a", "b"), dir("a")}, []string{"/ 755", "a/ 755" + opaque}},
		"what aufs left": {
			[]*tar.Header{root(), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", ""), dir(".wh..wh.orph"), whiteout(".wh..wh.plnk/.wh..wh..opq")},
			[]string{"/ 755"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := unpacked(t, c.entries)
			got := l.tree()
			for i, line := range got { // the time of a whiteout tells nobody anything
				if path, ok := strings.CutSuffix(line, " whiteout"); ok {
					got[i] = path + " whiteout"
				}
			}
			equal(t, got, c.want)
			if l.result.RootOpaque != (name == "opaque root") || !l.result.RootGiven {
				t.Errorf("%+v", l.result)
			}
			if l.result.Dependent() {
				t.Errorf("%+v", l.result)
			}
		})
	}
}

func TestDevices(t *testing.T) {
	l := unpacked(t, []*tar.Header{
		root(),
		entry(tar.TypeChar, "c", device(4095, 1048575), mode(0o600)),
		entry(tar.TypeBlock, "b", device(7, 300), mode(0o4660), owner(1, 2)),
		entry(tar.TypeBlock, "zero", device(0, 0)),
		entry(tar.TypeFifo, "p", owner(70000, 4294967294), attr("user.x", "refused by the kernel"), attr("trusted.y", "z")),
		file("f", "", owner(4294967294, 2000000), mode(0o6755), attr("trusted.y", "z")),
		entry(tar.TypeSymlink, "s", owner(5, 6), attr("trusted.y", "z"), func(h *tar.Header) { h.Linkname = "f" }),
		dir("d", owner(3, 4), mode(0o3777)),
		file("none", "x", mode(0)),
	})
	equal(t, l.tree(), []string{
		"/ 755",
		"b device 64660 7:300 owner=1:2",
		"c device 20600 4095:1048575",
		"d/ 3777 owner=3:4",
		`f 6755 "" owner=4294967294:2000000 trusted.y="z"`,
		`none 0 "x"`,
		`p other 10644 owner=70000:4294967294 trusted.y="z"`,
		`s -> f owner=5:6 trusted.y="z"`,
		"zero whiteout", // a block device 0:0 is none
	})
}

// capability is cap_net_raw+ep, revision 2 (linux/capability.h).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// TestCapability has a file with everything that takes something else away if it comes in the wrong order.
func TestCapability(t *testing.T) {
	l := unpacked(t, []*tar.Header{root(), file("ping", "elf", owner(7, 8), mode(0o6755), attr("security.capability", capability))})
	got := l.tree()[1]
	if !strings.HasPrefix(got, `ping 6755 "elf" owner=7:8 security.capability="`) {
		t.Error(got)
	}
}

// TestImplicitParents has an archive that does not mention its folders above layers that have them.
func TestImplicitParents(t *testing.T) {
	low := unpacked(t, []*tar.Header{
		root(mode(0o700)), dir("tmp", mode(0o1777), modTime(time.Unix(7, 0))), dir("home", owner(1, 2), attr("user.x", "1")),
		dir("home/u", mode(0o2750), owner(1000, 1000)), dir("gone"), dir("hidden", mode(0o700)), dir("hidden/d", mode(0o700)),
		file("file", ""), symlink("link", "tmp"), dir("under", mode(0o711)),
	})
	mid := unpacked(t, []*tar.Header{
		root(), dir("home/u", mode(0o2700), owner(1000, 1000)), whiteout(".wh.gone"),
		dir("hidden", mode(0o711)), whiteout("hidden/.wh..wh..opq"), file("under/x", ""),
	}, low)
	top := unpacked(t, []*tar.Header{
		file("tmp/a", "1"), file("home/u/b", "2"), file("gone/c", "3"), file("hidden/d/e", "4"), file("file/f", "5"), file("link/g", "6"), file("new/h", "7"), file("under/y", "8"),
	}, mid, low)
	equal(t, top.tree(), []string{
		"/ 755 time=0",
		"file/ 755 time=0",
		"file/f 644 \"5\"",
		"gone/ 755 time=0",
		"gone/c 644 \"3\"",
		"hidden/ 711",
		"hidden/d/ 755 time=0",
		"hidden/d/e 644 \"4\"",
		"home/ 755 owner=1:2 user.x=\"1\"",
		"home/u/ 2700 owner=1000:1000",
		"home/u/b 644 \"2\"",
		"link/ 755 time=0",
		"link/g 644 \"6\"",
		"new/ 755 time=0",
		"new/h 644 \"7\"",
		"tmp/ 1777 time=7",
		"tmp/a 644 \"1\"",
		"under/ 711",
		"under/y 644 \"8\"",
	})
	if r := top.result; r.ImplicitParents != 10 || r.ForeignLinks != 0 || r.RootGiven {
		t.Errorf("%+v", r)
	}
}

// TestParentsBelowOpaqueRoot has a layer hide everything below it: its parents are nobody's heirs.
func TestParentsBelowOpaqueRoot(t *testing.T) {
	low := unpacked(t, []*tar.Header{root(), dir("tmp", mode(0o1777))})
	equal(t, unpacked(t, []*tar.Header{root(), file("tmp/a", "1"), whiteout(".wh..wh..opq")}, low).tree(),
		[]string{"/ 755" + opaque, "tmp/ 755 time=0", "tmp/a 644 \"1\""})
	mid := unpacked(t, []*tar.Header{root(), whiteout(".wh..wh..opq")}, low)
	equal(t, unpacked(t, []*tar.Header{root(), file("tmp/a", "1")}, mid, low).tree(),
		[]string{"/ 755", "tmp/ 755 time=0", "tmp/a 644 \"1\""})
}

// TestForeignLinks has hard links to files that only lower layers have.
func TestForeignLinks(t *testing.T) {
	low := unpacked(t, []*tar.Header{
		root(), dir("usr"), dir("usr/bin", mode(0o711)), symlink("bin", "usr/bin"),
		file("usr/bin/su", strings.Repeat("elf", 1000), mode(0o4755), owner(1, 2), attr("user.x", "y"), attr("security.capability", capability), modTime(time.Unix(9, 0))),
		file("a", "lower"), symlink("s", "x"), file("gone", "1"), entry(tar.TypeChar, "c", device(1, 3)), dir("d"), file("d/f", "2"),
	})
	mid := unpacked(t, []*tar.Header{root(), file("a", "middle"), whiteout(".wh.gone"), dir("d"), whiteout("d/.wh..wh..opq")}, low)
	su := `usr/bin/su 4755 "` + string(digest([]byte(strings.Repeat("elf", 1000)))) + `" owner=1:2 time=9`

	for name, c := range map[string]struct {
		entries []*tar.Header
		want    []string
		err     error
	}{
		"a file, through a symbolic link": {
			[]*tar.Header{root(), dir("sbin"), hardlink("sbin/su", "bin/su")},
			[]string{"/ 755", "sbin/ 755", "sbin/" + strings.TrimPrefix(su, "usr/bin/"), "usr/ 755", "usr/bin/ 711", "usr/bin/su = sbin/su"},
			nil,
		},
		"the topmost": {[]*tar.Header{root(), hardlink("b", "a")}, []string{"/ 755", "a 644 \"middle\"", "b = a"}, nil},
		"two names, and links to them": {
			[]*tar.Header{root(), hardlink("b", "a"), hardlink("c", "./a"), hardlink("e", "b")},
			[]string{"/ 755", "a 644 \"middle\"", "b = a", "c = a", "e = a"},
			nil,
		},
		"the same, by two ways": { // before and after this layer has the folder
			[]*tar.Header{root(), hardlink("b", "usr/bin/su"), dir("usr/bin", mode(0o711)), hardlink("c", "usr/bin/su"), hardlink("e", "bin/su")},
			[]string{"/ 755", "b" + strings.TrimPrefix(su, "usr/bin/su"), "c = b", "e = b", "usr/ 755", "usr/bin/ 711", "usr/bin/su = b"},
			nil,
		},
		"a symbolic link": {[]*tar.Header{root(), hardlink("b", "s")}, []string{"/ 755", "b -> x", "s = b"}, nil},
		"a device":        {[]*tar.Header{root(), hardlink("b", "c")}, []string{"/ 755", "b device 20644 1:3", "c = b"}, nil},
		"then replaced":   {[]*tar.Header{root(), hardlink("b", "a"), file("b", "new")}, []string{"/ 755", "b 644 \"new\""}, nil},
		"then replaced, and that one linked to": { // it may have the inode of what stood there
			[]*tar.Header{root(), hardlink("b", "a"), file("b", "new"), hardlink("c", "b")}, []string{"/ 755", "b 644 \"new\"", "c = b"}, nil,
		},
		"then its folder replaced": {
			[]*tar.Header{root(), dir("e"), hardlink("e/b", "a"), file("e", "new")}, []string{"/ 755", "e 644 \"new\""}, nil,
		},
		"then its target replaced": {
			[]*tar.Header{root(), hardlink("b", "a"), file("a", "new")}, []string{"/ 755", "a 644 \"new\"", "b 644 \"middle\""}, nil,
		},
		"then its target removed": {
			[]*tar.Header{root(), hardlink("b", "a"), whiteout(".wh.a")}, []string{"/ 755", "a whiteout", "b 644 \"middle\""}, nil,
		},
		"in the way of a file": {[]*tar.Header{root(), file("b", "old"), hardlink("b", "a")}, []string{"/ 755", "a 644 \"middle\"", "b = a"}, nil},
		"replaced by another":  {[]*tar.Header{root(), hardlink("b", "s"), hardlink("b", "a")}, []string{"/ 755", "a 644 \"middle\"", "b = a"}, nil},
		"removed below":        {[]*tar.Header{root(), hardlink("b", "gone")}, nil, unpack.ErrLink},
		"hidden below":         {[]*tar.Header{root(), hardlink("b", "d/f")}, nil, unpack.ErrLink},
		"never there":          {[]*tar.Header{root(), hardlink("b", "never/there")}, nil, unpack.ErrLink},
		"a folder below":       {[]*tar.Header{root(), hardlink("b", "usr/bin")}, nil, unpack.ErrLink},
		"out of the root":      {[]*tar.Header{root(), symlink("up", "../../../../.."), hardlink("b", "up/etc/hostname")}, nil, unpack.ErrLink},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayer(t)
			if err := l.unpack(unpack.New(unpack.Options{}), archive(t, c.entries...)); err != nil {
				t.Fatal(err)
			}
			if !l.result.Dependent() && c.err != nil {
				t.Fatalf("%+v", l.result)
			}
			err := l.settle(mid, low)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("error is %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			l.check()
			got := l.tree()
			for i := range got {
				got[i], _, _ = strings.Cut(got[i], " security.capability") // TestCapability looks at it
			}
			equal(t, got, c.want)
		})
	}
	for name, entries := range map[string][]*tar.Header{
		"whiteout before": {whiteout(".wh.a"), hardlink("b", "a")},
		"opaque before":   {dir("d"), whiteout("d/.wh..wh..opq"), hardlink("b", "d/f")},
		"opaque root":     {whiteout(".wh..wh..opq"), hardlink("b", "a")},
	} {
		t.Run(name, func(t *testing.T) {
			if err := newLayer(t).unpack(unpack.New(unpack.Options{}), archive(t, entries...)); !errors.Is(err, unpack.ErrLink) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// TestUmask has a process that hides everything from others.
func TestUmask(t *testing.T) {
	l := newLayer(t)
	old := unix.Umask(0o777)
	err := l.unpack(unpack.New(unpack.Options{}), archive(t, root(), dir("d"), file("d/f", ""), entry(tar.TypeFifo, "p")))
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	l.check()
	if got := l.tree(); !slices.Contains(got, "d/f 644 \"\"") || !slices.Contains(got, "d/ 755") || !slices.Contains(got, "p other 10644") {
		t.Error(got)
	}
}
