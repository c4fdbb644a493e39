// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/store/content"
)

// cutter lets so many bytes of a body pass and then breaks the connection.
type cutter struct {
	http.ResponseWriter
	left  int
	ended func() // instead of breaking it
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		http.NewResponseController(c.ResponseWriter).Flush() //nolint:errcheck // it is broken off anyway
		if c.ended != nil {
			c.ended()
		}
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// blobs applies to requests for blobs only.
func blobs(do middleware) middleware {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			do(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// cutAfter breaks each connection after n bytes, the first times of them.
func cutAfter(n, times int) middleware {
	var mu sync.Mutex
	return blobs(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		mu.Lock()
		times--
		cut := times >= 0
		mu.Unlock()
		if cut {
			w = &cutter{ResponseWriter: w, left: n}
		}
		next.ServeHTTP(w, r)
	})
}

// without makes a registry that does not know ranges.
func without(next middleware) middleware {
	return func(w http.ResponseWriter, r *http.Request, genuine http.Handler) {
		r.Header.Del("Range")
		next(w, r, genuine)
	}
}

// refusing makes a registry that answers 416 to a range.
func refusing(next middleware) middleware {
	return func(w http.ResponseWriter, r *http.Request, genuine http.Handler) {
		if r.Header.Get("Range") != "" {
			fail(w, http.StatusRequestedRangeNotSatisfiable, "RANGE", "not understood")
			return
		}
		next(w, r, genuine)
	}
}

// lying answers a range with another one.
func lying(shift int) middleware {
	return blobs(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if span, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
			from, to, _ := strings.Cut(span, "-")
			n, _ := strconv.Atoi(from)
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", n+shift, to))
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(&cutter{ResponseWriter: w, left: 1000}, r)
	})
}

func TestResume(t *testing.T) {
	const size = 300 << 10
	for _, c := range []struct {
		name    string
		between middleware
		asked   int // requests for the blob
		ranges  []string
	}{
		{"one cut", cutAfter(1000, 1), 2, []string{"", "bytes=1000-307199"}},
		{"at once", cutAfter(0, 1), 2, []string{"", ""}},
		{"at the last byte", cutAfter(size-1, 1), 2, []string{"", "bytes=307199-307199"}},
		{"several cuts", cutAfter(64<<10, 4), 5, []string{"", "bytes=65536-307199", "bytes=131072-307199", "bytes=196608-307199", "bytes=262144-307199"}},
		{"ranges are ignored", without(cutAfter(100<<10, 1)), 2, nil},
		{"ranges are ignored, cut again while bytes are thrown away", without(cutAfter(100<<10, 3)), 4, nil},
		{"ranges are refused", refusing(cutAfter(100<<10, 1)), 3, []string{"", "bytes=102400-307199", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, nil)
			img := s.image(t, "app", "v1", size)
			s.set(c.between)
			p := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{})
			store := openStore(t)
			var done []int64
			if err := p.Fetch(t.Context(), img.layers[0], store, func(n int64) { done = append(done, n) }); err != nil {
				t.Fatal(err)
			}
			hold(t, store, img.layers[0], img.bytes[img.layers[0].Digest])
			if !slices.IsSorted(done) || done[len(done)-1] != size {
				t.Errorf("progress %d", done)
			}
			var ranges []string
			for _, r := range s.asked() {
				ranges = append(ranges, r.Header.Get("Range"))
			}
			if len(ranges) != c.asked {
				t.Errorf("asked with ranges %q", ranges)
			}
			if c.ranges != nil && !slices.Equal(ranges, c.ranges) {
				t.Errorf("ranges %q, want %q", ranges, c.ranges)
			}
		})
	}
}

// TestResumeHasAnEnd breaks every connection: at once, and after a byte of progress each.
func TestResumeHasAnEnd(t *testing.T) {
	for name, n := range map[string]int{"no byte": 0, "a byte each": 1} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			img := s.image(t, "app", "v1", 100<<10)
			s.set(cutAfter(n, 1<<30))
			client := newClient(t, registry.Options{Retries: 3})
			var slept naps
			client.SetSleep(slept.sleep)
			err := repository(t, client, s.host+"/app:v1", registry.Auth{}).Fetch(t.Context(), img.layers[0], openStore(t), nil)
			wantErr(t, err, registry.ErrUnavailable)
			wantText(t, err, s.host, img.layers[0].Digest.String(), "unexpected EOF", "of 102400 bytes")
			if got := len(s.asked()); got != 4 {
				t.Errorf("asked %d times", got)
			}
			if got := slept.all(); len(got) != 3 {
				t.Errorf("slept %v", got)
			}
		})
	}
}

// TestProgressRenewsRetries breaks each connection after more than 1 MiB, more often than there are
// retries.
func TestProgressRenewsRetries(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 10<<20)
	s.set(cutAfter(1100<<10, 1<<30))
	client := newClient(t, registry.Options{Retries: 2})
	store := openStore(t)
	if err := repository(t, client, s.host+"/app:v1", registry.Auth{}).Fetch(t.Context(), img.layers[0], store, nil); err != nil {
		t.Fatal(err)
	}
	hold(t, store, img.layers[0], img.bytes[img.layers[0].Digest])
	if got := len(s.asked()); got != 10 {
		t.Errorf("asked %d times", got)
	}
}

// TestOtherRange has a registry answer with other bytes than those that were asked for.
func TestOtherRange(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 100<<10)
	s.set(lying(1))
	store := openStore(t)
	p := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{})
	err := p.Fetch(t.Context(), img.layers[0], store, nil)
	wantErr(t, err, registry.ErrMalformed)
	wantText(t, err, "asked for bytes from 1000 on", "bytes 1001-")
}

// TestDraft continues what an earlier process left.
func TestDraft(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 1<<20)
	l := img.layers[0]
	folder := filepath.Join(t.TempDir(), "blobs")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.set(blobs(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&cutter{ResponseWriter: w, left: 600 << 10, ended: func() { <-r.Context().Done() }}, r)
	}))
	var last int64
	store := openStoreAt(t, folder)
	err := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{}).Fetch(ctx, l, store, func(n int64) {
		if last = n; n == 600<<10 {
			cancel()
		}
	})
	wantErr(t, err, context.Canceled)
	if last != 600<<10 {
		t.Fatalf("got as far as %d", last)
	}
	s.asked()

	s.set(nil)
	store = openStoreAt(t, folder)
	var done []int64
	err = repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{}).Fetch(t.Context(), l, store, func(n int64) { done = append(done, n) })
	if err != nil {
		t.Fatal(err)
	}
	hold(t, store, l, img.bytes[l.Digest])
	asked := s.asked()
	if done[0] != 600<<10 || len(asked) != 1 || asked[0].Header.Get("Range") != "bytes=614400-1048575" {
		t.Errorf("progress %d, %d requests", done, len(asked))
	}
}

// TestRottenDraft continues a draft whose bytes are wrong: nobody is to blame, it is fetched anew from
// the same host.
func TestRottenDraft(t *testing.T) {
	for _, n := range []int{10, 1000} { // some of it, and all of it
		s := start(t, nil)
		img := s.image(t, "app", "v1", 1000)
		l := img.layers[0]
		store := openStore(t)
		w, err := store.Writer(t.Context(), l.Digest, l.Size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		w.Close()
		var done []int64
		err = repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{}).Fetch(t.Context(), l, store, func(n int64) { done = append(done, n) })
		if err != nil {
			t.Fatal(err)
		}
		hold(t, store, l, img.bytes[l.Digest])
		if done[0] != int64(n) || !slices.Contains(done, 0) {
			t.Errorf("progress %d", done)
		}
	}
}

// TestStall has a registry that says nothing more: in a body, in the body of a manifest, and instead of
// an answer.
func TestStall(t *testing.T) {
	for _, c := range []struct {
		name  string
		stall func(w http.ResponseWriter, r *http.Request, next http.Handler)
		word  string
	}{
		{"in the middle", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(&cutter{ResponseWriter: w, left: 20, ended: func() { <-r.Context().Done() }}, r)
		}, "no bytes came for"},
		{"before the answer", func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }, "timeout awaiting response headers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, nil)
			img := s.image(t, "app", "v1", 100<<10)
			var stalled atomic.Int32
			once := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if stalled.Add(1) == 1 {
					c.stall(w, r, next)
					return
				}
				next.ServeHTTP(w, r)
			}
			client := newClient(t, registry.Options{NoProgress: 200 * time.Millisecond})
			p := repository(t, client, s.host+"/app@"+img.manifest.Digest.String(), registry.Auth{})

			s.set(blobs(once))
			store := openStore(t)
			if err := p.Fetch(t.Context(), img.layers[0], store, nil); err != nil {
				t.Fatal(err)
			}
			hold(t, store, img.layers[0], img.bytes[img.layers[0].Digest])

			stalled.Store(0)
			s.set(once)
			if _, err := p.Document(t.Context(), img.manifest); err != nil {
				t.Fatal(err)
			}

			s.set(c.stall)
			client = newClient(t, registry.Options{NoProgress: 50 * time.Millisecond, Retries: 1})
			err := repository(t, client, s.host+"/app:v1", registry.Auth{}).Fetch(t.Context(), img.layers[0], openStore(t), nil)
			wantErr(t, err, registry.ErrUnavailable)
			wantText(t, err, c.word)
		})
	}
}

// TestCancel ends a pull in each of its waits, at once and with the context's error.
func TestCancel(t *testing.T) {
	for _, c := range []struct {
		name    string
		between middleware
	}{
		{"before the answer", func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }},
		{"in a body", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(&cutter{ResponseWriter: w, left: 20, ended: func() { <-r.Context().Done() }}, r)
		}},
		{"between retries", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { fail(w, 503, "", "") }},
		{"told to wait", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Retry-After", "50")
			fail(w, 429, "", "")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, nil)
			img := s.image(t, "app", "v1", 100<<10)
			s.set(c.between)
			p := repository(t, newClient(t, registry.Options{Backoff: time.Hour}), s.host+"/app:v1", registry.Auth{})
			why := errors.New("nobody waits any more")
			for _, do := range []func(context.Context) error{
				func(ctx context.Context) error { return p.Fetch(ctx, img.layers[0], openStore(t), nil) },
				func(ctx context.Context) error { _, err := p.Document(ctx, img.manifest); return err },
				func(ctx context.Context) error { _, err := p.Config(ctx, img.config); return err },
			} {
				ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, why)
				err := do(ctx)
				cancel()
				wantErr(t, err, why)
				if errors.Is(err, registry.ErrUnavailable) {
					t.Errorf("%v", err)
				}
			}
		})
	}
}

// TestWrongBytes has hosts with other bytes than the digest says, of the right length.
func TestWrongBytes(t *testing.T) {
	flip := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(flipper{w}, r)
	}
	setup := func(t *testing.T, mirror, origin middleware) (*server, *server, pushed, *registry.Repository) {
		o, m := start(t, nil), start(t, nil)
		img := o.image(t, "app", "v1", 100<<10)
		for _, d := range append(img.layers, img.config) {
			m.blob(t, "app", img.bytes[d.Digest])
		}
		m.manifest(t, "app", "v1", img.manifest.MediaType, img.bytes[img.manifest.Digest])
		m.set(mirror)
		o.set(origin)
		client := newClient(t, registry.Options{ConfigPath: []string{mirrors(t, o.host, m.host)}})
		return m, o, img, repository(t, client, o.host+"/app:v1", registry.Auth{})
	}
	t.Run("of a mirror", func(t *testing.T) {
		m, o, img, p := setup(t, flip, nil)
		store := openStore(t)
		if err := p.Fetch(t.Context(), img.layers[0], store, nil); err != nil {
			t.Fatal(err)
		}
		hold(t, store, img.layers[0], img.bytes[img.layers[0].Digest])
		if _, err := p.Config(t.Context(), img.config); err != nil {
			t.Error(err)
		}
		if _, err := p.Document(t.Context(), img.manifest); err != nil {
			t.Error(err)
		}
		if n, k := len(m.asked()), len(o.asked()); n != 3 || k != 3 {
			t.Errorf("the mirror was asked %d times, the registry %d times", n, k)
		}
	})
	t.Run("of a mirror, asked for a digest", func(t *testing.T) {
		m, o, img, _ := setup(t, flip, nil)
		client := newClient(t, registry.Options{ConfigPath: []string{mirrors(t, o.host, m.host)}})
		p := repository(t, client, o.host+"/app@"+img.manifest.Digest.String(), registry.Auth{})
		if d, err := p.Resolve(t.Context()); err != nil || d != img.manifest {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("of all", func(t *testing.T) {
		m, o, img, p := setup(t, flip, flip)
		store := openStore(t)
		for range 2 {
			err := p.Fetch(t.Context(), img.layers[0], store, nil)
			wantErr(t, err, content.ErrDigest)
			wantText(t, err, m.host, o.host, img.layers[0].Digest.String())
		}
		_, err := p.Config(t.Context(), img.config)
		wantErr(t, err, content.ErrDigest)
		_, err = p.Document(t.Context(), img.manifest)
		wantErr(t, err, content.ErrDigest)
		wantText(t, err, m.host, o.host)
		if n, k := len(m.asked()), len(o.asked()); n != 3 || k != 3 {
			t.Errorf("the mirror was asked %d times, the registry %d times", n, k)
		}
	})
	t.Run("half from a mirror", func(t *testing.T) {
		// The mirror breaks off after wrong bytes. The rest, which is right, comes from the registry, which is
		// not to blame.
		cut := cutAfter(1000, 1<<30)
		m, o, img, p := setup(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) { cut(flipper{w}, r, next) }, nil)
		store := openStore(t)
		if err := p.Fetch(t.Context(), img.layers[0], store, nil); err != nil {
			t.Fatal(err)
		}
		hold(t, store, img.layers[0], img.bytes[img.layers[0].Digest])
		if n, k := len(m.asked()), len(o.asked()); n != 1 || k != 2 {
			t.Errorf("the mirror was asked %d times, the registry %d times", n, k)
		}
	})
	t.Run("another length", func(t *testing.T) {
		short := blobs(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = w.Write([]byte("short")) })
		m, _, img, p := setup(t, short, short)
		err := p.Fetch(t.Context(), img.layers[0], openStore(t), nil)
		wantErr(t, err, content.ErrSize)
		wantText(t, err, m.host, "has 5 bytes there, is to have 102400")
		if n := len(m.asked()); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
	t.Run("without end", func(t *testing.T) {
		endless := blobs(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			for b := make([]byte, 32<<10); r.Context().Err() == nil; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		})
		_, _, img, p := setup(t, endless, nil)
		store := openStore(t)
		if err := p.Fetch(t.Context(), img.layers[0], store, nil); err != nil {
			t.Fatal(err)
		}
		hold(t, store, img.layers[0], img.bytes[img.layers[0].Digest])
	})
}

// flipper changes each byte of a body.
type flipper struct{ http.ResponseWriter }

func (f flipper) Write(p []byte) (int, error) {
	flipped := make([]byte, len(p))
	for i := range p {
		flipped[i] = p[i] ^ 1
	}
	if len(p) > 0 && p[0] == '{' {
		flipped[0] = '{' // to be a manifest, but for its digest
	}
	return f.ResponseWriter.Write(flipped)
}

func (f flipper) Unwrap() http.ResponseWriter { return f.ResponseWriter }
