// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/image/ref"
	"github.com/berth-cri/berth/image/registry"
	"github.com/berth-cri/berth/store/content"
)

func secret(s string) registry.Secret { return registry.NewSecret(s) }

func encoded(s string) registry.Secret {
	return secret(base64.StdEncoding.EncodeToString([]byte(s)))
}

// guardBasic lets those through who have a name and a password.
func guardBasic(user, password string) middleware {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == password {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "who are you?")
	}
}

// pullAll resolves, reads the manifest and the config, and fetches the layers.
func pullAll(t *testing.T, p *registry.Repository) error {
	t.Helper()
	root, err := p.Resolve(t.Context())
	if err != nil {
		return err
	}
	m, err := p.Manifest(t.Context(), root)
	if err != nil {
		return err
	}
	if _, err := p.Config(t.Context(), m.Config); err != nil {
		return err
	}
	store := openStore(t)
	for _, l := range m.Layers {
		if err := p.Fetch(t.Context(), l, store, nil); err != nil {
			return err
		}
	}
	return nil
}

func TestAuth(t *testing.T) {
	const user, password = "the user", "pä:ss%wörd"
	type setup struct {
		guard  func(*tokenServer) middleware
		tokens func(*tokenServer)
	}
	basic := setup{guard: func(*tokenServer) middleware { return guardBasic(user, password) }}
	bearer := setup{guard: func(a *tokenServer) middleware { return a.guard }}
	open := setup{
		guard:  func(a *tokenServer) middleware { return a.guard },
		tokens: func(a *tokenServer) { a.user, a.password = "", "" },
	}
	identity := setup{
		guard:  func(a *tokenServer) middleware { return a.guard },
		tokens: func(a *tokenServer) { a.identity = "refresh-me" },
	}
	post := setup{
		guard:  func(a *tokenServer) middleware { return a.guard },
		tokens: func(a *tokenServer) { a.noGet = true },
	}
	fixed := setup{
		guard:  func(a *tokenServer) middleware { return a.guard },
		tokens: func(a *tokenServer) { a.valid["fixed-token"] = true },
	}
	silent := setup{
		guard: func(a *tokenServer) middleware {
			return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Header.Get("Authorization") == "Bearer fixed-token" {
					next.ServeHTTP(w, r)
					return
				}
				fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "") // and does not say how
			}
		},
	}
	two := setup{
		guard: func(a *tokenServer) middleware {
			return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				w.Header().Add("WWW-Authenticate", `Negotiate, Basic realm="a, b"`)
				a.guard(w, r, next)
			}
		},
	}
	good := registry.Auth{Username: user, Password: secret(password)}
	for _, c := range []struct {
		name  string
		setup setup
		auth  registry.Auth
		err   error
		words []string
	}{
		{"basic", basic, good, nil, nil},
		{"basic, encoded", basic, registry.Auth{Encoded: encoded(user + ":" + password)}, nil, nil},
		{"basic, encoded and ending in NULs", basic, registry.Auth{Encoded: encoded(user + ":" + password + "\x00\x00")}, nil, nil},
		{"basic, a username goes before", basic, registry.Auth{Username: user, Password: secret(password), Encoded: encoded("x:y")}, nil, nil},
		{"basic, anonymous", basic, registry.Auth{}, registry.ErrUnauthorized, []string{"who are you?", "image pull secret"}},
		{"basic, wrong", basic, registry.Auth{Username: user, Password: secret("wrong")}, registry.ErrUnauthorized, []string{"does not accept the credentials"}},
		{"token", bearer, good, nil, nil},
		{"token, anonymous", open, registry.Auth{}, nil, nil},
		{"token, anonymous and refused", bearer, registry.Auth{}, registry.ErrUnauthorized, []string{"token server", "wrong credentials", "image pull secret"}},
		{"token, wrong", bearer, registry.Auth{Username: user, Password: secret("wrong")}, registry.ErrUnauthorized, []string{"token server", "does not accept"}},
		{"token by identity token", identity, registry.Auth{IdentityToken: secret("refresh-me")}, nil, nil},
		{"token by identity token, wrong", identity, registry.Auth{IdentityToken: secret("refresh-you")}, registry.ErrUnauthorized, nil},
		{"token by POST only", post, good, nil, nil},
		{"token by POST only, anonymous", post, registry.Auth{}, registry.ErrUnsupported, []string{"405"}},
		{"registry token", fixed, registry.Auth{RegistryToken: secret("fixed-token")}, nil, nil},
		{"registry token, wrong", fixed, registry.Auth{RegistryToken: secret("other-token")}, registry.ErrUnauthorized, nil},
		{"registry token, not asked for", silent, registry.Auth{RegistryToken: secret("fixed-token")}, nil, nil},
		{"not said how", silent, good, registry.ErrUnauthorized, nil},
		{"several challenges", two, good, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, nil)
			s.image(t, "app", "v1", 100, 200)
			a := newTokenServer(t, "app", user, password)
			if c.setup.tokens != nil {
				c.setup.tokens(a)
			}
			s.set(c.setup.guard(a))
			err := pullAll(t, repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", c.auth))
			if !errors.Is(err, c.err) {
				t.Fatalf("error is %v, want %v", err, c.err)
			}
			wantText(t, err, c.words...)
			if c.err == nil && a.issued() > 1 {
				t.Errorf("%d tokens", a.issued())
			}
			if n := len(s.asked()); n > 3*7 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestBadAuth(t *testing.T) {
	r, err := ref.Parse("r.example/app")
	if err != nil {
		t.Fatal(err)
	}
	for name, auth := range map[string]registry.Auth{
		"not base64":               {Encoded: secret("hunter2!")},
		"no colon":                 {Encoded: encoded("hunter2")},
		"no user":                  {Encoded: encoded(":hunter2")},
		"colon in the user":        {Username: "a:hunter2"},
		"newline in the user":      {Username: "a\nhunter2"},
		"address is none":          {Username: "a", ServerAddress: "https://u:hunter2@"},
		"address cannot be parsed": {Username: "a", ServerAddress: "https://hunter2\x7f"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newClient(t, registry.Options{}).Repository(r, auth)
			wantErr(t, err, registry.ErrBadAuth)
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestTokenRenewal lets tokens end while a pull is under way: by the clock, and before their time.
func TestTokenRenewal(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 10)
	a := newTokenServer(t, "app", "user", "pw")
	s.set(a.guard)
	for _, c := range []struct {
		life   int // said by the server
		good   time.Duration
		renews time.Duration
	}{
		{0, 50 * time.Second, 55 * time.Second}, // 60 s if nothing is said
		{300, 260 * time.Second, 271 * time.Second},
		{-5, 50 * time.Second, 55 * time.Second},
		{1 << 40, 20 * time.Hour, 22 * time.Hour}, // a day at most
	} {
		t.Run(fmt.Sprint(c.life), func(t *testing.T) {
			now := time.Now()
			client := newClient(t, registry.Options{})
			client.SetClock(func() time.Time { return now })
			p := repository(t, client, s.host+"/app:v1", registry.Auth{Username: "user", Password: secret("pw")})
			a.life = c.life
			before := a.issued()
			for _, step := range []struct {
				after time.Duration
				want  int
			}{{0, 1}, {c.good, 1}, {c.renews, 2}} {
				now = now.Add(step.after)
				s.asked()
				if _, err := p.Document(t.Context(), img.manifest); err != nil {
					t.Fatal(err)
				}
				if got := a.issued() - before; got != step.want {
					t.Errorf("%d tokens after %s, want %d", got, step.after, step.want)
				}
				now = now.Add(-step.after)
			}
			s.asked()
			a.revoke()
			if _, err := p.Document(t.Context(), img.manifest); err != nil {
				t.Fatal(err)
			}
			if got, asked := a.issued()-before, len(s.asked()); got != 3 || asked != 2 {
				t.Errorf("%d tokens, %d requests", got, asked)
			}
		})
	}
}

// TestIdentityTokenRotates renews a token with the refresh token that came with the one before.
func TestIdentityTokenRotates(t *testing.T) {
	s := start(t, nil)
	img := s.image(t, "app", "v1", 10)
	a := newTokenServer(t, "app", "user", "pw")
	a.identity = "refresh"
	s.set(a.guard)
	p := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{IdentityToken: secret("refresh")})
	for range 3 {
		if _, err := p.Document(t.Context(), img.manifest); err != nil {
			t.Fatal(err)
		}
		a.revoke()
	}
}

// TestLoops has registries that are never content.
func TestLoops(t *testing.T) {
	s := start(t, nil)
	s.image(t, "app", "v1", 10)
	a := newTokenServer(t, "app", "", "")
	for _, c := range []struct {
		name    string
		between middleware
		want    error
		most    int
	}{
		{"401 for ever", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			a.revoke()
			a.guard(w, r, next)
		}, registry.ErrUnauthorized, 6},
		{"401 basic for ever", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(401)
		}, registry.ErrUnauthorized, 4},
		{"redirect to itself", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, registry.ErrMalformed, 6},
		{"redirect to nowhere", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, registry.ErrMalformed, 1},
		{"redirect to a file", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, registry.ErrMalformed, 1},
		{"not modified", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(304) }, registry.ErrMalformed, 2},
		{"teapot", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(418) }, registry.ErrUnsupported, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.asked()
			s.set(c.between)
			defer s.set(nil)
			_, err := repository(t, newClient(t, registry.Options{}), s.host+"/app:v1", registry.Auth{Username: "", Password: secret("")}).Resolve(t.Context())
			wantErr(t, err, c.want)
			if n := len(s.asked()); n > c.most {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestTokenServers has token servers that are not as they should be.
func TestTokenServers(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials followed a redirect")
		}
		fmt.Fprint(w, `{"token":"from-the-other"}`)
	}))
	defer other.Close()
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		user   string
		want   error
		words  []string
	}{
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "", registry.ErrMalformed, []string{"token server"}},
		{"no token", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }, "", registry.ErrUnauthorized, []string{"gave no token"}},
		{"a token with a newline", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"a\r\nX-Evil: 1"}`) }, "", registry.ErrUnauthorized, nil},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			sent := 0
			for b := bytes.Repeat([]byte(" "), 64<<10); sent < 256<<20; sent += len(b) {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
			t.Errorf("%d bytes were taken", sent)
		}, "", registry.ErrTooLarge, nil},
		{"500", func(w http.ResponseWriter, _ *http.Request) { fail(w, 500, "", "") }, "", registry.ErrUnavailable, []string{"token server: 500"}},
		{"404", func(w http.ResponseWriter, _ *http.Request) { fail(w, 404, "", "") }, "", registry.ErrUnauthorized, []string{"token server: 404"}},
		{"400", func(w http.ResponseWriter, _ *http.Request) { fail(w, 400, "", "") }, "", registry.ErrUnauthorized, []string{"token server: 400"}},
		{"elsewhere, anonymous", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) }, "", nil, nil},
		{"elsewhere, with credentials", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) }, "user", registry.ErrUnauthorized, []string{"redirects"}},
		{"elsewhere, with POST", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		}, "user", registry.ErrUnauthorized, []string{"redirects"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tokens := httptest.NewServer(c.answer)
			defer tokens.Close()
			s := start(t, nil)
			s.image(t, "app", "v1", 10)
			s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Header.Get("Authorization") == "Bearer from-the-other" {
					next.ServeHTTP(w, r)
					return
				}
				w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", tokens.URL))
				w.WriteHeader(401)
			})
			client := newClient(t, registry.Options{Retries: 1})
			_, err := repository(t, client, s.host+"/app:v1", registry.Auth{Username: c.user, Password: secret("pw")}).Resolve(t.Context())
			if !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			wantText(t, err, c.words...)
		})
	}
}

// TestWhoGetsCredentials looks at all that is sent to a registry, a mirror and the place that a registry
// redirects to.
func TestWhoGetsCredentials(t *testing.T) {
	const user, password = "user", "pass-word"
	for _, c := range []struct {
		name           string
		address        func(origin, mirror string) string
		origin, mirror bool // who is to get them
	}{
		{"nobody named", func(_, _ string) string { return "" }, true, false},
		{"the registry named", func(o, _ string) string { return o }, true, false},
		{"the registry named by URL", func(o, _ string) string { return "http://" + o + "/v2/" }, true, false},
		{"the mirror named", func(_, m string) string { return m }, false, true},
		{"another named", func(_, _ string) string { return "other.example" }, false, false},
		{"the registry's name without its port", func(o, _ string) string { return strings.Split(o, ":")[0] }, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cdn, origin, mirror := start(t, nil), start(t, nil), start(t, nil)
			img := origin.image(t, "app", "v1", 100)
			for _, b := range img.bytes {
				cdn.blob(t, "app", b)
			}
			// Both ask for a password and accept any or none; the mirror has nothing.
			ask := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Header.Get("Authorization") == "" && r.Header.Get("X-Asked") == "" {
					w.Header().Set("WWW-Authenticate", "Basic")
				}
				next.ServeHTTP(w, r)
			}
			demand := func(accepted bool) middleware {
				return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if _, _, ok := r.BasicAuth(); !ok && accepted {
						w.Header().Set("WWW-Authenticate", "Basic")
						w.WriteHeader(401)
						return
					}
					if strings.Contains(r.URL.Path, "/blobs/") {
						http.Redirect(w, r, cdn.URL+r.URL.Path+"?signature=s3cr3t", http.StatusTemporaryRedirect)
						return
					}
					ask(w, r, next)
				}
			}
			origin.set(demand(c.origin))
			mirror.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(401)
			})
			root := hostsFolder(t, origin.host, fmt.Sprintf("server = %q\n[header]\nx-own = \"header-value\"\n[host.%q]\n", "http://"+origin.host, "http://"+mirror.host))
			auth := registry.Auth{Username: user, Password: secret(password), ServerAddress: c.address(origin.host, mirror.host)}
			p := repository(t, newClient(t, registry.Options{ConfigPath: []string{root}}), origin.host+"/app:v1", auth)
			if err := pullAll(t, p); err != nil {
				t.Fatal(err)
			}
			saw := func(s *server) (credentials, header bool) {
				for _, r := range s.asked() {
					_, got, _ := r.BasicAuth()
					credentials = credentials || got == password
					header = header || r.Header.Get("X-Own") != ""
				}
				return credentials, header
			}
			if credentials, header := saw(origin); credentials != c.origin || !header {
				t.Errorf("registry: credentials %v, header %v", credentials, header)
			}
			if credentials, header := saw(mirror); credentials != c.mirror || header {
				t.Errorf("mirror: credentials %v, header %v", credentials, header)
			}
			asked := cdn.asked()
			if len(asked) != 2 {
				t.Errorf("%d requests to where the registry redirects", len(asked))
			}
			for _, r := range asked {
				if r.Header.Get("Authorization") != "" || r.Header.Get("X-Own") != "" || r.URL.Query().Get("signature") != "s3cr3t" || r.URL.Query().Has("ns") {
					t.Errorf("%s with %v", r.URL, r.Header)
				}
			}
		})
	}
}

// TestRedirectBack has another host send us back: what it says is not asked in our name.
func TestRedirectBack(t *testing.T) {
	origin := start(t, nil)
	img := origin.image(t, "app", "v1", 100)
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, origin.URL+"/v2/secret/hop", http.StatusFound)
	}))
	defer back.Close()
	origin.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/secret/") && r.Header.Get("Authorization") != "" {
			t.Errorf("asked for %s with credentials", r.URL.Path)
		}
		if strings.HasSuffix(r.URL.Path, "/hop") {
			http.Redirect(w, r, "/v2/secret/blobs/"+img.layers[0].Digest.String(), http.StatusFound)
			return
		}
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(401)
			return
		}
		http.Redirect(w, r, back.URL, http.StatusFound)
	})
	p := repository(t, newClient(t, registry.Options{Retries: -1}), origin.host+"/app:v1", registry.Auth{Username: "u", Password: secret("p")})
	err := p.Fetch(t.Context(), img.layers[0], openStore(t), nil)
	wantErr(t, err, registry.ErrUnauthorized)
}

// TestDowngrade has a registry with TLS send us to plain HTTP: for a blob, and for a token.
func TestDowngrade(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("asked for %s", r.URL)
	}))
	defer plain.Close()
	s := startTLS(t, nil)
	img := s.image(t, "app", "v1", 100)
	client := newClient(t, registry.Options{})
	auth := registry.Auth{Username: "u", Password: secret("p")}

	s.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, plain.URL, http.StatusFound)
	})
	err := repository(t, client, s.host+"/app:v1", auth).Fetch(t.Context(), img.layers[0], openStore(t), nil)
	wantErr(t, err, registry.ErrMalformed)
	wantText(t, err, "plain HTTP")

	s.set(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", plain.URL))
		w.WriteHeader(401)
	})
	err = repository(t, client, s.host+"/app:v1", auth).Fetch(t.Context(), img.layers[0], openStore(t), nil)
	wantErr(t, err, registry.ErrMalformed)
	wantText(t, err, "plain HTTP")
}

// TestSecretsDoNotShow prints, marshals and dumps credentials, and has servers send back what they were
// sent in every place that an error repeats.
func TestSecretsDoNotShow(t *testing.T) {
	const password, identity, token = "pass word/1", "refresh+token/1", "registry-token-1"
	encodedPair := base64.StdEncoding.EncodeToString([]byte("user:" + password))
	needles := []string{password, url.QueryEscape(password), identity, url.QueryEscape(identity), token, encodedPair, "issued-token", "hosts-header", "s3cr3t"}
	clean := func(t *testing.T, where, text string) {
		t.Helper()
		for _, needle := range needles {
			if strings.Contains(text, needle) {
				t.Errorf("%s shows %q: %s", where, needle, text)
			}
		}
	}
	auths := []registry.Auth{
		{Username: "user", Password: secret(password)},
		{Encoded: secret(encodedPair)},
		{IdentityToken: secret(identity)},
		{RegistryToken: secret(token)},
	}
	type holder struct {
		auth registry.Auth
		P    *registry.Auth
	}
	for _, auth := range auths {
		for _, v := range []any{auth, &auth, auth.Password, holder{auth, &auth}, []registry.Auth{auth}, map[string]registry.Auth{"a": auth}} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
				clean(t, verb, fmt.Sprintf(verb, v))
			}
			b, err := json.Marshal(v)
			if err != nil {
				t.Error(err)
			}
			clean(t, "JSON", string(b))
		}
	}

	var echo []string
	note := func(r *http.Request) string {
		_ = r.ParseForm()
		_, p, _ := r.BasicAuth()
		all := fmt.Sprint(r.Header.Get("Authorization"), " ", p, " ", r.Form.Encode(), " ", r.PostForm.Get("refresh_token"), " ", r.Header.Get("X-Own"))
		echo = append(echo, all)
		return all
	}
	var mu sync.Mutex
	logs := &strings.Builder{}
	logger := funcr.New(func(prefix, args string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(logs, prefix, args)
	}, funcr.Options{Verbosity: 10})
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		said := note(r)
		if r.URL.Path == "/refuse" {
			fail(w, 401, "DENIED", said)
			return
		}
		fmt.Fprint(w, `{"token":"issued-token-1"}`)
	}))
	defer tokens.Close()
	for _, challenge := range []string{"Basic", fmt.Sprintf("Bearer realm=%q", tokens.URL), fmt.Sprintf("Bearer realm=%q", tokens.URL+"/refuse")} {
		for _, status := range []int{200, 206, 403, 404, 429, 500} {
			for _, auth := range auths {
				s := start(t, nil)
				img := s.image(t, "app", "v1", 100)
				s.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
					mu.Lock()
					defer mu.Unlock()
					said := note(r)
					if r.Header.Get("Authorization") == "" {
						w.Header().Set("WWW-Authenticate", challenge)
						fail(w, 401, "UNAUTHORIZED", said)
						return
					}
					w.Header().Set("Content-Type", said)
					w.Header().Set("Content-Range", said)
					if status == 200 {
						_ = json.NewEncoder(w).Encode(map[string]any{"schemaVersion": 2, "mediaType": said})
						return
					}
					fail(w, status, said, said)
				})
				// Twice the same, so that what the first one says is logged.
				root := hostsFolder(t, s.host, fmt.Sprintf("[header]\nx-own = 'hosts-header'\n[host.%q.header]\nx-own = 'hosts-header'\n", s.URL))
				client := newClient(t, registry.Options{Retries: 1, ConfigPath: []string{root}})
				p := repository(t, client, s.host+"/app:v1", auth)
				ctx := klog.NewContext(t.Context(), logger)
				d, err := p.Resolve(ctx)
				if err == nil {
					_, err = p.Manifest(ctx, d)
				}
				clean(t, "error", err.Error())
				err = p.Fetch(ctx, img.layers[0], openStore(t), nil)
				clean(t, "error", err.Error())
				clean(t, "%#v of the error", fmt.Sprintf("%#v", err))
				clean(t, "%+v of the repository", fmt.Sprintf("%+v", p))
			}
		}
	}
	clean(t, "log", logs.String())
	if logs.Len() == 0 {
		t.Error("nothing was logged")
	}
	// The test would find nothing if nothing had been sent back.
	for _, needle := range needles[:len(needles)-1] {
		if needle != url.QueryEscape(password) && !strings.Contains(strings.Join(echo, "\n"), needle) {
			t.Errorf("%q was never sent", needle)
		}
	}

	// An address that is signed.
	s := start(t, nil)
	dead := httptest.NewServer(nil)
	dead.Close()
	for _, to := range []string{dead.URL + "/?signature=s3cr3t", "ftp://h/?signature=s3cr3t", "http://user:s3cr3t@" + strings.TrimPrefix(dead.URL, "http://"), "http://h:s3cr3t/"} {
		s.set(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
		})
		d := registry.Descriptor{Digest: content.FromBytes([]byte("x")), Size: 1}
		err := repository(t, newClient(t, registry.Options{}), s.host+"/app", registry.Auth{}).Fetch(t.Context(), d, openStore(t), nil)
		if err == nil {
			t.Error("no error")
			continue
		}
		clean(t, "error", err.Error())
	}
}

// TestCutSecret has a server send back a secret where a long message is cut.
func TestCutSecret(t *testing.T) {
	s := start(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		fail(w, 403, "", strings.Repeat("x", 290)+"registry-token-1")
	})
	d := registry.Descriptor{Digest: content.FromBytes([]byte("x")), Size: 1}
	p := repository(t, newClient(t, registry.Options{}), s.host+"/app", registry.Auth{RegistryToken: secret("registry-token-1")})
	err := p.Fetch(t.Context(), d, openStore(t), nil)
	wantText(t, err, "xxx")
	if strings.Contains(err.Error(), "xregis") {
		t.Errorf("%v", err)
	}
}

func TestSecret(t *testing.T) {
	if s := registry.NewSecret(""); !s.IsZero() || s.String() != "" {
		t.Errorf("%v", s)
	}
	s := secret("x")
	if s.IsZero() || s.String() != "[redacted]" {
		t.Errorf("%v", s)
	}
}

func TestChallenges(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"none", nil, "[]"},
		{"basic", []string{`Basic realm="x"`}, "[{basic map[realm:x]}]"},
		{"no parameters", []string{"Basic"}, "[{basic map[]}]"},
		{"bearer", []string{`Bearer realm="https://a/t?x=1",service="s",scope="repository:a:pull,push b"`}, "[{bearer map[realm:https://a/t?x=1 scope:repository:a:pull,push b service:s]}]"},
		{"spaces", []string{"  bearer \t realm = a ,, service\t=\"b\" ,"}, "[{bearer map[realm:a service:b]}]"},
		{"two in a line", []string{`Negotiate, Basic realm="a, b", Bearer realm=c`}, "[{negotiate map[]} {basic map[realm:a, b]} {bearer map[realm:c]}]"},
		{"two lines", []string{"Basic", "Bearer realm=c"}, "[{basic map[]} {bearer map[realm:c]}]"},
		{"quoted pair", []string{`Basic realm="a\"b\\"`}, `[{basic map[realm:a"b\]}]`},
		{"no end", []string{`Basic realm="abc`}, "[{basic map[realm:abc]}]"},
		{"backslash at the end", []string{`Basic realm="abc\`}, "[{basic map[realm:abc]}]"},
		{"twice the same", []string{"Bearer realm=a, realm=b"}, "[{bearer map[realm:a]}]"},
		{"token68", []string{"Negotiate YWJj==, Basic realm=x"}, "[{negotiate map[ywjj:]} {basic map[realm:x]}]"},
		{"nonsense", []string{"\"\"=,;:"}, "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := http.Header{"Www-Authenticate": c.lines}
			if got := fmt.Sprint(registry.ParseChallenges(h)); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func FuzzChallenges(f *testing.F) {
	for _, s := range []string{`Basic realm="x"`, `Bearer realm="a",service=b, Negotiate`, `Bearer realm="`, "=,=", "a b=c d=e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list := registry.ParseChallenges(http.Header{"Www-Authenticate": {s}})
		if len(list) > 16 {
			t.Errorf("%d challenges", len(list))
		}
		for _, c := range list {
			if c.Scheme == "" || strings.ToLower(c.Scheme) != c.Scheme {
				t.Errorf("scheme %q", c.Scheme)
			}
		}
	})
}
