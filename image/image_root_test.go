// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/image"
	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m)) }

// rig is a registry, and the images of a node.
type rig struct {
	*image.Store
	t    *testing.T
	db   *store.DB
	cfg  store.Config
	root string
	host string

	mu     sync.Mutex
	blobs  int                                          // that were asked for
	before func(w http.ResponseWriter, r *http.Request) // may answer or wait
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, cfg: storetest.Folders(t), root: t.TempDir()}
	genuine := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.blobs++
		}
		before := r.before
		r.mu.Unlock()
		if before != nil && req.Method == http.MethodGet {
			before(w, req)
		}
		genuine.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	r.cfg.BootID = "00000000-0000-4000-8000-000000000000"
	r.open()
	t.Cleanup(func() { r.close() })
	return r
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	if r.db, err = store.Open(r.t.Context(), r.cfg); err != nil {
		r.t.Fatal(err)
	}
	r.Store, err = image.Open(r.t.Context(), image.Config{
		DB: r.db, Root: r.root, Registry: registry.Options{Retries: -1}, Linger: 50 * time.Millisecond,
		User:   func(u string) (*int64, string) { return nil, u },
		Pinned: []string{"*/pinned:*"}, Log: klog.Logger{},
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) close() {
	r.t.Helper()
	storetest.Check(r.t, r.db)
	if err := errors.Join(r.Store.Close(), r.db.Close()); err != nil {
		r.t.Error(err)
	}
}

// entry is a file of a layer; without text it is a folder, or what link says.
type entry struct{ name, text, link string }

// push pushes an image of layers, and returns its name.
func (r *rig) push(path string, layers ...[]entry) string {
	r.t.Helper()
	img := empty.Image
	for _, files := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			h := &tar.Header{Name: f.name, Mode: 0o755, Typeflag: tar.TypeDir}
			switch {
			case f.link != "":
				h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
			case !strings.HasSuffix(f.name, "/"):
				h.Typeflag, h.Size = tar.TypeReg, int64(len(f.text))
			}
			if err := w.WriteHeader(h); err != nil {
				r.t.Fatal(err)
			}
			if _, err := w.Write([]byte(f.text)); err != nil {
				r.t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			r.t.Fatal(err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			r.t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			r.t.Fatal(err)
		}
	}
	img, err := mutate.Config(img, v1.Config{User: "app", Entrypoint: []string{"/app"}, Env: []string{"PATH=" + path}})
	if err != nil {
		r.t.Fatal(err)
	}
	tag, err := name.NewTag(r.host + "/" + path)
	if err == nil {
		err = remote.Write(tag, img)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return r.host + "/" + path
}

func (r *rig) pull(name string) store.ImageID {
	r.t.Helper()
	id, err := r.Pull(r.t.Context(), name, nil, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

func base() []entry {
	return []entry{{name: "etc/"}, {name: "etc/passwd", text: "root:x:0:0"}, {name: "bin/"}, {name: "bin/sh", text: "sh"}}
}

// TestPull pulls an image and finds it by every name.
func TestPull(t *testing.T) {
	r := newRig(t)
	full := r.push("team/app:v1", base(), []entry{{name: "app", text: "hello"}})
	id := r.pull(full)
	img, err := r.Status(full)
	if err != nil || img == nil {
		t.Fatalf("status: %v, %v", img, err)
	}
	if img.Id != string(id) || !slices.Equal(img.RepoTags, []string{full}) || len(img.RepoDigests) != 1 || img.Size == 0 || img.Username != "app" {
		t.Errorf("image %v", img)
	}
	hex := strings.TrimPrefix(string(id), "sha256:")
	for _, n := range []string{full, string(id), hex, hex[:12], "sha256:" + hex[:12], img.RepoDigests[0]} {
		if got, err := r.Resolve(t.Context(), n); err != nil || got.ID != id || got.Name != full || got.Ref != img.RepoDigests[0] {
			t.Errorf("resolve %q: %+v, %v", n, got, err)
		}
	}
	for _, n := range []string{"other", "sha256:0000", "", "UPPER", full + "x"} {
		if got, err := r.Resolve(t.Context(), n); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("resolve %q: %+v, %v, want ErrNotFound", n, got, err)
		}
	}
	m, err := r.Rootfs(t.Context(), "c1", id)
	if err != nil || len(m.Lower) != 2 {
		t.Fatalf("rootfs %+v, %v", m, err)
	}
	if b, err := os.ReadFile(filepath.Join(m.Lower[0], "app")); err != nil || string(b) != "hello" {
		t.Errorf("topmost layer: %q, %v", b, err)
	}
	if again, err := r.Rootfs(t.Context(), "c1", id); err != nil || !slices.Equal(again.Lower, m.Lower) || again.Upper != m.Upper {
		t.Errorf("rootfs again: %+v, %v", again, err)
	}
	if err := errors.Join(r.RemoveRootfs(t.Context(), "c1"), r.RemoveRootfs(t.Context(), "c1")); err != nil {
		t.Error(err)
	}
}

// TestReadFile reads through layers as a container would.
func TestReadFile(t *testing.T) {
	r := newRig(t)
	id := r.pull(r.push("a:1",
		[]entry{
			{name: "etc/"},
			{name: "etc/passwd", text: "low"},
			{name: "etc/gone", text: "x"},
			{name: "opt/"},
			{name: "opt/file", text: "masked"},
			{name: "real/"},
			{name: "real/file", text: "by link"},
		},
		[]entry{
			{name: "etc/passwd", text: "high"},
			{name: "etc/.wh.gone"},
			{name: "opt/"},
			{name: "opt/.wh..wh..opq"},
			{name: "opt/new", text: "new"},
			{name: "rel", link: "real/file"},
			{name: "abs", link: "/real"},
			{name: "out", link: "../../../../etc/passwd"},
			{name: "loop", link: "loop"},
			{name: "etc/up", link: "../real/../etc/passwd"},
		}))
	for path, want := range map[string]string{
		"/etc/passwd": "high", "etc//./passwd": "high", "/rel": "by link", "/abs/file": "by link", "/out": "high",
		"/etc/up": "high", "/abs/../etc/passwd": "high", "/opt/new": "new",
	} {
		if b, err := r.ReadFile(t.Context(), id, path, 100); err != nil || string(b) != want {
			t.Errorf("read %s: %q, %v, want %q", path, b, err, want)
		}
	}
	for _, path := range []string{"/etc/gone", "/opt/file", "/etc", "/", "", "/none/x", "/etc/passwd/x"} {
		if b, err := r.ReadFile(t.Context(), id, path, 100); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read %s: %q, %v, want ErrNotExist", path, b, err)
		}
	}
	if _, err := r.ReadFile(t.Context(), id, "/loop", 100); err == nil {
		t.Error("a link to itself was read")
	}
	if _, err := r.ReadFile(t.Context(), id, "/etc/passwd", 3); err == nil {
		t.Error("four bytes were read where three may be")
	}
}

// TestPullShares holds that what is there is not fetched, and that two who pull share
// the work.
func TestPullShares(t *testing.T) {
	r := newRig(t)
	a := r.push("a:1", base(), []entry{{name: "a", text: "a"}})
	b := r.push("b:1", base(), []entry{{name: "b", text: "b"}})
	var wg sync.WaitGroup
	for range 8 {
		for _, n := range []string{a, b} {
			wg.Go(func() {
				if _, err := r.Pull(t.Context(), n, nil, nil); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	r.mu.Lock()
	if r.blobs != 5 { // three layers, two configurations
		t.Errorf("%d blobs were fetched, want 5", r.blobs)
	}
	r.mu.Unlock()
	var stages []image.Stage
	if _, err := r.Pull(t.Context(), a, nil, func(p image.Progress) { r.mu.Lock(); stages = append(stages, p.Stage); r.mu.Unlock() }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(stages, []image.Stage{image.IsPresent, image.IsPresent}) {
		t.Errorf("second pull: stages %q", stages)
	}
}

// TestNamesMove holds that a tag that moves leaves the old image known by digest.
func TestNamesMove(t *testing.T) {
	r := newRig(t)
	tag := r.push("app:latest", base(), []entry{{name: "v", text: "1"}})
	one := r.pull(tag)
	r.push("app:latest", base(), []entry{{name: "v", text: "2"}})
	two := r.pull(tag)
	if one == two {
		t.Fatal("both are one image")
	}
	old, err := r.Status(string(one))
	if err != nil || old == nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 {
		t.Errorf("the old image: %v, %v", old, err)
	}
	if got, _ := r.Status(tag); got.GetId() != string(two) {
		t.Errorf("the tag is at %s", got.GetId())
	}
	byDigest := old.RepoDigests[0]
	if id := r.pull(byDigest); id != one {
		t.Errorf("by digest: %s", id)
	}
	if got, _ := r.Status(byDigest); len(got.RepoTags) != 0 {
		t.Errorf("pulled by digest it has tags %v", got.RepoTags)
	}
}

// TestRemove holds that an image goes with all its names and layers, unless others
// need them.
func TestRemove(t *testing.T) {
	r := newRig(t)
	a, b := r.push("a:1", base(), []entry{{name: "a", text: "a"}}), r.push("b:1", base(), []entry{{name: "b", text: "b"}})
	ida := r.pull(a)
	r.push("a:2", base(), []entry{{name: "a", text: "a"}})
	r.pull(b)
	if err := errors.Join(r.Remove(t.Context(), a), r.Remove(t.Context(), a), r.Remove(t.Context(), "none")); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.Status(string(ida)); got != nil {
		t.Errorf("still there: %v", got)
	}
	if n := r.layers(); n != 2 {
		t.Errorf("%d layers, want the two of the other image", n)
	}
	// One that a container has keeps its layers until the container is gone.
	idb := r.pull(b)
	ok(t, r.db.PutPod(t.Context(), store.Pod{ID: "p"}))
	ok(t, r.db.PutContainer(t.Context(), store.Container{ID: "c", PodID: "p", ImageID: idb}))
	if _, err := r.Rootfs(t.Context(), "c", idb); err != nil {
		t.Fatal(err)
	}
	ok(t, r.Remove(t.Context(), b))
	if got := r.List(""); len(got) != 0 {
		t.Errorf("removed, and listed: %v", got)
	}
	if n := r.layers(); n != 2 {
		t.Errorf("%d layers while a container has two", n)
	}
	if _, err := r.Rootfs(t.Context(), "c", idb); err != nil {
		t.Errorf("the container's root file system: %v", err)
	}
	ok(t, r.RemoveRootfs(t.Context(), "c"))
	ok(t, r.db.DeleteContainer(t.Context(), "c"))
	if n := r.layers(); n != 0 {
		t.Errorf("%d layers in the end", n)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) layers() int {
	list, err := os.ReadDir(filepath.Join(r.root, "overlay", "layers"))
	if err != nil {
		r.t.Fatal(err)
	}
	return len(list)
}

// TestPullGoesOn holds that the end of a caller's context is not the end of the pull at
// once, that another joins it, and that it ends when nobody comes.
func TestPullGoesOn(t *testing.T) {
	r := newRig(t)
	full := r.push("slow:1", base())
	asked, let := make(chan struct{}, 100), make(chan struct{})
	r.before = func(_ http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/blobs/") {
			asked <- struct{}{}
			select {
			case <-let:
			case <-req.Context().Done():
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := r.Pull(ctx, full, nil, nil); first <- err }()
	<-asked
	second := make(chan error, 1)
	go func() { _, err := r.Pull(t.Context(), full, nil, nil); second <- err }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	close(let)
	if err := <-second; err != nil {
		t.Errorf("the second: %v", err)
	}

	deadline, stop := context.WithTimeout(t.Context(), time.Nanosecond)
	defer stop()
	if _, err := r.Pull(deadline, full, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with no time: %v", err)
	}
}

// TestReopen holds what is found after the process ended, in order or not.
func TestReopen(t *testing.T) {
	r := newRig(t)
	a := r.pull(r.push("a:1", base(), []entry{{name: "a", text: "a"}}))
	b := r.pull(r.push("b:1", []entry{{name: "b", text: strings.Repeat("b", 5000)}}))
	if _, err := r.Rootfs(t.Context(), "nobodys", a); err != nil {
		t.Fatal(err)
	}
	r.close()
	r.open()
	if list := r.List(""); len(list) != 2 {
		t.Fatalf("images: %v", list)
	}
	if list, err := os.ReadDir(filepath.Join(r.root, "overlay", "containers")); err != nil || len(list) != 0 {
		t.Errorf("what containers wrote that nobody names: %v, %v", list, err)
	}
	// A power cut that takes the content of a file.
	m, err := r.Rootfs(t.Context(), "look", b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.Lower[0], "b")
	ok(t, r.Store.Close())
	r.db.Abandon()
	st, err := os.Stat(file)
	ok(t, err)
	ok(t, os.WriteFile(file, bytes.Repeat([]byte{0}, int(st.Size())), 0o755))
	ok(t, os.Chtimes(file, st.ModTime(), st.ModTime()))
	r.cfg.BootID = "00000000-0000-4000-8000-000000000001"
	r.open()
	if list := r.List(""); len(list) != 2 {
		// Layers of a run that ended in order are not looked at.
		t.Errorf("images: %v", list)
	}
	c := r.pull(r.push("c:1", []entry{{name: "c", text: strings.Repeat("c", 5000)}}))
	if m, err = r.Rootfs(t.Context(), "look", c); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(m.Lower[0], "c")
	ok(t, r.Store.Close())
	r.db.Abandon()
	ok(t, os.Truncate(file, 100))
	r.cfg.BootID = "00000000-0000-4000-8000-000000000002"
	r.open()
	if got, err := r.Status(string(c)); got != nil || err != nil {
		t.Errorf("an image with a damaged layer: %v, %v", got, err)
	}
	if id := r.pull(r.host + "/c:1"); id != c {
		t.Errorf("pulled again it is %s", id)
	}
}

// TestBadImages refuses images whose parts do not go together, and leaves nothing.
func TestBadImages(t *testing.T) {
	r := newRig(t)
	full := r.push("bad:1", base(), []entry{{name: "../../escape", text: "x"}})
	if _, err := r.Pull(t.Context(), full, nil, nil); err == nil {
		t.Error("a layer that leads out of its folder was pulled")
	}
	if list := r.List(""); len(list) != 0 {
		t.Errorf("images: %v", list)
	}
	r.close()
	r.open()
	if n := r.layers(); n != 0 {
		t.Errorf("%d layers are left", n)
	}
}

func TestPinned(t *testing.T) {
	r := newRig(t)
	r.pull(r.push("pinned:1", base()))
	if list := r.List(""); len(list) != 1 || !list[0].Pinned {
		t.Errorf("images: %v", list)
	}
}
