// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/network"
)

// state is a Status in short: "net-a of 10-a.conflist, without 05-x.conf 20-y.json", and "not ready".
func state(t testing.TB, n *network.Network) string {
	t.Helper()
	s := n.Status(t.Context())
	text := "not ready"
	if s.Ready {
		text = "ready"
	}
	if s.Ready == (s.Message != "") || s.Ready != (s.Reason == "") {
		t.Errorf("Status = %+v", s)
	}
	for i := range s.Networks {
		text += fmt.Sprintf(", %s of %s", s.Networks[i], s.Files[i])
	}
	for i, e := range s.Invalid {
		if i == 0 {
			text += ", without"
		}
		text += " " + e.File
	}
	return text
}

func wantState(t testing.TB, n *network.Network, want string) {
	t.Helper()
	var got string
	defer func() {
		if t.Failed() {
			t.Logf("the last state: %s; want %s", got, want)
		}
	}()
	eventually(t, want, func() bool { got = state(t, n); return got == want })
}

func TestChoice(t *testing.T) {
	r := newRig(t)
	r.put("net.d/00-readme.txt", "not one")
	r.put("net.d/01-old.conf", map[string]any{"cniVersion": "0.4.0", "name": "net-old", "type": "one", "log": filepath.Join(r.dir, "log")})
	r.list("02-a.conflist", "net-a", r.plugin("one", nil))
	r.put("net.d/03-json.json", map[string]any{"cniVersion": "0.3.1", "name": "net-json", "type": "one"})
	r.mkdir("net.d/04-folder.conflist")
	for file, content := range map[string]string{
		"10-empty.conflist":   "",
		"11-cut.conflist":     `{"cniVersion":"1.0.0","name":"x","plug`,
		"12-noname.conflist":  `{"cniVersion":"1.0.0","plugins":[{"type":"one"}]}`,
		"13-name.conflist":    `{"cniVersion":"1.0.0","name":"../../x","plugins":[{"type":"one"}]}`,
		"14-none.conflist":    `{"cniVersion":"1.0.0","name":"x"}`,
		"15-notype.conf":      `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"one"}]}`,
		"16-future.conflist":  `{"cniVersion":"9.0.0","name":"x","plugins":[{"type":"one"}]}`,
		"17-version.conflist": `{"cniVersion":"one","name":"x","plugins":[{"type":"one"}]}`,
		"18-null.conflist":    `null`,
		"19-null.conf":        `null`,
		"20-array.json":       `[]`,
		"21-nulls.conflist":   `{"cniVersion":"1.0.0","name":"x","plugins":[null]}`,
		"22-long.conflist":    `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"one"}]}` + strings.Repeat(" ", 1<<20),
	} {
		r.put("net.d/"+file, content)
	}
	if err := unix.Mkfifo(filepath.Join(r.conf.ConfDir, "23-fifo.conflist"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(r.conf.ConfDir, "24-link.conflist")); err != nil {
		t.Fatal(err)
	}
	r.conf.MaxConfs = -1
	n := r.open()
	want := "ready, net-old of 01-old.conf, net-a of 02-a.conflist, net-json of 03-json.json, without" +
		" 10-empty.conflist 11-cut.conflist 12-noname.conflist 13-name.conflist 14-none.conflist 15-notype.conf 16-future.conflist" +
		" 17-version.conflist 18-null.conflist 19-null.conf 20-array.json 21-nulls.conflist 22-long.conflist 23-fifo.conflist"
	wantState(t, n, want)
	for _, e := range n.Status(t.Context()).Invalid {
		if e.Unwrap() == nil || !strings.HasPrefix(e.Error(), e.File+": ") {
			t.Errorf("%s: %v", e.File, e)
		}
	}
	// Old forms are attached, too.
	r.conf.MaxConfs = 0
	if got, err := r.open().Attach(t.Context(), pod("p1")); err != nil || got.Network != "net-old" {
		t.Errorf("Attach = %+v, %v", got, err)
	}
	if err := n.Detach(t.Context(), pod("p1"), nil); err != nil {
		t.Error(err)
	}
	r.wantCommands("ADD one, DEL one")
}

func TestWatch(t *testing.T) {
	r := newRig(t)
	base := r.dir
	r.conf.ConfDir = filepath.Join(base, "etc", "cni", "net.d")
	n := r.open()
	if got := state(t, n); got != "not ready" {
		t.Errorf("without a folder: %s", got)
	}
	if s := n.Status(t.Context()); !strings.Contains(s.Message, r.conf.ConfDir) || s.Reason != network.ReasonNotReady {
		t.Errorf("Status = %+v", s)
	}
	write := func(folder, file, name string) {
		t.Helper()
		r.put(folder+"/"+file, map[string]any{"cniVersion": "1.0.0", "name": name, "plugins": []any{r.plugin("one", nil)}})
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write("etc/cni/net.d", "10-a.conflist", "net-a") // the folders appear one after another
	wantState(t, n, "ready, net-a of 10-a.conflist")
	write("etc/cni/net.d", "05-b.conflist", "net-b")
	wantState(t, n, "ready, net-b of 05-b.conflist")
	r.put("etc/cni/net.d/05-b.conflist", "{")
	wantState(t, n, "ready, net-a of 10-a.conflist, without 05-b.conflist")
	do(os.Remove(filepath.Join(r.conf.ConfDir, "05-b.conflist")))
	wantState(t, n, "ready, net-a of 10-a.conflist")
	write("etc/cni/net.d", "10-a.conflist", "net-c") // replaced by rename
	wantState(t, n, "ready, net-c of 10-a.conflist")

	write("other", "10-d.conflist", "net-d")
	do(os.Rename(r.conf.ConfDir, filepath.Join(base, "old")))
	wantState(t, n, "not ready")
	do(os.Rename(filepath.Join(base, "other"), r.conf.ConfDir))
	wantState(t, n, "ready, net-d of 10-d.conflist")
	// The new folder is watched, and so is what is above it when that is replaced.
	write("etc/cni/net.d", "05-e.conflist", "net-e")
	wantState(t, n, "ready, net-e of 05-e.conflist")
	do(os.Rename(filepath.Join(base, "etc"), filepath.Join(base, "etc.old")))
	wantState(t, n, "not ready")
	write("etc/cni/net.d", "10-f.conflist", "net-f")
	wantState(t, n, "ready, net-f of 10-f.conflist")
	do(os.RemoveAll(filepath.Join(base, "etc")))
	wantState(t, n, "not ready")
	// A folder that is a link, which changes.
	write("one", "10-g.conflist", "net-g")
	write("two", "10-h.conflist", "net-h")
	r.mkdir("etc/cni")
	do(os.Symlink(filepath.Join(base, "one"), r.conf.ConfDir))
	wantState(t, n, "ready, net-g of 10-g.conflist")
	do(os.Symlink(filepath.Join(base, "two"), filepath.Join(base, "draft-link")))
	do(os.Rename(filepath.Join(base, "draft-link"), r.conf.ConfDir))
	wantState(t, n, "ready, net-h of 10-h.conflist")
	// The folder of plugins of a network.
	r.put("two/10-h.conflist", map[string]any{"cniVersion": "1.1.0", "name": "net-h"})
	wantState(t, n, "not ready, without 10-h.conflist")
	r.mkdir("two/net-h")
	select {
	case <-time.After(500 * time.Millisecond): // the folder is noticed, before there is anything in it
	case <-t.Context().Done():
	}
	r.put("two/net-h/1.conf", r.plugin("one", nil))
	wantState(t, n, "ready, net-h of 10-h.conflist")
	// What is no folder.
	do(os.RemoveAll(filepath.Join(base, "etc")))
	do(os.WriteFile(filepath.Join(base, "etc"), nil, 0o600))
	wantState(t, n, "not ready")
}

// While a file is being written, the next one is not taken instead.
func TestHalfWritten(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	r.list("20-b.conflist", "net-b", r.plugin("one", nil))
	n := r.open()
	wantState(t, n, "ready, net-a of 10-a.conflist")
	path := filepath.Join(r.conf.ConfDir, "10-a.conflist")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range [][]byte{content[:len(content)/2], content[len(content)/2:]} {
			if _, err := f.Write(part); err != nil {
				t.Fatal(err)
			}
			if got := n.Status(t.Context()).Networks; len(got) != 1 || got[0] != "net-a" {
				t.Fatalf("in use: %v", got)
			}
		}
		f.Close()
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, change := range map[string]func(c *network.Config){
		"relative conf dir":  func(c *network.Config) { c.ConfDir = "net.d" },
		"no cache dir":       func(c *network.Config) { c.CacheDir = "" },
		"the shared cache":   func(c *network.Config) { c.CacheDir = "/var/lib/cni/" },
		"its results":        func(c *network.Config) { c.CacheDir = "/var/lib/cni/results" },
		"no bin dirs":        func(c *network.Config) { c.BinDirs = nil },
		"relative bin dir":   func(c *network.Config) { c.BinDirs = []string{"bin"} },
		"two bin dirs in it": func(c *network.Config) { c.BinDirs = []string{"/opt/a:/opt/b"} },
	} {
		r := newRig(t)
		change(&r.conf)
		if n, err := network.Open(t.Context(), r.conf); !errors.Is(err, network.ErrInvalid) {
			t.Errorf("%s: Open = %v, %v", name, n, err)
		}
	}
}

func TestClosed(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	n := r.open()
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.Attach(t.Context(), pod("p1")); !errors.Is(err, network.ErrClosed) {
		t.Errorf("Attach = %v", err)
	}
	if err := n.GC(t.Context()); !errors.Is(err, network.ErrClosed) {
		t.Errorf("GC = %v", err)
	}
	n.Status(t.Context())
}

// Drafts of a berth that died are removed; the records of others are not.
func TestOpenSweepsDrafts(t *testing.T) {
	r := newRig(t)
	r.put("cache/.draft-123", "x")
	r.put("cache/p1.json", "{}")
	r.put("cache/p1.json.damaged", "{}")
	r.open()
	r.wantCache("p1.json", "p1.json.damaged")
}
