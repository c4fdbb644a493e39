// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	image "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/store/content"
)

const (
	ociIndex    = image.MediaTypeImageIndex
	ociManifest = image.MediaTypeImageManifest
	schema1     = "application/vnd.docker.distribution.manifest.v1+json"
	schema1JWS  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// someDigest is one of the right form.
var someDigest = content.FromBytes([]byte("x")).String()

func descriptor(mediaType string, size int64) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, someDigest, size)
}

// manifestText is a manifest with one layer.
func manifestText(mediaType, config, layer string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, mediaType, config, layer)
}

func TestDocuments(t *testing.T) {
	config, layer := descriptor(image.MediaTypeImageConfig, 10), descriptor(image.MediaTypeImageLayerGzip, 10)
	withLayer := func(mediaType string) string { return manifestText(ociManifest, config, descriptor(mediaType, 10)) }
	for _, c := range []struct {
		name, announced, text string
		want                  error
	}{
		{"manifest", ociManifest, manifestText(ociManifest, config, layer), nil},
		{"manifest that does not say so", ociManifest, `{"schemaVersion":2,"config":` + config + `,"layers":[]}`, nil},
		{"manifest that nobody says so of", "text/plain", `{"schemaVersion":2,"config":` + config + `,"layers":[]}`, nil},
		{"manifest announced as bytes", "application/octet-stream", manifestText(ociManifest, config, layer), nil},
		{"docker manifest", dockerManifest, manifestText(dockerManifest, descriptor(dockerConfig, 1), descriptor(dockerLayer, 1)), nil},
		{"mixed config and layer types", dockerManifest, manifestText(dockerManifest, config, layer), nil},
		{"old config", ociManifest, manifestText(ociManifest, descriptor("application/octet-stream", 1), layer), nil},
		{"index", ociIndex, `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[]}`, nil},
		{"docker list", dockerList, `{"schemaVersion":2,"manifests":[` + descriptor(dockerManifest, 1) + `]}`, nil},
		{"index of other things, too", ociIndex, `{"schemaVersion":2,"manifests":[{"mediaType":"application/x","digest":"?","size":-1}]}`, nil},
		{"plain layer", ociManifest, withLayer(image.MediaTypeImageLayer), nil},
		{"zstd layer", ociManifest, withLayer(image.MediaTypeImageLayerZstd), nil},
		{"docker zstd layer", ociManifest, withLayer("application/vnd.docker.image.rootfs.diff.tar.zstd"), nil},
		{"foreign layer", ociManifest, withLayer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), nil},

		{"encrypted layer", ociManifest, withLayer(image.MediaTypeImageLayerGzip + "+encrypted"), registry.ErrUnsupported},
		{"bzip2 layer", ociManifest, withLayer(image.MediaTypeImageLayer + "+bzip2"), registry.ErrUnsupported},
		{"layer that is none", ociManifest, withLayer("text/plain"), registry.ErrUnsupported},
		{"artifact", ociManifest, manifestText(ociManifest, descriptor("application/vnd.cncf.helm.config.v1+json", 1), layer), registry.ErrUnsupported},
		{"unknown media type", "", manifestText("application/x", config, layer), registry.ErrUnsupported},
		{"schema 1 announced", schema1, manifestText(ociManifest, config, layer), registry.ErrUnsupported},
		{"schema 1 signed", schema1JWS, `{}`, registry.ErrUnsupported},
		{"schema 1 by number", "", `{"schemaVersion":1,"name":"a"}`, registry.ErrUnsupported},
		{"schema 1 by layers", "", `{"schemaVersion":2,"fsLayers":[]}`, registry.ErrUnsupported},
		{"schema 1 by its own word", "", `{"schemaVersion":2,"mediaType":"` + schema1 + `"}`, registry.ErrUnsupported},

		{"no JSON", ociManifest, `<html>`, registry.ErrMalformed},
		{"more JSON", ociManifest, manifestText(ociManifest, config, layer) + "{}", registry.ErrMalformed},
		{"no version", ociManifest, `{"config":` + config + `,"layers":[]}`, registry.ErrMalformed},
		{"version 3", ociManifest, `{"schemaVersion":3,"config":` + config + `,"layers":[]}`, registry.ErrMalformed},
		{"empty", ociManifest, `{"schemaVersion":2}`, registry.ErrMalformed},
		{"no config", ociManifest, `{"schemaVersion":2,"layers":[]}`, registry.ErrMalformed},
		{"no layers", ociManifest, `{"schemaVersion":2,"config":` + config + `}`, registry.ErrMalformed},
		{"index and manifest", "", `{"schemaVersion":2,"manifests":[],"config":` + config + `,"layers":[]}`, registry.ErrMalformed},
		{"index and layers", ociIndex, `{"schemaVersion":2,"manifests":[],"layers":[]}`, registry.ErrMalformed},
		{"index announced, manifest given", ociIndex, manifestText(ociManifest, config, layer), registry.ErrMalformed},
		{"index announced, fields of a manifest", ociIndex, `{"schemaVersion":2,"config":` + config + `,"layers":[]}`, registry.ErrMalformed},
		{"manifest announced, index given", ociManifest, `{"schemaVersion":2,"manifests":[]}`, registry.ErrMalformed},
		{"manifest by its word, index by its fields", "", `{"schemaVersion":2,"mediaType":"` + ociManifest + `","manifests":[]}`, registry.ErrMalformed},
		{"OCI announced, Docker given", ociManifest, manifestText(dockerManifest, config, layer), registry.ErrMalformed},
		{"config with a bad digest", ociManifest, strings.Replace(manifestText(ociManifest, config, layer), someDigest, "sha256:../../etc", 1), registry.ErrMalformed},
		{"config without a digest", ociManifest, strings.Replace(manifestText(ociManifest, config, layer), someDigest, "", 1), registry.ErrMalformed},
		{"md5", ociManifest, strings.Replace(manifestText(ociManifest, config, layer), someDigest, "md5:d41d8cd98f00b204e9800998ecf8427e", 1), registry.ErrMalformed},
		{"layer of negative size", ociManifest, manifestText(ociManifest, config, descriptor(image.MediaTypeImageLayer, -1)), registry.ErrMalformed},
		{"entry of negative size", ociIndex, `{"schemaVersion":2,"manifests":[` + descriptor(ociManifest, -1) + `]}`, registry.ErrMalformed},

		{"huge config", ociManifest, manifestText(ociManifest, descriptor(image.MediaTypeImageConfig, 8<<20+1), layer), registry.ErrTooLarge},
		{"huge entry", ociIndex, `{"schemaVersion":2,"manifests":[` + descriptor(ociManifest, 8<<20+1) + `]}`, registry.ErrTooLarge},
		{"many layers", ociManifest, manifestText(ociManifest, config, strings.Repeat(layer+",", 4096)+layer), registry.ErrTooLarge},
		{"deep", ociManifest, strings.Repeat("[", 1<<20), registry.ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := registry.CheckDocument(c.announced, []byte(c.text))
			if !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

// library is a place that documents are taken from.
type library map[content.Digest][]byte

func (l library) get(_ context.Context, d registry.Descriptor) ([]byte, error) {
	if b, ok := l[d.Digest]; ok {
		return b, nil
	}
	return nil, registry.ErrNotFound
}

func (l library) put(mediaType, text string) registry.Descriptor {
	d := content.FromBytes([]byte(text))
	l[d] = []byte(text)
	return registry.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(text))}
}

// image adds a manifest that differs from others by its name.
func (l library) image(name string) registry.Descriptor {
	return l.put(ociManifest, `{"schemaVersion":2,"annotations":{"name":"`+name+`"},"config":`+descriptor(image.MediaTypeImageConfig, 1)+`,"layers":[]}`)
}

// index adds an index of documents, each with a platform, "" for none.
func (l library) index(t *testing.T, entries ...any) registry.Descriptor {
	t.Helper()
	i := image.Index{MediaType: ociIndex, Manifests: []image.Descriptor{}}
	i.SchemaVersion = 2
	for n := 0; n < len(entries); n += 2 {
		d := oci(entries[n+1].(registry.Descriptor))
		if p := entries[n].(string); p != "" {
			parts := strings.Split(p+"/", "/")
			d.Platform = &image.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
		}
		i.Manifests = append(i.Manifests, d)
	}
	raw, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	return l.put(ociIndex, string(raw))
}

func TestChoosing(t *testing.T) {
	l := library{}
	a, b, c := l.image("a"), l.image("b"), l.image("c")
	amd64 := registry.Platform{OS: "linux", Architecture: "amd64"}
	arm64 := registry.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	for _, test := range []struct {
		name     string
		platform registry.Platform
		root     registry.Descriptor
		want     registry.Descriptor
		err      error
	}{
		{"the only one", amd64, l.index(t, "linux/amd64", a), a, nil},
		{"among others", amd64, l.index(t, "linux/arm64", b, "windows/amd64", c, "linux/amd64", a), a, nil},
		{"the first of equals", amd64, l.index(t, "linux/amd64", a, "linux/amd64", b), a, nil},
		{"other spellings", amd64, l.index(t, "Linux/x86_64/v1", a), a, nil},
		{"not a later variant", amd64, l.index(t, "linux/amd64/v3", b, "linux/amd64", a), a, nil},
		{"the best variant", registry.Platform{OS: "linux", Architecture: "amd64", Variant: "v3"}, l.index(t, "linux/amd64", b, "linux/amd64/v2", a, "linux/amd64/v4", c), a, nil},
		{"32 bits at last", amd64, l.index(t, "linux/386", a, "linux/arm", b), a, nil},
		{"arm64 without variant", arm64, l.index(t, "linux/arm/v7", b, "linux/arm64", a), a, nil},
		{"arm for arm64", arm64, l.index(t, "linux/arm/v6", b, "linux/arm/v7", a), a, nil},
		{"arm v6 for v7", registry.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, l.index(t, "linux/arm/v6", a, "linux/arm/v8", b), a, nil},
		{"no platform is said", amd64, l.index(t, "", a), a, nil},
		{"a platform goes before none", amd64, l.index(t, "", b, "linux/amd64", a), a, nil},
		{"attestations", amd64, l.index(t, "unknown/unknown", b, "linux/amd64", a), a, nil},
		{"nested", amd64, l.index(t, "", l.index(t, "linux/arm64", b), "", l.index(t, "linux/amd64", a)), a, nil},
		{"nested for a platform", arm64, l.index(t, "linux/amd64", a, "linux/arm64", l.index(t, "linux/arm64/v9", a, "linux/arm64/v8", b)), b, nil},
		{"none", amd64, l.index(t, "linux/arm64", b), registry.Descriptor{}, registry.ErrNotFound},
		{"none at all", amd64, l.index(t), registry.Descriptor{}, registry.ErrNotFound},
		{"missing", amd64, l.index(t, "linux/amd64", registry.Descriptor{MediaType: ociManifest, Digest: content.FromBytes([]byte("gone"))}), registry.Descriptor{}, registry.ErrNotFound},
		{"a lie about the kind", amd64, l.index(t, "linux/amd64", registry.Descriptor{MediaType: ociIndex, Digest: a.Digest, Size: a.Size}), registry.Descriptor{}, registry.ErrMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := registry.ReadManifest(t.Context(), test.root, test.platform, l.get)
			if !errors.Is(err, test.err) {
				t.Fatalf("error is %v, want %v", err, test.err)
			}
			if err == nil && m.Descriptor != test.want {
				t.Errorf("chose %s", m.Raw)
			}
		})
	}
}

// TestNesting has indexes that are too deep, and too many.
func TestNesting(t *testing.T) {
	amd64 := registry.Platform{OS: "linux", Architecture: "amd64"}
	l := library{}
	root := l.image("a")
	for depth := range 8 {
		m, err := registry.ReadManifest(t.Context(), root, amd64, l.get)
		if depth <= 4 && (err != nil || len(m.Via) != depth) {
			t.Errorf("depth %d: %v", depth, err)
		}
		if depth > 4 {
			wantErr(t, err, registry.ErrTooLarge)
		}
		root = l.index(t, "", root)
	}
	var many []any
	for i := range 1000 {
		many = append(many, "", l.index(t, "linux/arm64", l.image(fmt.Sprint(i))))
	}
	n := 0
	_, err := registry.ReadManifest(t.Context(), l.index(t, many...), amd64, func(ctx context.Context, d registry.Descriptor) ([]byte, error) {
		n++
		return l.get(ctx, d)
	})
	wantErr(t, err, registry.ErrTooLarge)
	if n > 20 {
		t.Errorf("%d documents were read", n)
	}
}

func TestChoices(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64":      "linux/amd64 linux/386",
		"linux/amd64/v3":   "linux/amd64/v3 linux/amd64/v2 linux/amd64 linux/386",
		"linux/arm64":      "linux/arm64/v8 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"linux/arm64/v8.2": "linux/arm64/v8.2 linux/arm64/v8.1 linux/arm64/v8 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"linux/arm64/v9": "linux/arm64/v9 linux/arm64/v8.5 linux/arm64/v8.4 linux/arm64/v8.3 linux/arm64/v8.2 linux/arm64/v8.1 linux/arm64/v8 " +
			"linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"linux/arm":     "linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"linux/riscv64": "linux/riscv64",
		"linux/amd64/x": "linux/amd64/x linux/amd64 linux/386",
	} {
		parts := strings.Split(in+"/", "/")
		var got []string
		for _, p := range (registry.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}).Choices() {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	if m := registry.Machine(); m.OS == "" || m.Architecture == "" {
		t.Errorf("%v", m)
	}
}

// TestHugeManifests has registries send more than is read.
func TestHugeManifests(t *testing.T) {
	var written atomic.Int64
	for _, c := range []struct {
		name string
		head bool // answers HEAD with a length
	}{{"announced", true}, {"not announced", false}} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				w.Header().Set("Content-Type", ociManifest)
				if c.head {
					w.Header().Set("Docker-Content-Digest", someDigest)
					w.Header().Set("Content-Length", "1000000000")
				}
				if r.Method == http.MethodHead {
					return
				}
				for b := []byte("{" + strings.Repeat(" ", 64<<10)); r.Context().Err() == nil; {
					n, err := w.Write(b)
					if written.Add(int64(n)); err != nil {
						return
					}
				}
			})
			p := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{})
			_, err := p.Resolve(t.Context())
			wantErr(t, err, registry.ErrTooLarge)
			wantText(t, err, "8388608")
			for _, size := range []int64{10, 1 << 30} {
				_, err = p.Document(t.Context(), registry.Descriptor{Digest: content.Digest(someDigest), Size: size})
				wantErr(t, err, registry.ErrTooLarge)
			}
			if n := written.Swap(0); n > 64<<20 { // what two requests took, and what was on its way
				t.Errorf("%d bytes were taken", n)
			}
			_, err = p.Config(t.Context(), registry.Descriptor{Digest: content.Digest(someDigest), Size: 1 << 30})
			wantErr(t, err, registry.ErrTooLarge)
		})
	}
}

// TestResolveByGet has registries that answer HEAD with less than they should.
func TestResolveByGet(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 10)
	head := func(do func(w http.ResponseWriter, r *http.Request, next http.Handler)) middleware {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodHead {
				do(w, r, next)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
	for name, between := range map[string]middleware{
		"no HEAD":   head(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(405) }),
		"no digest": head(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.Header().Set("Content-Length", "10") }),
		"bad digest": head(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Docker-Content-Digest", "x")
		}),
		"no size": head(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Docker-Content-Digest", someDigest)
		}),
		"empty": head(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Docker-Content-Digest", someDigest)
			w.Header().Set("Content-Length", "0")
		}),
	} {
		t.Run(name, func(t *testing.T) {
			s.set(between)
			for _, suffix := range []string{":v1", "@" + img.manifest.Digest.String()} {
				p := repository(t, newClient(t, registry.Options{}), s.host+"/app"+suffix, registry.Auth{})
				s.asked()
				d, err := p.Resolve(t.Context())
				if err != nil || d != img.manifest {
					t.Errorf("%+v, %v", d, err)
				}
				if _, err := p.Manifest(t.Context(), d); err != nil {
					t.Error(err)
				}
				bodies := 0
				for _, r := range s.asked() {
					if r.Method == http.MethodGet {
						bodies++
					}
				}
				if bodies != 1 {
					t.Errorf("fetched %d times", bodies)
				}
			}
		})
	}
	t.Run("a page", func(t *testing.T) {
		s.set(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = io.WriteString(w, "<html>Log in") })
		_, err := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{}).Resolve(t.Context())
		wantErr(t, err, registry.ErrMalformed)
		wantText(t, err, "is it a registry?")
	})
	t.Run("schema 1", func(t *testing.T) {
		for _, text := range []string{schema1, schema1JWS} {
			s.set(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Content-Type", text)
				_, _ = io.WriteString(w, `{"schemaVersion":1}`)
			})
			_, err := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{}).Resolve(t.Context())
			wantErr(t, err, registry.ErrUnsupported)
			wantText(t, err, "schema 1", s.host+"/app:v1", "push the image anew")
		}
	})
}

func FuzzDocument(f *testing.F) {
	config, layer := descriptor(image.MediaTypeImageConfig, 10), descriptor(image.MediaTypeImageLayerGzip, 10)
	for _, s := range []string{
		manifestText(ociManifest, config, layer), `{"schemaVersion":2,"manifests":[` + descriptor(ociManifest, 1) + `]}`,
		`{"schemaVersion":1}`, `[]`, `null`, `{"schemaVersion":2,"manifests":null,"layers":null}`, `{"schemaversion":2,"LAYERS":[],"config":{}}`,
	} {
		f.Add(ociManifest, []byte(s))
		f.Add("", []byte(s))
	}
	f.Fuzz(func(t *testing.T, mediaType string, raw []byte) {
		known := []error{registry.ErrMalformed, registry.ErrUnsupported, registry.ErrTooLarge}
		err := registry.CheckDocument(mediaType, raw)
		if err != nil && !errors.Is(err, known[0]) && !errors.Is(err, known[1]) && !errors.Is(err, known[2]) {
			t.Errorf("error is %v", err)
		}
		d := registry.Descriptor{MediaType: mediaType, Digest: content.FromBytes(raw), Size: int64(len(raw))}
		m, err := registry.ReadManifest(t.Context(), d, registry.Platform{OS: "linux", Architecture: "amd64"}, func(_ context.Context, got registry.Descriptor) ([]byte, error) {
			if got != d {
				return nil, registry.ErrNotFound
			}
			return raw, nil
		})
		if err != nil {
			return
		}
		for _, l := range append(m.Layers, m.Config) {
			if l.Digest.Validate() != nil || l.Size < 0 {
				t.Errorf("%+v", l)
			}
		}
	})
}
