// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	godigest "github.com/opencontainers/go-digest"
	image "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/image/ref"
	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/store/content"
)

func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard) // each test makes hosts fail
	os.Exit(leak.Main(m, leak.Goroutines(), leak.Descriptors()))
}

// middleware stands between the client and a registry. It answers itself, or calls next.
type middleware func(w http.ResponseWriter, r *http.Request, next http.Handler)

// server is a registry in this process, and what it was asked.
type server struct {
	*httptest.Server
	host string // 127.0.0.1:PORT

	mu       sync.Mutex
	between  middleware
	requests []*http.Request
	conns    int
}

// start starts a registry of go-containerregistry's, on which the blobs and manifests of others can be
// put.
func start(t *testing.T, between middleware) *server { return startOn(t, between, false) }

func startTLS(t *testing.T, between middleware) *server { return startOn(t, between, true) }

func startOn(t *testing.T, between middleware, tls bool) *server {
	t.Helper()
	s := &server{between: between}
	genuine := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r)
		between := s.between
		s.mu.Unlock()
		if between == nil || r.Header.Get("X-Test-Push") != "" {
			genuine.ServeHTTP(w, r)
			return
		}
		between(w, r, genuine)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.mu.Lock()
			s.conns++
			s.mu.Unlock()
		}
	}
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	s.host = s.Listener.Addr().String()
	return s
}

// connections is how many there have been.
func (s *server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// set changes what stands in between.
func (s *server) set(between middleware) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.between = between
}

// asked returns the requests of pulls since the last call, as "METHOD PATH".
func (s *server) asked() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*http.Request
	for _, r := range s.requests {
		if r.Header.Get("X-Test-Push") == "" {
			out = append(out, r)
		}
	}
	s.requests = nil
	return out
}

func (s *server) push(t *testing.T, method, path, mediaType string, body []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", mediaType)
	r.Header.Set("X-Test-Push", "1")
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s %s", method, path, resp.Status, b)
	}
}

// blob puts a blob onto a registry.
func (s *server) blob(t *testing.T, repo string, b []byte) registry.Descriptor {
	t.Helper()
	d := content.FromBytes(b)
	s.push(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", b)
	return registry.Descriptor{MediaType: image.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(b))}
}

// manifest puts an index or a manifest under a tag.
func (s *server) manifest(t *testing.T, repo, tag, mediaType string, raw []byte) registry.Descriptor {
	t.Helper()
	s.push(t, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, mediaType, raw)
	return registry.Descriptor{MediaType: mediaType, Digest: content.FromBytes(raw), Size: int64(len(raw))}
}

// pushed is an image on a registry.
type pushed struct {
	manifest, config registry.Descriptor
	layers           []registry.Descriptor
	bytes            map[content.Digest][]byte
}

// image puts an image with layers of random bytes onto a registry.
func (s *server) image(t *testing.T, repo, tag string, sizes ...int) pushed {
	t.Helper()
	return s.imageAs(t, repo, tag, image.MediaTypeImageManifest, image.MediaTypeImageConfig, image.MediaTypeImageLayerGzip, sizes...)
}

func (s *server) imageAs(t *testing.T, repo, tag, manifestType, configType, layerType string, sizes ...int) pushed {
	t.Helper()
	p := pushed{bytes: make(map[content.Digest][]byte)}
	put := func(b []byte, mediaType string) registry.Descriptor {
		d := s.blob(t, repo, b)
		d.MediaType = mediaType
		p.bytes[d.Digest] = b
		return d
	}
	config, err := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "id": repo + tag})
	if err != nil {
		t.Fatal(err)
	}
	p.config = put(config, configType)
	m := image.Manifest{MediaType: manifestType, Config: oci(p.config)}
	m.SchemaVersion = 2
	for _, size := range sizes {
		b := make([]byte, size)
		rand.Read(b)
		l := put(b, layerType)
		p.layers = append(p.layers, l)
		m.Layers = append(m.Layers, oci(l))
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	p.manifest = s.manifest(t, repo, tag, manifestType, raw)
	p.bytes[p.manifest.Digest] = raw
	return p
}

func oci(d registry.Descriptor) image.Descriptor {
	return image.Descriptor{MediaType: d.MediaType, Digest: godigest.Digest(d.Digest), Size: d.Size}
}

// newClient returns a client that is not patient.
func newClient(t *testing.T, o registry.Options) *registry.Client {
	t.Helper()
	if o.Backoff == 0 {
		o.Backoff = time.Millisecond
	}
	if o.Platform == (registry.Platform{}) {
		o.Platform = registry.Platform{OS: "linux", Architecture: "amd64"}
	}
	c := registry.New(o)
	t.Cleanup(c.Close)
	return c
}

func repository(t *testing.T, c *registry.Client, name string, auth registry.Auth) *registry.Repository {
	t.Helper()
	r, err := ref.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Repository(r, auth)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func openStore(t *testing.T) *content.Store {
	t.Helper()
	return openStoreAt(t, filepath.Join(t.TempDir(), "blobs"))
}

func openStoreAt(t *testing.T, folder string) *content.Store {
	t.Helper()
	s, err := content.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// hold fails the test if a store does not hold a blob.
func hold(t *testing.T, s *content.Store, d registry.Descriptor, want []byte) {
	t.Helper()
	r, err := s.Reader(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the store has %d other bytes, %v", len(got), err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

// wantText fails the test if an error does not say all of some words.
func wantText(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("error %v does not say %q", err, word)
		}
	}
}

// hostsFolder writes a hosts.toml for a registry into a new folder of such folders, and returns that one.
func hostsFolder(t *testing.T, host, text string) string {
	t.Helper()
	root := t.TempDir()
	write(t, filepath.Join(root, host, "hosts.toml"), text)
	return root
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// mirrors writes a hosts.toml with hosts before the registry itself, all plain HTTP.
func mirrors(t *testing.T, of string, hosts ...string) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "server = %q\n", "http://"+of)
	for _, h := range hosts {
		fmt.Fprintf(&b, "[host.%q]\n", "http://"+h)
	}
	return hostsFolder(t, of, b.String())
}

// naps are the times that a client waited.
type naps struct {
	mu   sync.Mutex
	list []time.Duration
}

func (n *naps) sleep(ctx context.Context, d time.Duration) error {
	n.mu.Lock()
	n.list = append(n.list, d)
	n.mu.Unlock()
	return ctx.Err()
}

func (n *naps) all() []time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.list)
}

// fail answers with a status and the body that registries give.
func fail(w http.ResponseWriter, status int, code, message string) {
	b, err := json.Marshal(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}
