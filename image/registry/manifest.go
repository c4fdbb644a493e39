// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	image "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-cri/berth/store/content"
)

// Media types that Docker's images have, beside those of the image specification.
const (
	dockerIndex      = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest   = "application/vnd.docker.distribution.manifest.v2+json"
	dockerSchema1    = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1JWS = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerConfig     = "application/vnd.docker.container.image.v1+json"
	dockerLayer      = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign    = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

const (
	// MaxManifest is the size of the largest index or manifest that is read, in bytes.
	MaxManifest = 8 << 20
	// MaxConfig is that of the largest image configuration.
	MaxConfig = 8 << 20

	// maxNesting is how deep indexes may lie in indexes, maxIndexes how many are looked into for one
	// image.
	maxNesting = 4
	maxIndexes = 16
	// maxLayers is far beyond what can be mounted.
	maxLayers = 4096
)

// A Descriptor names content (image-spec, descriptor.md).
type Descriptor struct {
	MediaType string
	Digest    content.Digest
	Size      int64 // bytes
}

// A Document is an index or a manifest, exactly as it was hashed.
type Document struct {
	Descriptor
	Raw []byte
}

// A Manifest says of what an image consists.
type Manifest struct {
	Document
	// Via are the indexes that led to it, the outermost first; none if it was named itself.
	Via    []Document
	Config Descriptor
	Layers []Descriptor // the lowest first
}

// ReadManifest finds the manifest for a platform. It begins with root, which is a manifest, and then that is
// the answer whatever its platform, or an index; indexes may nest. Documents are taken from get, which
// verifies them: a store, or Repository.Document.
//
// It returns ErrNotFound where there is none for the platform, ErrUnsupported for what is no image,
// ErrMalformed, ErrTooLarge, and the errors of get.
func ReadManifest(ctx context.Context, root Descriptor, platform Platform, get func(context.Context, Descriptor) ([]byte, error)) (*Manifest, error) {
	s := search{get: get, choices: platform.choices()}
	m, err := s.look(ctx, root, nil)
	if err != nil {
		return nil, err
	}
	if m == nil {
		slices.Sort(s.others)
		return nil, fmt.Errorf("%w: no image for %s; there are %s", ErrNotFound, platform.normal(), cleanTo(strings.Join(slices.Compact(s.others), ", "), maxQuote))
	}
	return m, nil
}

// search is a search for a manifest.
type search struct {
	get     func(context.Context, Descriptor) ([]byte, error)
	choices []Platform
	indexes int
	others  []string // platforms that were seen and do not serve
}

// look reads a document; via are those that led to it. It returns nil without an error if nothing in it
// serves.
func (s *search) look(ctx context.Context, d Descriptor, via []Document) (*Manifest, error) {
	raw, err := s.get(ctx, d)
	if err != nil {
		return nil, err
	}
	doc := Document{Descriptor: d, Raw: raw}
	parsed, err := parseDocument(d.MediaType, raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	doc.MediaType = parsed.mediaType
	if parsed.index == nil {
		return &Manifest{Document: doc, Via: via, Config: parsed.config, Layers: parsed.layers}, nil
	}
	s.indexes++
	if len(via) == maxNesting || s.indexes > maxIndexes {
		return nil, fmt.Errorf("%w: an index with more than %d others in it, or more than %d deep", ErrTooLarge, maxIndexes, maxNesting)
	}
	inside := append(via[:len(via):len(via)], doc)
	for _, entry := range s.sort(parsed.index) {
		m, err := s.look(ctx, entry, inside)
		if err != nil || m != nil {
			return m, err
		}
	}
	return nil, nil
}

// sort returns those entries of an index that may serve: manifests for a platform that does, the best
// first, then what has no platform, in its order.
func (s *search) sort(entries []entry) []Descriptor {
	type ranked struct {
		Descriptor
		rank int
	}
	var out []ranked
	for _, e := range entries {
		rank := len(s.choices)
		if e.platform != nil {
			p := e.platform.normal()
			if rank = slices.Index(s.choices, p); rank < 0 {
				s.others = append(s.others, p.String())
				continue
			}
		}
		out = append(out, ranked{e.Descriptor, rank})
	}
	slices.SortStableFunc(out, func(a, b ranked) int { return a.rank - b.rank })
	list := make([]Descriptor, len(out))
	for i := range out {
		list[i] = out[i].Descriptor
	}
	return list
}

// parsed is a document: an index, or a manifest.
type parsed struct {
	mediaType string
	index     []entry // not nil: it is one
	config    Descriptor
	layers    []Descriptor
}

// entry is one of an index.
type entry struct {
	Descriptor
	platform *Platform
}

// document is what the fields of indexes and manifests look like, of all kinds.
type document struct {
	SchemaVersion int                 `json:"schemaVersion"`
	MediaType     string              `json:"mediaType"`
	Manifests     *[]image.Descriptor `json:"manifests"`
	Config        *image.Descriptor   `json:"config"`
	Layers        *[]image.Descriptor `json:"layers"`
	FSLayers      json.RawMessage     `json:"fsLayers"`
}

// parseDocument reads an index or a manifest that was announced as a media type. What it is, is said three
// times: by who named it, by itself, and by its fields. If they differ it means one thing to one reader
// and another to the next (CVE-2021-41190), and is refused.
func parseDocument(announced string, raw []byte) (*parsed, error) {
	var doc document
	if isSchema1(announced) {
		return nil, errSchema1()
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("%w: manifest: %s", ErrMalformed, clean(err.Error()))
	}
	if doc.SchemaVersion == 1 || doc.FSLayers != nil || isSchema1(doc.MediaType) {
		return nil, errSchema1()
	}
	if doc.SchemaVersion != 2 {
		return nil, fmt.Errorf("%w: manifest with schemaVersion %d, is to be 2", ErrMalformed, doc.SchemaVersion)
	}
	isIndex := doc.Manifests != nil
	if isIndex && (doc.Config != nil || doc.Layers != nil) {
		return nil, fmt.Errorf("%w: a manifest that is an index as well", ErrMalformed)
	}
	mediaType := doc.MediaType
	switch {
	case mediaType == "" && known(announced):
		mediaType = announced
	case mediaType == "" && isIndex:
		mediaType = image.MediaTypeImageIndex
	case mediaType == "":
		mediaType = image.MediaTypeImageManifest
	}
	switch {
	case !known(mediaType):
		return nil, fmt.Errorf("%w: media type %q is none of an image", ErrUnsupported, clean(mediaType))
	case known(announced) && announced != mediaType:
		return nil, fmt.Errorf("%w: announced as %s, the manifest calls itself %s", ErrMalformed, announced, mediaType)
	case isIndex != isIndexType(mediaType):
		return nil, fmt.Errorf("%w: the manifest's fields are not those of %s", ErrMalformed, mediaType)
	}
	if isIndex {
		return parseIndex(mediaType, *doc.Manifests)
	}
	return parseManifest(mediaType, &doc)
}

func parseIndex(mediaType string, entries []image.Descriptor) (*parsed, error) {
	p := &parsed{mediaType: mediaType, index: []entry{}}
	for i := range entries {
		if !known(entries[i].MediaType) && !isSchema1(entries[i].MediaType) {
			continue // something that is no image, which an index may hold as well
		}
		d, err := describe("entry of the index", &entries[i], MaxManifest)
		if err != nil {
			return nil, err
		}
		e := entry{Descriptor: d}
		if at := entries[i].Platform; at != nil {
			e.platform = &Platform{OS: at.OS, Architecture: at.Architecture, Variant: at.Variant}
		}
		p.index = append(p.index, e)
	}
	return p, nil
}

func parseManifest(mediaType string, doc *document) (*parsed, error) {
	if doc.Config == nil || doc.Layers == nil {
		return nil, fmt.Errorf("%w: a manifest without config or layers", ErrMalformed)
	}
	p := &parsed{mediaType: mediaType}
	switch doc.Config.MediaType {
	case image.MediaTypeImageConfig, dockerConfig, "application/octet-stream": // the last one from the first months of schema 2
	default:
		return nil, fmt.Errorf("%w: its configuration is %q: an artifact, not a container image", ErrUnsupported, clean(doc.Config.MediaType))
	}
	var err error
	if p.config, err = describe("config", doc.Config, MaxConfig); err != nil {
		return nil, err
	}
	if len(*doc.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers", ErrTooLarge, len(*doc.Layers))
	}
	for i := range *doc.Layers {
		l := &(*doc.Layers)[i]
		if err := checkLayer(l.MediaType); err != nil {
			return nil, err
		}
		d, err := describe("layer", l, 1<<62)
		if err != nil {
			return nil, err
		}
		p.layers = append(p.layers, d)
	}
	return p, nil
}

// describe reads a descriptor.
func describe(what string, d *image.Descriptor, most int64) (Descriptor, error) {
	digest, err := content.Parse(string(d.Digest))
	switch {
	case err != nil:
		return Descriptor{}, fmt.Errorf("%w: %s: %w", ErrMalformed, what, err)
	case d.Size < 0:
		return Descriptor{}, fmt.Errorf("%w: %s of %d bytes", ErrMalformed, what, d.Size)
	case d.Size > most:
		return Descriptor{}, fmt.Errorf("%w: %s of %d bytes, at most %d are read", ErrTooLarge, what, d.Size, most)
	}
	return Descriptor{MediaType: d.MediaType, Digest: digest, Size: d.Size}, nil
}

// checkLayer refuses, before anything is fetched, what cannot be unpacked.
func checkLayer(mediaType string) error {
	if strings.HasSuffix(mediaType, "+encrypted") {
		return fmt.Errorf("%w: the layers are encrypted (%s)", ErrUnsupported, clean(mediaType))
	}
	base, compression, _ := strings.Cut(mediaType, "+")
	switch base {
	case image.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar":
	case dockerLayer, dockerForeign, dockerLayer + ".gzip", dockerForeign + ".gzip", dockerLayer + ".zstd":
	default:
		return fmt.Errorf("%w: a layer of media type %q", ErrUnsupported, clean(mediaType))
	}
	switch compression {
	case "", "gzip", "zstd":
		return nil
	}
	return fmt.Errorf("%w: a layer of media type %q: known are plain, gzip and zstd", ErrUnsupported, clean(mediaType))
}

func known(mediaType string) bool {
	switch mediaType {
	case image.MediaTypeImageIndex, image.MediaTypeImageManifest, dockerIndex, dockerManifest:
		return true
	}
	return false
}

func isIndexType(mediaType string) bool {
	return mediaType == image.MediaTypeImageIndex || mediaType == dockerIndex
}

func isSchema1(mediaType string) bool {
	return mediaType == dockerSchema1 || mediaType == dockerSchema1JWS
}

// schema1 says what is wrong with one.
const schema1 = "a Docker schema 1 manifest, which nobody makes since 2017: build or push the image anew"

func errSchema1() error { return fmt.Errorf("%w: %s", ErrUnsupported, schema1) }

// acceptManifests is what a registry is asked for. The last one is for those that know media types of
// their own only; what comes then is looked at all the same.
func acceptManifests() string {
	return strings.Join([]string{image.MediaTypeImageIndex, image.MediaTypeImageManifest, dockerIndex, dockerManifest, "*/*"}, ", ")
}

// verify returns content.ErrSize or content.ErrDigest if bytes are not what a descriptor names.
func verify(d Descriptor, b []byte) error {
	if int64(len(b)) != d.Size {
		return fmt.Errorf("%w: %d bytes of %d", content.ErrSize, len(b), d.Size)
	}
	h := d.Digest.NewHash()
	h.Write(b)
	if got := fmt.Sprintf("%s:%x", d.Digest.Algorithm(), h.Sum(nil)); got != d.Digest.String() {
		return fmt.Errorf("%w: %s is to be %s", content.ErrDigest, got, d.Digest)
	}
	return nil
}

// looksLikeJSON keeps a page of HTML, as proxies send them, from being called a malformed manifest.
func looksLikeJSON(b []byte) bool { return bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")) }
