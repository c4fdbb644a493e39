// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-cri/berth/image/registry"
)

// TestAnswers has a registry answer with each status: what that is, and how often it is asked again.
func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		status int
		want   error
		asked  int // with 2 retries
		words  []string
	}{
		{400, registry.ErrUnsupported, 1, []string{"400 Bad Request", "CODE: the message"}},
		{401, registry.ErrUnauthorized, 1, []string{"CODE: the message"}},
		{403, registry.ErrUnauthorized, 1, []string{"403 Forbidden", "CODE: the message", "image pull secret"}},
		{404, registry.ErrNotFound, 1, []string{"CODE: the message"}},
		{408, registry.ErrUnavailable, 3, []string{"408"}},
		{410, registry.ErrNotFound, 1, nil},
		{429, registry.ErrUnavailable, 3, []string{"429 Too Many Requests"}},
		{451, registry.ErrUnsupported, 1, []string{"451"}},
		{500, registry.ErrUnavailable, 3, []string{"500"}},
		{501, registry.ErrUnsupported, 1, nil},
		{502, registry.ErrUnavailable, 3, nil},
		{503, registry.ErrUnavailable, 3, nil},
		{504, registry.ErrUnavailable, 3, nil},
		{204, registry.ErrMalformed, 1, nil},
		{300, registry.ErrMalformed, 1, nil},
	} {
		t.Run(http.StatusText(c.status), func(t *testing.T) {
			s := start(t, nil)
			img := s.image(t, "app", "v1", 100)
			s.set(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				fail(w, c.status, "CODE", "the\n\x1bmessage")
			})
			client := newClient(t, registry.Options{Retries: 2})
			p := repository(t, client, s.host+"/app:v1", registry.Auth{})
			for _, do := range []func() error{
				func() error { return p.Fetch(t.Context(), img.layers[0], openStore(t), nil) },
				func() error { _, err := p.Document(t.Context(), img.manifest); return err },
				func() error { _, err := p.Config(t.Context(), img.config); return err },
			} {
				s.asked()
				err := do()
				wantErr(t, err, c.want)
				wantText(t, err, c.words...)
				wantText(t, err, s.host+"/app:v1: ")
				if n := len(s.asked()); n != c.asked {
					t.Errorf("asked %d times, want %d", n, c.asked)
				}
				for _, other := range []error{registry.ErrUnavailable, registry.ErrUnauthorized, registry.ErrNotFound, registry.ErrUnsupported, registry.ErrMalformed} {
					if !errors.Is(other, c.want) && errors.Is(err, other) {
						t.Errorf("%v is %v as well", err, other)
					}
				}
			}
			_, err := p.Resolve(t.Context())
			wantErr(t, err, c.want)
			if c.status != 404 { // which needs no second question
				wantText(t, err, c.words[:min(1, len(c.words))]...)
			}
		})
	}
}

// TestRecovers has a registry that answers with errors at first.
func TestRecovers(t *testing.T) {
	for _, status := range []int{408, 429, 500, 502, 503, 504} {
		s := start(t, nil)
		s.image(t, "app", "v1", 100)
		var n atomic.Int32
		s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if n.Add(1)%3 != 0 {
				fail(w, status, "", "")
				return
			}
			next.ServeHTTP(w, r)
		})
		if err := pullAll(t, repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{})); err != nil {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		name, value string
		sleeps      func([]time.Duration) bool
		asked       int
		word        string
	}{
		{"seconds", "7", func(d []time.Duration) bool { return len(d) == 2 && d[1] == 7*time.Second }, 2, ""},
		{"a date", now.Add(9 * time.Second).Format(http.TimeFormat), func(d []time.Duration) bool { return len(d) == 2 && d[1] == 9*time.Second }, 2, ""},
		{"a date that was", now.Add(-9 * time.Second).Format(http.TimeFormat), func(d []time.Duration) bool { return len(d) == 1 }, 2, ""},
		{"nonsense", "soon", func(d []time.Duration) bool { return len(d) == 1 }, 2, ""},
		{"negative", "-7", func(d []time.Duration) bool { return len(d) == 1 }, 2, ""},
		{"too long", "61", func(d []time.Duration) bool { return len(d) == 0 }, 1, "asks to be left alone for 1m1s"},
		{"for ever", "99999999999999999999", func(d []time.Duration) bool { return len(d) == 1 }, 2, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, nil)
			img := s.image(t, "app", "v1", 100)
			s.set(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Retry-After", c.value)
				fail(w, 429, "TOOMANYREQUESTS", "slow down")
			})
			client := newClient(t, registry.Options{Retries: 1})
			var slept naps
			client.SetSleep(slept.sleep)
			client.SetClock(func() time.Time { return now })
			_, err := repository(t, client, s.host+"/app:v1", registry.Auth{}).Document(t.Context(), img.manifest)
			wantErr(t, err, registry.ErrUnavailable)
			wantText(t, err, "slow down", c.word)
			if got := slept.all(); !c.sleeps(got) {
				t.Errorf("slept %v", got)
			}
			if n := len(s.asked()); n != c.asked {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

// TestBackoff doubles, is not the same for all, and has a bound.
func TestBackoff(t *testing.T) {
	s := start(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { fail(w, 503, "", "") })
	client := newClient(t, registry.Options{Retries: 20, Backoff: time.Second})
	var slept naps
	client.SetSleep(slept.sleep)
	_, err := repository(t, client, s.host+"/app:v1", registry.Auth{}).Resolve(t.Context())
	wantErr(t, err, registry.ErrUnavailable)
	got := slept.all()
	if len(got) != 20 {
		t.Fatalf("slept %v", got)
	}
	different := false
	for i, d := range got {
		about := min(time.Second<<i, 30*time.Second)
		if d < about/2 || d > about*3/2 {
			t.Errorf("slept %v, the %d. of them", d, i)
		}
		different = different || d != about
	}
	if !different {
		t.Error("there is no jitter")
	}
}

// TestMirrorOrder goes from host to host before it waits, and blames the registry itself.
func TestMirrorOrder(t *testing.T) {
	origin, first, second := start(t, nil), start(t, nil), start(t, nil)
	img := origin.image(t, "app", "v1", 100)
	answer := func(status int) middleware {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { fail(w, status, "", "") }
	}
	root := mirrors(t, origin.host, first.host, second.host)
	for _, c := range []struct {
		name                 string
		first, second, third int // 0: serves
		want                 error
		asked                [3]int
		naps                 int
	}{
		{"all fail, one may recover", 404, 503, 404, registry.ErrNotFound, [3]int{1, 3, 1}, 2},
		{"the registry may recover", 404, 404, 503, registry.ErrUnavailable, [3]int{1, 1, 3}, 2},
		{"nobody may", 404, 401, 403, registry.ErrUnauthorized, [3]int{1, 1, 1}, 0},
		{"the registry serves", 500, 404, 0, nil, [3]int{1, 1, 1}, 0},
		{"the second serves", 429, 0, 500, nil, [3]int{1, 1, 0}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i, s := range []*server{first, second, origin} {
				status := []int{c.first, c.second, c.third}[i]
				if status != 0 {
					s.set(answer(status))
				} else {
					s.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
						_, _ = w.Write(img.bytes[img.manifest.Digest])
					})
				}
				s.asked()
			}
			client := newClient(t, registry.Options{Retries: 2, ConfigPath: []string{root}})
			var slept naps
			client.SetSleep(slept.sleep)
			_, err := repository(t, client, origin.host+"/app:v1", registry.Auth{}).Document(t.Context(), img.manifest)
			if !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			if c.want != nil {
				wantText(t, err, first.host, second.host, origin.host, "before that")
			}
			if got := [3]int{len(first.asked()), len(second.asked()), len(origin.asked())}; got != c.asked {
				t.Errorf("asked %v, want %v", got, c.asked)
			}
			if got := slept.all(); len(got) != c.naps {
				t.Errorf("slept %v", got)
			}
		})
	}
}

// TestMirrorTakesOver breaks a mirror in the middle of a blob: the rest comes from the registry, and from
// the mirror again if it breaks as well.
func TestMirrorTakesOver(t *testing.T) {
	origin, mirror := start(t, nil), start(t, nil)
	img := origin.image(t, "app", "v1", 100<<10)
	mirror.blob(t, "app", img.bytes[img.layers[0].Digest])
	mirror.set(cutAfter(30<<10, 1<<30))
	origin.set(cutAfter(20<<10, 1<<30))
	client := newClient(t, registry.Options{ConfigPath: []string{mirrors(t, origin.host, mirror.host)}})
	store := openStore(t)
	if err := repository(t, client, origin.host+"/app:v1", registry.Auth{}).Fetch(t.Context(), img.layers[0], store, nil); err != nil {
		t.Fatal(err)
	}
	hold(t, store, img.layers[0], img.bytes[img.layers[0].Digest])
	var got []string
	for _, s := range []*server{mirror, origin} {
		for _, r := range s.asked() {
			got = append(got, r.Header.Get("Range"))
		}
	}
	if want := " bytes=51200-102399 bytes=30720-102399 bytes=81920-102399"; strings.Join(got, " ") != want {
		t.Errorf("ranges %q", got)
	}
}

// TestMirrorDown has a mirror that does not answer, or with errors only: it is asked once in a pull, and
// again when the registry itself fails.
func TestMirrorDown(t *testing.T) {
	for name, down := range map[string]middleware{
		"silent": func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() },
		"silent after the header": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.NewResponseController(w).Flush() //nolint:errcheck // it is a test's
			<-r.Context().Done()
		},
		"503": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { fail(w, 503, "", "") },
	} {
		t.Run(name, func(t *testing.T) {
			origin, mirror := start(t, nil), start(t, nil)
			img := origin.image(t, "app", "v1", 10, 20, 30)
			mirror.set(down)
			root := hostsFolder(t, origin.host, fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = ['pull']\n", origin.URL, mirror.URL))
			client := newClient(t, registry.Options{ConfigPath: []string{root}, NoProgress: time.Second})
			p := repository(t, client, origin.host+"/app:v1", registry.Auth{})
			if err := pullAll(t, p); err != nil {
				t.Fatal(err)
			}
			if n := len(mirror.asked()); n != 1 {
				t.Errorf("the mirror was asked %d times", n)
			}

			mirror.set(nil)
			mirror.blob(t, "app", img.bytes[img.layers[0].Digest])
			origin.set(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { fail(w, 503, "", "") })
			for range 2 {
				if err := p.Fetch(t.Context(), img.layers[0], openStore(t), nil); err != nil {
					t.Fatal(err)
				}
			}
			if n, k := len(mirror.asked()), len(origin.asked()); n != 2 || k != 6+1 {
				t.Errorf("the mirror was asked %d times, the registry %d times", n, k)
			}

			mirror.set(down)
			origin.set(nil)
			for range 2 {
				if err := p.Fetch(t.Context(), img.layers[0], openStore(t), nil); err != nil {
					t.Fatal(err)
				}
			}
			if n, k := len(mirror.asked()), len(origin.asked()); n != 1 || k != 2 {
				t.Errorf("the mirror was asked %d times, the registry %d times", n, k)
			}
		})
	}
}

// TestUnreachable has nobody listen: it is said at once, or nearly.
func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	client := newClient(t, registry.Options{})
	var slept naps
	client.SetSleep(slept.sleep)
	_, err = repository(t, client, host+"/app:v1", registry.Auth{}).Resolve(t.Context())
	wantErr(t, err, registry.ErrUnavailable)
	wantText(t, err, host+"/app:v1: "+host+": registry is unavailable: ", "connection refused")
	if got := slept.all(); len(got) != 1 {
		t.Errorf("slept %v", got)
	}
}

// TestRestart has a registry go away in the middle of a pull: it may come back, so it is worth more retries.
func TestRestart(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 100)
	client := newClient(t, registry.Options{Retries: 7})
	var slept naps
	client.SetSleep(slept.sleep)
	p := repository(t, client, s.host+"/app:v1", registry.Auth{})
	if _, err := p.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	wantErr(t, p.Fetch(t.Context(), img.layers[0], openStore(t), nil), registry.ErrUnavailable)
	if got := slept.all(); len(got) != 7 {
		t.Errorf("slept %v", got)
	}
}

// TestExpiredSignature has the place that a registry redirects to refuse: the registry is asked for a new
// address. Its words are not repeated.
func TestExpiredSignature(t *testing.T) {
	s, cdn := start(t, nil), start(t, nil)
	img := s.image(t, "app", "v1", 100)
	cdn.blob(t, "app", img.bytes[img.layers[0].Digest])
	var refuse atomic.Int32
	refuse.Store(2)
	cdn.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if refuse.Add(-1) >= 0 {
			fail(w, 403, "EXPIRED", "words of somebody else")
			return
		}
		next.ServeHTTP(w, r)
	})
	s.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, cdn.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	p := repository(t, newClient(t, registry.Options{Retries: 2}), s.host+"/app:v1", registry.Auth{})
	store := openStore(t)
	if err := p.Fetch(t.Context(), img.layers[0], store, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(s.asked()); n != 3 {
		t.Errorf("the registry was asked %d times", n)
	}
	refuse.Store(100)
	err := p.Fetch(t.Context(), img.layers[0], openStore(t), nil)
	wantErr(t, err, registry.ErrUnavailable)
	wantText(t, err, cdn.host, "403")
	if strings.Contains(err.Error(), "somebody else") {
		t.Errorf("%v", err)
	}
}

// TestProxy sends what is not on this machine through the proxy of the environment.
func TestProxy(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 100)
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host != "registry.example:5000" {
			t.Errorf("asked for %s", r.URL)
		}
		asked.Add(1)
		s.Config.Handler.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	root := hostsFolder(t, "registry.example:5000", "server = 'http://registry.example:5000'\n")
	o := registry.Options{ConfigPath: []string{root}, Retries: -1}

	t.Setenv("HTTP_PROXY", proxy.URL)
	if err := pullAll(t, repository(t, newClient(t, o), "registry.example:5000/app:v1", registry.Auth{})); err != nil {
		t.Error(err)
	}
	if asked.Load() == 0 {
		t.Error("the proxy was not asked")
	}
	if _, err := repository(t, newClient(t, o), s.host+"/app:v1", registry.Auth{}).Document(t.Context(), img.manifest); err != nil {
		t.Error(err)
	}

	t.Setenv("HTTP_PROXY", "http://user:hunter2@%zz")
	_, err := repository(t, newClient(t, o), "registry.example:5000/app:v1", registry.Auth{}).Resolve(t.Context())
	wantErr(t, err, registry.ErrUnavailable)
	wantText(t, err, "HTTP_PROXY")
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}
