// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/sys/mountinfo"
)

func statLine(comm string) string {
	return "71 (" + comm + ") Z 12 71 71 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 998877 0 0"
}

func TestParseStat(t *testing.T) {
	want := process{pid: 71, parent: 12, start: 998877, state: 'Z'}
	for _, comm := range []string{"sleep", "", "a b", ") R 1", "((", "x)\n71 (y", "\xff"} {
		p, err := parseStat([]byte(statLine(comm)))
		want.comm = comm
		if err != nil || p != want {
			t.Errorf("%q: %+v, %v", comm, p, err)
		}
	}
	for _, bad := range []string{"", "71", ")(", "71 (sh) S 1 2", "x (sh) S" + strings.Repeat(" 1", 30), strings.Replace(statLine("a"), "998877", "x", 1)} {
		if _, err := parseStat([]byte(bad)); !errors.Is(err, errStat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte(statLine("a b")))
	f.Add([]byte("1 (x"))
	f.Fuzz(func(t *testing.T, line []byte) {
		p, err := parseStat(line)
		if err == nil && !strings.Contains(string(line), "("+p.comm+")") {
			t.Errorf("name %q is not in the line", p.comm)
		}
	})
}

func TestOwner(t *testing.T) {
	const self = 100
	table := map[int]process{}
	for pid, parent := range map[int]int{self: 1, 2: 0, 3: 2, 101: self, 102: 101, 200: 1, 201: 200, 202: 201, 300: 1, 400: 401, 401: 400} {
		table[pid] = process{pid: pid, parent: parent}
	}
	named := map[int]string{200: "runs /x"}
	for pid, want := range map[int]string{
		101: "child of the test", 102: "child of the test",
		200: "runs /x", 201: "child of pid 200, runs /x", 202: "child of pid 200, runs /x",
		3: "", 300: "", 400: "", // a kernel thread, an orphan, a ring from reused pids
	} {
		if got := owner(table, named, self, pid); got != want {
			t.Errorf("pid %d: %q, want %q", pid, got, want)
		}
	}
}

func TestMentions(t *testing.T) {
	for text, want := range map[string]bool{
		"/a/b": true, "/a/b/c": true, "--root=/a/b": true, "lowerdir=/x:/a/b/l1:/y": true, "/a/b,ro": true, "/a/bb /a/b": true,
		"": false, "/a": false, "/a/bc": false, "/a/b-1": false, "/x/a/b": false, "/a/b.d": false, "x/a/b": false, "/a/b2/a/b": false,
	} {
		if got := mentions(text, "/a/b"); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		path, folder string
		want         bool
	}{{"/a", "/a", true}, {"/a/b", "/a", true}, {"/", "/", true}, {"/a", "/", true}, {"/ab", "/a", false}, {"/", "/a", false}, {"", "/", false}} {
		if got := below(c.path, c.folder); got != c.want {
			t.Errorf("below(%q, %q): %t", c.path, c.folder, got)
		}
	}
}

func TestOwnCgroup(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"/berth", "/berth", true},
		{"/berth", "/berth/pod/c", true},
		{"/berth/pod*", "/berth/pod1", true},
		{"/berth/pod*", "/berth", false},
		{"/berth", "/berths", false},
		{"/berth", "/system.slice/berth", false},
		{"berth-*", "/system.slice/berth-1.scope", true},
		{"berth-*", "/system.slice/berth-1.scope/inner", true},
		{"berth-*", "/system.slice/xberth-1", false},
		{"a/b", "/x/a/b/c", true},
		{"a/b", "/x/a/c/b", false},
		{"berth-*", "/", false},
	} {
		sc, err := newScope([]Option{Cgroups(c.pattern)})
		if err != nil {
			t.Fatal(err)
		}
		if got := sc.ownCgroup(c.path); got != c.want {
			t.Errorf("%q, %q: %t", c.pattern, c.path, got)
		}
	}
}

func TestCgroupPaths(t *testing.T) {
	got := cgroupPaths("9:name=systemd:/a\n4:cpu,cpuacct:/b:c\n0::/d (deleted)\nnonsense\n")
	if want := []string{"/a", "/b:c", "/d"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOwnMount(t *testing.T) {
	sc := &scope{under: []string{"/t/a"}, mounts: []string{"/m"}}
	origins := []origin{{8, 1, "/sub/a"}}
	for _, c := range []struct {
		name string
		m    mountinfo.Info
		want bool
	}{
		{"at", mountinfo.Info{Mountpoint: "/t/a"}, true},
		{"below", mountinfo.Info{Mountpoint: "/t/a/x"}, true},
		{"below a folder of Mounts", mountinfo.Info{Mountpoint: "/m/x"}, true},
		{"bind mount of a folder below", mountinfo.Info{Mountpoint: "/mnt", Major: 8, Minor: 1, Root: "/sub/a/x"}, true},
		{"overlay with a layer below", mountinfo.Info{Mountpoint: "/mnt", Root: "/", VFSOptions: "rw,lowerdir=/l:/t/a/l2,upperdir=/u"}, true},
		{"image file below", mountinfo.Info{Mountpoint: "/mnt", Root: "/", Source: "/t/a/disk.img"}, true},
		{"beside", mountinfo.Info{Mountpoint: "/t/ab", Root: "/", Source: "tmpfs"}, false},
		{"bind mount of a folder beside", mountinfo.Info{Mountpoint: "/mnt", Major: 8, Minor: 1, Root: "/sub/ab"}, false},
		{"the same path of another file system", mountinfo.Info{Mountpoint: "/mnt", Major: 8, Minor: 2, Root: "/sub/a/x"}, false},
		{"made of a folder of Mounts", mountinfo.Info{Mountpoint: "/mnt", Root: "/m/x"}, false},
	} {
		if got := sc.ownMount(&c.m, origins); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestOriginsOf(t *testing.T) {
	table := []*mountinfo.Info{
		{Major: 8, Minor: 1, Root: "/", Mountpoint: "/"},
		{Major: 0, Minor: 5, Root: "/", Mountpoint: "/tmp"},
		{Major: 8, Minor: 2, Root: "/sub", Mountpoint: "/var"},
		{Major: 8, Minor: 3, Root: "/", Mountpoint: "/var"},
		{Major: 8, Minor: 4, Root: "/x", Mountpoint: "/srv/a"},
	}
	for folder, want := range map[string]origin{
		"/home/a": {8, 1, "/home/a"}, "/tmp/a": {0, 5, "/a"}, "/var/a": {8, 3, "/a"},
		"/srv/a": {8, 4, "/x"}, "/srv/a/b": {8, 4, "/x/b"}, "/srv/ab": {8, 1, "/srv/ab"},
	} {
		if got := originsOf([]string{folder}, table); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, want %v", folder, got, want)
		}
	}
	if got := originsOf([]string{"/a"}, nil); got != nil {
		t.Errorf("no mount: %v", got)
	}
}

func TestParseRules(t *testing.T) {
	got := parseRules(`# Generated by iptables-save v1.8.9
*nat
:PREROUTING ACCEPT [12:3456]
:CNI-HOSTPORT - [0:0]
-A PREROUTING -j CNI-HOSTPORT
COMMIT
# Completed
*filter
:INPUT DROP [1:2]
-A INPUT -s 10.0.0.0/8 -j ACCEPT
COMMIT
`)
	want := []string{
		"nat: chain PREROUTING", "nat: chain CNI-HOSTPORT", "nat: -A PREROUTING -j CNI-HOSTPORT",
		"filter: chain INPUT", "filter: -A INPUT -s 10.0.0.0/8 -j ACCEPT",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestTopmost(t *testing.T) {
	in := make(things)
	for _, p := range []string{"/a/b", "/a/b/c", "/a/b/c/d", "/a/bb", "/x/y/z"} {
		in[p] = p
	}
	var got []string
	for _, name := range topmost(in) {
		got = append(got, name)
	}
	slices.Sort(got)
	if want := []string{"/a/b and 2 below", "/a/bb", "/x/y/z"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestPoll(t *testing.T) {
	oops := errors.New("oops")
	left := []Leak{{Kind: "mount", Name: "/x"}}
	for _, c := range []struct {
		name  string
		until int // the look that finds nothing
		err   error
		grace time.Duration
		looks int
		left  int
	}{
		{name: "clean at once", until: 1, grace: time.Second, looks: 1},
		{name: "clean at once, no grace", until: 1, looks: 1},
		{name: "clean later", until: 5, grace: time.Second, looks: 5},
		{name: "an error passes", until: 3, err: oops, grace: time.Second, looks: 3},
		{name: "never clean, no grace", until: 1000, looks: 1, left: 1},
		// At 0, 1, 3, 7, 15, 31, 63 ms, then each 50: 113, 163, ... 963 ms.
		{name: "never clean", until: 1000, grace: time.Second, looks: 25, left: 1},
		{name: "error to the end", until: 1000, err: oops, grace: 10 * time.Millisecond, looks: 4, left: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), c.grace)
				defer cancel()
				looks := 0
				leaks, err := poll(ctx, func() ([]Leak, error) {
					if looks++; looks == c.until {
						return nil, nil
					}
					return left, c.err
				})
				if looks != c.looks || len(leaks) != c.left {
					t.Errorf("%d looks, %d left; want %d and %d", looks, len(leaks), c.looks, c.left)
				}
				if wantErr := c.err != nil && c.left > 0; errors.Is(err, oops) != wantErr {
					t.Errorf("error %v, want one: %t", err, wantErr)
				}
			})
		})
	}
}

func TestReport(t *testing.T) {
	snapshot := func(found things, err error) *Snapshot {
		look := func(*scope, bool) (things, error) { return found, err }
		return &Snapshot{scope: &scope{}, kinds: []kind{{name: "mount", look: look}}, before: []things{{"old": "old"}}}
	}
	for _, c := range []struct {
		name  string
		found things
		err   error
		want  string
	}{
		{"clean", things{"old": "/old"}, nil, ""},
		{"sorted, lines indented", things{"old": "/old", "2": "/b", "1": "/a\n/a2"}, nil, "leak: 2 left behind:\n\tmount /a\n\t\t/a2\n\tmount /b"},
		{"blind", nil, errors.New("denied"), "leak: not everything could be looked at: mount: denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := snapshot(c.found, c.err).report(); got != c.want {
				t.Errorf("got %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestParseStacks(t *testing.T) {
	text := "goroutine 7 [running]:\nmain.a()\n\ngoroutine 12 [chan receive]:\nmain.b()\ncreated by main.c\n\ngoroutine 3 [syscall]:\nos/signal.signal_recv()\nos/signal.loop()\n"
	seen, self := parseStacks(text)
	if self != "7" || len(seen) != 2 || !strings.HasPrefix(seen["12"], "12 [chan receive]:\nmain.b()") {
		t.Errorf("self %q, seen %q", self, seen)
	}
	for id := range seen {
		if _, err := strconv.Atoi(id); err != nil {
			t.Error(err)
		}
	}
}
