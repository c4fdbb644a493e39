// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/berth-cri/berth/store/content"
)

// Resolve asks what the name means and returns a descriptor of its manifest or index. If the name has a
// digest, it is that one's, fetched and verified; otherwise the answer is that of the first host that may
// say what a tag means, which nobody can verify.
//
// Of a tag only the header is asked for, where a registry can do that: those that limit pulls count bodies.
func (p *Repository) Resolve(ctx context.Context) (Descriptor, error) {
	want := content.Digest(p.ref.Digest())
	r, err := p.round(func(e *endpoint) bool { return e.pull && (want != "" || e.resolve) })
	if err != nil {
		return Descriptor{}, p.wrap("", err)
	}
	for {
		e, err := r.host(ctx)
		if err != nil {
			return Descriptor{}, p.wrap("", err)
		}
		doc, err := e.resolveTag(ctx, string(p.ref.Tag()), want)
		if err == nil {
			if doc.Raw != nil {
				p.kept.Store(&doc)
			}
			return doc.Descriptor, nil
		}
		if err := r.failed(ctx, e, err); err != nil {
			return Descriptor{}, p.wrap("", err)
		}
	}
}

// resolveTag asks one host for a tag, or for what has a digest, if that is not empty. The document has its
// bytes if they were sent.
func (e *endpoint) resolveTag(ctx context.Context, tag string, want content.Digest) (Document, error) {
	q := ask{method: http.MethodHead, path: "manifests/" + tag, accept: acceptManifests()}
	if want == "" {
		resp, err := e.do(ctx, q)
		if err == nil {
			resp.Body.Close()
			d, ok, err := e.announced(resp)
			if err != nil || ok {
				return Document{Descriptor: d}, err
			}
		} else if f := asFailure(err); f == nil || f.temporary || f.status == 0 || errors.Is(err, ErrNotFound) {
			return Document{}, err
		}
		// It answers HEAD with less than it has to, or not at all. A refusal is asked for again, too: only the
		// answer to GET has a body, which says why.
	} else {
		q.path = "manifests/" + want.String()
	}
	q.method = http.MethodGet
	raw, mediaType, err := e.document(ctx, q)
	if err != nil {
		return Document{}, err
	}
	d := Descriptor{MediaType: mediaType, Digest: want, Size: int64(len(raw))}
	if want == "" {
		d.Digest = content.FromBytes(raw)
	} else if err := verify(d, raw); err != nil {
		return Document{}, e.fail(e.host, ErrMalformed, err.Error(), err)
	}
	return Document{d, raw}, e.checkType(mediaType)
}

// announced reads a descriptor from an answer to HEAD, if all of it is there.
func (e *endpoint) announced(resp *http.Response) (d Descriptor, ok bool, err error) {
	// A digest that is not well formed, or of an algorithm that we do not know, is as none.
	digest, err := content.Parse(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return Descriptor{}, false, nil
	}
	d = Descriptor{MediaType: mediaType(resp), Digest: digest, Size: resp.ContentLength}
	if d.Size > MaxManifest {
		return Descriptor{}, false, e.tooLarge(d.Size)
	}
	return d, d.Size > 0, e.checkType(d.MediaType)
}

func (e *endpoint) checkType(mediaType string) error {
	if isSchema1(mediaType) {
		return e.fail(e.host, ErrUnsupported, schema1, nil)
	}
	return nil
}

func (e *endpoint) tooLarge(size int64) error {
	return e.fail(e.host, ErrTooLarge, fmt.Sprintf("a manifest of %d bytes, at most %d are read", size, MaxManifest), nil)
}

// document reads a whole manifest.
func (e *endpoint) document(ctx context.Context, q ask) (raw []byte, contentType string, err error) {
	resp, err := e.do(ctx, q)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, "", e.fail(e.host, ErrMalformed, "part of a manifest, where all of it was asked for", nil)
	}
	if resp.ContentLength > MaxManifest {
		return nil, "", e.tooLarge(resp.ContentLength)
	}
	raw, err = io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	switch {
	case err != nil:
		return nil, "", e.broken(ctx, resp.Request.URL.Host, err)
	case len(raw) > MaxManifest:
		return nil, "", e.tooLarge(int64(len(raw)))
	case !looksLikeJSON(raw):
		return nil, "", e.fail(resp.Request.URL.Host, ErrMalformed, "answers with something else than a manifest: is it a registry?", nil)
	}
	return raw, mediaType(resp), nil
}

// mediaType is the media type of an answer, without parameters.
func mediaType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// Document fetches an index or a manifest, at most MaxManifest bytes, and verifies it. It fits ReadManifest.
func (p *Repository) Document(ctx context.Context, d Descriptor) ([]byte, error) {
	raw, err := p.document(ctx, d)
	if err != nil {
		return nil, p.wrap("", err)
	}
	return raw, nil
}

func (p *Repository) document(ctx context.Context, d Descriptor) ([]byte, error) {
	if d.Size > MaxManifest {
		return nil, fmt.Errorf("%w: a manifest of %d bytes, at most %d are read", ErrTooLarge, d.Size, MaxManifest)
	}
	if err := d.Digest.Validate(); err != nil {
		return nil, err
	}
	if doc := p.kept.Load(); doc != nil && doc.Digest == d.Digest && doc.Size == d.Size {
		return doc.Raw, nil
	}
	r, err := p.round(func(e *endpoint) bool { return e.pull })
	if err != nil {
		return nil, err
	}
	for {
		e, err := r.host(ctx)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		raw, _, err := e.document(ctx, ask{method: http.MethodGet, path: "manifests/" + d.Digest.String(), accept: acceptManifests()})
		if err == nil {
			if err = verify(d, raw); err == nil {
				return raw, nil
			}
			err = e.fail(e.host, ErrMalformed, err.Error(), err)
		}
		if err := r.failed(ctx, e, err); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
	}
}

// Manifest fetches the manifest for the client's platform, beginning with what Resolve returned.
func (p *Repository) Manifest(ctx context.Context, root Descriptor) (*Manifest, error) {
	m, err := ReadManifest(ctx, root, p.client.options.Platform, p.document)
	if err != nil {
		return nil, p.wrap("", err)
	}
	return m, nil
}

// Config fetches an image's configuration, at most MaxConfig bytes, and verifies it.
func (p *Repository) Config(ctx context.Context, d Descriptor) ([]byte, error) {
	if d.Size > MaxConfig {
		return nil, p.wrap("", fmt.Errorf("%w: a configuration of %d bytes, at most %d are read", ErrTooLarge, d.Size, MaxConfig))
	}
	for {
		b, err := p.Blob(ctx, d, 0)
		if err != nil {
			return nil, err
		}
		raw := make([]byte, d.Size)
		_, err = io.ReadFull(b, raw)
		b.Close()
		if err != nil {
			return nil, err
		}
		if err = verify(d, raw); err == nil {
			return raw, nil
		}
		b.Blame(err)
	}
}
