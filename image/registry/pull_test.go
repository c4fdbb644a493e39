// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	image "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-cri/berth/image/ref"
	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/store/content"
)

// TestPull pulls images of both kinds from a real registry: by tag and by digest, with and without an
// index.
func TestPull(t *testing.T) {
	s := start(t, nil)
	oci1 := s.image(t, "team/app", "amd", 100, 300<<10)
	oci2 := s.image(t, "team/app", "arm", 10)
	index := func(tag, mediaType string, entries ...image.Descriptor) registry.Descriptor {
		i := image.Index{MediaType: mediaType, Manifests: entries}
		i.SchemaVersion = 2
		raw, err := json.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		return s.manifest(t, "team/app", tag, mediaType, raw)
	}
	on := func(p pushed, os, architecture, variant string) image.Descriptor {
		d := oci(p.manifest)
		d.Platform = &image.Platform{OS: os, Architecture: architecture, Variant: variant}
		return d
	}
	docker := s.imageAs(t, "team/app", "docker", dockerManifest, dockerConfig, dockerLayer, 1000)
	i1 := index("multi", image.MediaTypeImageIndex, on(oci2, "linux", "arm64", "v8"), on(oci1, "linux", "amd64", ""), on(oci2, "unknown", "unknown", ""))
	i2 := index("list", dockerList, on(docker, "linux", "amd64", ""))
	nested := oci(i1)
	i3 := index("nested", image.MediaTypeImageIndex, on(oci2, "linux", "s390x", ""), nested)
	index("foreign", image.MediaTypeImageIndex, on(oci2, "linux", "s390x", ""), on(oci2, "linux", "ppc64le", ""))

	for _, c := range []struct {
		name, suffix string
		root         registry.Descriptor
		via          int
		want         pushed
	}{
		{"manifest by tag", ":amd", oci1.manifest, 0, oci1},
		{"manifest by digest", "@" + oci1.manifest.Digest.String(), oci1.manifest, 0, oci1},
		{"the digest goes before the tag", ":arm@" + oci1.manifest.Digest.String(), oci1.manifest, 0, oci1},
		{"another platform's, named itself", ":arm", oci2.manifest, 0, oci2},
		{"index", ":multi", i1, 1, oci1},
		{"index by digest", "@" + i1.Digest.String(), i1, 1, oci1},
		{"docker manifest", ":docker", docker.manifest, 0, docker},
		{"docker list", ":list", i2, 1, docker},
		{"index in an index", ":nested", i3, 2, oci1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := repository(t, newClient(t, registry.Options{}), s.host+"/team/app"+c.suffix, registry.Auth{})
			root, err := p.Resolve(t.Context())
			if err != nil || root != c.root {
				t.Fatalf("%+v, %v; want %+v", root, err, c.root)
			}
			m, err := p.Manifest(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			if m.Descriptor != c.want.manifest || len(m.Via) != c.via || m.Config != c.want.config || !slices.Equal(m.Layers, c.want.layers) {
				t.Errorf("%+v via %d, want %+v", m, len(m.Via), c.want)
			}
			if string(m.Raw) != string(c.want.bytes[m.Digest]) {
				t.Error("other bytes")
			}
			config, err := p.Config(t.Context(), m.Config)
			if err != nil || string(config) != string(c.want.bytes[m.Config.Digest]) {
				t.Errorf("config %q, %v", config, err)
			}
			store := openStore(t)
			for _, l := range m.Layers {
				var done []int64
				if err := p.Fetch(t.Context(), l, store, func(n int64) { done = append(done, n) }); err != nil {
					t.Fatal(err)
				}
				hold(t, store, l, c.want.bytes[l.Digest])
				if done[0] != 0 || done[len(done)-1] != l.Size || !slices.IsSorted(done) {
					t.Errorf("progress %d", done)
				}
			}
		})
	}

	t.Run("no such platform", func(t *testing.T) {
		p := repository(t, newClient(t, registry.Options{}), s.host+"/team/app:foreign", registry.Auth{})
		root, err := p.Resolve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Manifest(t.Context(), root)
		wantErr(t, err, registry.ErrNotFound)
		wantText(t, err, s.host+"/team/app:foreign", "linux/amd64", "linux/ppc64le, linux/s390x")
	})
	t.Run("no such tag", func(t *testing.T) {
		_, err := repository(t, newClient(t, registry.Options{}), s.host+"/team/app:nope", registry.Auth{}).Resolve(t.Context())
		wantErr(t, err, registry.ErrNotFound)
		wantText(t, err, s.host+"/team/app:nope")
	})
	t.Run("no such blob", func(t *testing.T) {
		p := repository(t, newClient(t, registry.Options{}), s.host+"/team/app:amd", registry.Auth{})
		d := registry.Descriptor{Digest: content.FromBytes([]byte("nope")), Size: 4}
		err := p.Fetch(t.Context(), d, openStore(t), nil)
		wantErr(t, err, registry.ErrNotFound)
		wantText(t, err, s.host, d.Digest.String())
	})
}

// TestNotCompressed has a registry that compresses what it sends, to those who accept it: a digest, a size
// and an offset are of the bytes as they are.
func TestNotCompressed(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 100)
	s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(img.bytes[content.Digest(path.Base(r.URL.Path))])
			z.Close()
			return
		}
		next.ServeHTTP(w, r)
	})
	b, err := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{}).Blob(t.Context(), img.layers[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, r := range s.asked() {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("accepts %q", r.Header.Get("Accept-Encoding"))
		}
	}
}

// TestFetchExisting asks nobody for what is there.
func TestFetchExisting(t *testing.T) {
	s := start(t, nil)
	store := openStore(t)
	d, err := store.Put(t.Context(), []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	p := repository(t, newClient(t, registry.Options{}), s.host+"/app", registry.Auth{})
	var done []int64
	if err := p.Fetch(t.Context(), registry.Descriptor{Digest: d, Size: 5}, store, func(n int64) { done = append(done, n) }); err != nil {
		t.Fatal(err)
	}
	if len(s.asked()) != 0 || !slices.Equal(done, []int64{5}) {
		t.Errorf("progress %d", done)
	}
}

// TestEmptyBlob has nothing to fetch and still looks at the digest.
func TestEmptyBlob(t *testing.T) {
	s := start(t, nil)
	p := repository(t, newClient(t, registry.Options{}), s.host+"/app", registry.Auth{})
	if err := p.Fetch(t.Context(), registry.Descriptor{Digest: content.FromBytes(nil)}, openStore(t), nil); err != nil {
		t.Error(err)
	}
	err := p.Fetch(t.Context(), registry.Descriptor{Digest: content.FromBytes([]byte("x"))}, openStore(t), nil)
	wantErr(t, err, content.ErrDigest)
}

// TestParallel fetches many layers at a time, some of them twice, over few connections and with one token.
func TestParallel(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 1000, 200<<10, 300<<10, 1, 50<<10, 64<<10, 128<<10, 2<<20)
	auth := newTokenServer(t, "app", "user", "pw")
	s.set(auth.guard)
	client := newClient(t, registry.Options{})
	p := repository(t, client, s.host+"/app:v1", registry.Auth{Username: "user", Password: registry.NewSecret("pw")})
	store := openStore(t)
	var wg sync.WaitGroup
	for range 2 {
		for _, l := range img.layers {
			wg.Go(func() {
				if err := p.Fetch(t.Context(), l, store, nil); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	asked := s.asked()
	for _, l := range img.layers {
		hold(t, store, l, img.bytes[l.Digest])
		n := 0
		for _, r := range asked {
			if strings.HasSuffix(r.URL.Path, l.Digest.String()) && r.Header.Get("Authorization") != "" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s was fetched %d times", l.Digest, n)
		}
	}
	if n := auth.issued(); n != 1 {
		t.Errorf("%d tokens", n)
	}
}

// TestFlatMemory fetches a blob of 64 MiB: what is allocated, by registry and client together, does not
// grow with it.
func TestFlatMemory(t *testing.T) {
	const size = 64 << 20
	chunk := make([]byte, 64<<10)
	h := content.Digest("sha256:").NewHash()
	for range size / len(chunk) {
		h.Write(chunk)
	}
	s := start(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for range size / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	d := registry.Descriptor{Digest: digestOf(h), Size: size}
	p := repository(t, newClient(t, registry.Options{}), s.host+"/app", registry.Auth{})
	store := openStore(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := p.Fetch(t.Context(), d, store, nil); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 4<<20 {
		t.Errorf("allocated %d bytes for %d", got, size)
	}
}

// TestConnections are used again, and no more than a few are kept.
func TestConnections(t *testing.T) {
	s := start(t, nil)
	s.image(t, "app", "v1", 1000, 2000, 3000)
	client := newClient(t, registry.Options{})
	for range 5 {
		p := repository(t, client, s.host+"/app:v1", registry.Auth{}) // reads the configuration anew
		store := openStore(t)
		root, err := p.Resolve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m, err := p.Manifest(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			if err := p.Fetch(t.Context(), l, store, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	// One by our push, one that found out that no TLS is spoken for each of five pulls, one for all the
	// rest.
	if n := s.connections(); n > 1+5+2 {
		t.Errorf("%d connections", n)
	}
}

// TestRedirectsKeepConnections fetches layers that lie elsewhere: the connection to the registry is used
// again, though it says a few words to each redirect.
func TestRedirectsKeepConnections(t *testing.T) {
	s, cdn := start(t, nil), start(t, nil)
	img := s.image(t, "app", "v1", 10, 20, 30, 40, 50)
	for _, l := range img.layers {
		cdn.blob(t, "app", img.bytes[l.Digest])
	}
	s.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, cdn.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	p := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{})
	store := openStore(t)
	for _, l := range img.layers {
		if err := p.Fetch(t.Context(), l, store, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []*server{s, cdn} {
		if n := s.connections(); n > 3 { // by our push, by looking for TLS, and for the rest
			t.Errorf("%d connections", n)
		}
	}
}

// TestBlobAtOffset reads from the middle of a blob.
func TestBlobAtOffset(t *testing.T) {
	s := start(t, nil)
	text := "hello world"
	d := s.blob(t, "app", []byte(text))
	p := repository(t, newClient(t, registry.Options{}), s.host+"/app", registry.Auth{})
	for offset := range int64(len(text) + 1) {
		b, err := p.Blob(t.Context(), d, offset)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b)
		if err != nil || string(got) != text[offset:] || b.Offset() != d.Size {
			t.Errorf("from %d: %q, %v", offset, got, err)
		}
		b.Close()
	}
	for _, offset := range []int64{-1, d.Size + 1} {
		_, err := p.Blob(t.Context(), d, offset)
		wantErr(t, err, content.ErrSize)
	}
	for _, d := range []content.Digest{"", "sha256:../../x", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		_, err := p.Blob(t.Context(), registry.Descriptor{Digest: d, Size: 1}, 0)
		wantErr(t, err, content.ErrBadDigest)
		_, err = p.Document(t.Context(), registry.Descriptor{Digest: d, Size: 1})
		wantErr(t, err, content.ErrBadDigest)
	}
}

// TestCloseEarly closes a blob of which only a little was read: the connection is let go of.
func TestCloseEarly(t *testing.T) {
	ended := make(chan struct{})
	s := start(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = w.Write([]byte("hello"))
		http.NewResponseController(w).Flush() //nolint:errcheck // what is not sent is not read
		<-r.Context().Done()
		close(ended)
	})
	p := repository(t, newClient(t, registry.Options{}), s.host+"/app", registry.Auth{})
	b, err := p.Blob(t.Context(), registry.Descriptor{Digest: content.FromBytes(nil), Size: 1 << 20}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the connection is still there")
	}
	_, err = b.Read(make([]byte, 1))
	wantErr(t, err, fs.ErrClosed)
}

// BenchmarkFetch fetches 64 MiB into a store: connection, hash and disk.
func BenchmarkFetch(b *testing.B) {
	const size = 64 << 20
	chunk := make([]byte, 64<<10)
	h := content.Digest("sha256:").NewHash()
	for range size / len(chunk) {
		h.Write(chunk)
	}
	d := registry.Descriptor{Digest: digestOf(h), Size: size}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range size / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	r, err := ref.Parse(s.Listener.Addr().String() + "/app")
	if err != nil {
		b.Fatal(err)
	}
	store, err := content.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	client := registry.New(registry.Options{})
	defer client.Close()
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		p, err := client.Repository(r, registry.Auth{})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Fetch(b.Context(), d, store, nil); err != nil {
			b.Fatal(err)
		}
		if err := store.Delete(d.Digest); err != nil {
			b.Fatal(err)
		}
	}
}
