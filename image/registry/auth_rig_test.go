// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/berth-cri/berth/store/content"
)

const (
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

func digestOf(h hash.Hash) content.Digest {
	return content.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

// tokenServer gives out tokens, and guards a registry with them.
type tokenServer struct {
	*httptest.Server
	repo, user, password string

	mu       sync.Mutex
	n        int
	valid    map[string]bool
	life     int // expires_in, 0: not said
	identity string
	noGet    bool
	asked    []*http.Request
}

func newTokenServer(t *testing.T, repo, user, password string) *tokenServer {
	t.Helper()
	a := &tokenServer{repo: repo, user: user, password: password, valid: make(map[string]bool)}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// issued is how many tokens there have been.
func (a *tokenServer) issued() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

func (a *tokenServer) revoke() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.valid)
}

// ServeHTTP is both ways to ask for a token.
func (a *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = r.ParseForm()
	a.asked = append(a.asked, r)
	scope := "repository:" + a.repo + ":pull"
	user, password, _ := r.BasicAuth()
	field := "token"
	switch {
	case r.Form.Get("service") != "the service" || r.Form.Get("scope") != scope:
		fail(w, http.StatusBadRequest, "BAD", "service or scope: "+r.Form.Encode())
		return
	case r.Method == http.MethodGet && a.noGet:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "")
		return
	case r.Method == http.MethodGet && user == a.user && password == a.password:
	case r.Method == http.MethodPost && r.Form.Get("grant_type") == "password" && r.Form.Get("username") == a.user && r.Form.Get("password") == a.password:
		field = "access_token"
	case r.Method == http.MethodPost && r.Form.Get("grant_type") == "refresh_token" && a.identity != "" && r.Form.Get("refresh_token") == a.identity:
		field = "access_token"
	default:
		fail(w, http.StatusUnauthorized, "DENIED", "wrong credentials")
		return
	}
	a.n++
	token := fmt.Sprintf("issued-token-%d", a.n)
	a.valid[token] = true
	answer := map[string]any{field: token}
	if a.life != 0 {
		answer["expires_in"] = a.life
	}
	if field == "access_token" && a.identity != "" {
		a.identity += "+" // rotated: the old one is good no more
		answer["refresh_token"] = a.identity
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// guard lets those through who have a token.
func (a *tokenServer) guard(w http.ResponseWriter, r *http.Request, next http.Handler) {
	a.mu.Lock()
	ok := len(r.Header.Get("Authorization")) > 7 && a.valid[r.Header.Get("Authorization")[7:]]
	a.mu.Unlock()
	if ok {
		next.ServeHTTP(w, r)
		return
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="the service",scope="repository:%s:pull"`, a.URL, a.repo))
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}
