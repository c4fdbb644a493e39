// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/network"
	"github.com/berth-cri/berth/store"
)

// rig is a node's folders, with fake plugins called one, two and three.
type rig struct {
	t    testing.TB
	dir  string
	conf network.Config
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: dir, conf: network.Config{
		ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")}, CacheDir: filepath.Join(dir, "cache"),
		SharedCaches: []string{filepath.Join(dir, "shared")},
	}}
	r.mkdir("bin")
	for _, name := range []string{"one", "two", "three"} {
		if err := os.Symlink(self(t), filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// self is the test binary.
func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// open returns the network, which is closed when the test ends.
func (r *rig) open() *network.Network {
	r.t.Helper()
	// Without a logger: what is said is in the Status, too.
	n, err := network.Open(klog.NewContext(r.t.Context(), klog.Logger{}), r.conf)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := n.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return n
}

func (r *rig) mkdir(name string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// plugin returns the configuration of a fake plugin.
func (r *rig) plugin(name string, do map[string]deed) map[string]any {
	return map[string]any{
		"type": name, "log": filepath.Join(r.dir, "log"), "do": do,
		"capabilities": map[string]bool{
			"portMappings": true, "bandwidth": true, "dns": true, "cgroupPath": true, "io.kubernetes.cri.pod-annotations": true,
			"ipRanges": true, "mac": true, "aliases": true,
		},
	}
}

// list writes a configuration list of CNI 1.1.0.
func (r *rig) list(file, name string, plugins ...any) { r.listOf("1.1.0", file, name, plugins...) }

func (r *rig) listOf(version, file, name string, plugins ...any) {
	r.t.Helper()
	r.put("net.d/"+file, map[string]any{"cniVersion": version, "name": name, "plugins": plugins})
}

// put writes a file in one go, as JSON unless it is a string.
func (r *rig) put(file string, content any) {
	r.t.Helper()
	b, isText := content.(string)
	if !isText {
		j, err := json.Marshal(content)
		if err != nil {
			r.t.Fatal(err)
		}
		b = string(j)
	}
	path := filepath.Join(r.dir, file)
	draft := filepath.Join(r.dir, "draft")
	r.mkdir(filepath.Dir(file))
	if err := os.WriteFile(draft, []byte(b), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(draft, path); err != nil {
		r.t.Fatal(err)
	}
}

// fifo makes a FIFO on which a plugin can wait.
func (r *rig) fifo(name string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// release lets go of a plugin that waits on a FIFO.
func (r *rig) release(fifo string) {
	r.t.Helper()
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	f.Close()
}

// calls returns the log of the fake plugins.
func (r *rig) calls() (list []call) {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var c call
		if err := json.Unmarshal(line, &c); err != nil {
			r.t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

// call returns the first call of a command.
func (r *rig) call(command string) call {
	r.t.Helper()
	for _, c := range r.calls() {
		if c.Command == command {
			return c
		}
	}
	r.t.Fatalf("no plugin was called for %s", command)
	return call{}
}

// commands returns the log in short, without STATUS: "ADD one, ADD two".
func (r *rig) commands() string {
	r.t.Helper()
	var list []string
	for _, c := range r.calls() {
		if c.Command != "STATUS" {
			list = append(list, c.Command+" "+c.Plugin)
		}
	}
	return strings.Join(list, ", ")
}

func (r *rig) wantCommands(want string) {
	r.t.Helper()
	if got := r.commands(); got != want {
		r.t.Errorf("plugins were called: %s\nwant: %s", got, want)
	}
}

// forget empties the log.
func (r *rig) forget() {
	r.t.Helper()
	if err := os.Truncate(filepath.Join(r.dir, "log"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.t.Fatal(err)
	}
}

// cache returns what the cache holds.
func (r *rig) cache() (names []string) {
	r.t.Helper()
	err := filepath.WalkDir(r.conf.CacheDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(r.conf.CacheDir, path)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return names
}

func (r *rig) wantCache(want ...string) {
	r.t.Helper()
	if got := r.cache(); fmt.Sprint(got) != fmt.Sprint(want) {
		r.t.Errorf("the cache holds %v; want %v", got, want)
	}
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second) // less than rereadWatched, which would hide a lost event
	for !so() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func pod(id string) network.Pod {
	return network.Pod{ID: store.PodID(id), Namespace: "default", Name: "web-0", UID: "uid-1", NetNS: "/run/netns/berth-test-" + id}
}
