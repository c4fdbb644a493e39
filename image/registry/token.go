// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	clientID = "berth"

	// maxToken bounds the answer of a token server.
	maxToken = 64 << 10
	// tokenLife is how long a token is good if its server does not say (distribution, "Token
	// Authentication": 60 s).
	tokenLife = time.Minute
	maxLife   = 24 * time.Hour
)

// authorizer is how one pull identifies itself to one host: not at all, until the host asks for it.
type authorizer struct {
	e     *endpoint
	creds credentials
	// elsewhere: there are credentials, but not for this host.
	elsewhere bool

	// turn is held while what follows is looked at or changed, and while a token is fetched: whoever
	// else wants one waits for it.
	turn     chan struct{}
	scheme   authScheme
	grant    grant
	tokens   map[grant]token
	identity Secret // the refresh token that is good now

	// issued are secrets that did not come with the request, for scrub.
	issued atomic.Pointer[[]Secret]
}

type authScheme int

const (
	anonymous authScheme = iota
	basic
	bearer
	fixedToken // the request's own
)

// grant is what a token is for, and who gives it.
type grant struct{ realm, service, scope string }

type token struct {
	header Secret    // the value of the Authorization header
	until  time.Time // from when on a new one is fetched
}

func newAuthorizer(e *endpoint, creds credentials, elsewhere bool) *authorizer {
	return &authorizer{
		e: e, creds: creds, elsewhere: elsewhere, identity: creds.identity,
		turn: make(chan struct{}, 1), tokens: make(map[grant]token),
	}
}

func (a *authorizer) acquire(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *authorizer) release() { <-a.turn }

// header is what a request is to carry; it fetches a token if the one in use has come to its end.
func (a *authorizer) header(ctx context.Context) (Secret, error) {
	if err := a.acquire(ctx); err != nil {
		return Secret{}, err
	}
	defer a.release()
	return a.headerLocked(ctx)
}

func (a *authorizer) headerLocked(ctx context.Context) (Secret, error) {
	switch a.scheme {
	case basic:
		return a.creds.basic(), nil
	case fixedToken:
		return NewSecret("Bearer " + a.creds.token.text()), nil
	case bearer:
		if t, ok := a.tokens[a.grant]; ok && a.e.now().Before(t.until) {
			return t.header, nil
		}
		t, err := a.fetch(ctx, a.grant)
		if err != nil {
			return Secret{}, err
		}
		a.tokens[a.grant] = t
		return t.header, nil
	}
	return Secret{}, nil
}

// answer takes a 401 to a request that carried used, and says whether to send it again.
func (a *authorizer) answer(ctx context.Context, h http.Header, used Secret) (again bool, err error) {
	if err := a.acquire(ctx); err != nil {
		return false, err
	}
	defer a.release()
	if a.scheme != anonymous {
		// Another request may have found the answer meanwhile.
		if current, err := a.headerLocked(ctx); err != nil || current.text() != used.text() {
			return err == nil, err
		}
	}
	challenges := parseChallenges(h)
	if !a.creds.token.IsZero() {
		a.scheme = fixedToken
		return used.IsZero(), nil
	}
	for _, c := range challenges {
		if c.scheme != "bearer" || c.params["realm"] == "" {
			continue
		}
		a.scheme = bearer
		a.grant = grant{realm: c.params["realm"], service: c.params["service"], scope: c.params["scope"]}
		if a.grant.scope == "" {
			a.grant.scope = "repository:" + string(a.e.repository) + ":pull"
		}
		if t, ok := a.tokens[a.grant]; ok && t.header.text() == used.text() {
			delete(a.tokens, a.grant)
		}
		_, err := a.headerLocked(ctx)
		return err == nil, err
	}
	for _, c := range challenges {
		if c.scheme == "basic" && a.creds.username != "" {
			a.scheme = basic
			return used.IsZero(), nil
		}
	}
	return false, nil
}

// hint says what somebody can do who was not let in.
func (a *authorizer) hint() string {
	switch {
	case a.elsewhere:
		return "the credentials of the request are for another host"
	case a.creds.isZero():
		return "the request has no credentials: the image may not exist, or need an image pull secret"
	}
	return "the registry does not accept the credentials of the request for this repository"
}

// errTokenServer is what the realm of a challenge may not be.
var errTokenServer = errors.New("token server")

// fetch gets a token (distribution, "Token Authentication" and "OAuth2 Token Authentication").
func (a *authorizer) fetch(ctx context.Context, g grant) (token, error) {
	u, err := url.Parse(g.realm)
	if err != nil || u.Host == "" || u.Scheme != schemeHTTP && u.Scheme != schemeHTTPS {
		return token{}, a.e.fail(a.e.host, ErrMalformed, "names a token server that is no URL", errTokenServer)
	}
	if u.Scheme == schemeHTTP && a.e.currentScheme() == schemeHTTPS {
		return token{}, a.e.fail(a.e.host, ErrMalformed, "names a token server at plain HTTP, "+u.Host+", which is not asked", errTokenServer)
	}
	u.User, u.Fragment = nil, ""
	if !a.identity.IsZero() {
		return a.post(ctx, u, g, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.identity.text()}})
	}
	t, err := a.get(ctx, u, g)
	if f := asFailure(err); f != nil && a.creds.username != "" && (f.status == http.StatusNotFound || f.status == http.StatusMethodNotAllowed) {
		return a.post(ctx, u, g, url.Values{
			"grant_type": {"password"}, "username": {a.creds.username}, "password": {a.creds.password.text()},
		})
	}
	return t, err
}

func (a *authorizer) get(ctx context.Context, u *url.URL, g grant) (token, error) {
	query := u.Query()
	if g.service != "" {
		query.Set("service", g.service)
	}
	for scope := range strings.FieldsSeq(g.scope) {
		query.Add("scope", scope)
	}
	to := *u
	to.RawQuery = query.Encode()
	r := &http.Request{Method: http.MethodGet, URL: &to, Header: make(http.Header)}
	if b := a.creds.basic(); !b.IsZero() {
		r.Header.Set("Authorization", b.text())
	}
	return a.exchange(ctx, r)
}

func (a *authorizer) post(ctx context.Context, u *url.URL, g grant, form url.Values) (token, error) {
	form.Set("client_id", clientID)
	form.Set("service", g.service)
	form.Set("scope", g.scope)
	body := form.Encode()
	r := &http.Request{
		Method: http.MethodPost, URL: u, Header: make(http.Header),
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return a.exchange(ctx, r)
}

// exchange asks a token server. Credentials go nowhere else, so redirects are followed only without
// them.
func (a *authorizer) exchange(ctx context.Context, r *http.Request) (token, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errClosed)
	secret := r.Method != http.MethodGet || r.Header.Get("Authorization") != ""
	for hop := 0; ; hop++ {
		transport := a.e.foreign
		r.Host = r.URL.Host
		r.Header.Set("User-Agent", a.e.agent)
		if r.URL.Host == a.e.host && r.URL.Scheme == a.e.currentScheme() && hop == 0 {
			transport = a.e.own
			for name, values := range a.e.header {
				if name != "Authorization" || !secret {
					r.Header[name] = values
				}
			}
		}
		resp, err := transport.RoundTrip(r.WithContext(ctx))
		if err != nil {
			return token{}, a.e.broken(ctx, r.URL.Host, err)
		}
		resp.Body = watch(ctx, resp.Body, a.e.stalls, cancel)
		next, err := a.e.redirect(resp, r.URL, hop)
		switch {
		case err != nil:
			return token{}, err
		case next == nil:
			defer resp.Body.Close()
			return a.read(ctx, resp)
		}
		drain(resp.Body)
		if secret {
			return token{}, a.e.fail(r.URL.Host, ErrUnauthorized, "the token server redirects, where credentials do not follow", errTokenServer)
		}
		r = &http.Request{Method: http.MethodGet, URL: next, Header: make(http.Header)}
	}
}

// read reads a token server's answer.
func (a *authorizer) read(ctx context.Context, resp *http.Response) (token, error) {
	host := resp.Request.URL.Host
	if resp.StatusCode != http.StatusOK {
		f := a.e.refusal(resp, false)
		if resp.StatusCode == http.StatusBadRequest { // OAuth2's way to say no (RFC 6749, section 5.2)
			f.class = ErrUnauthorized
		}
		if f.class == ErrNotFound { //nolint:errorlint // its own field: a missing token server is no missing image
			f.class = ErrUnauthorized
		}
		f.cause = a.e.told("token server: "+f.cause.Error(), errTokenServer)
		return token{}, f
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	if err != nil {
		return token{}, a.e.broken(ctx, host, fmt.Errorf("token server: %w", err))
	}
	var answer struct {
		Token        string  `json:"token"`
		AccessToken  string  `json:"access_token"`
		RefreshToken string  `json:"refresh_token"`
		ExpiresIn    float64 `json:"expires_in"`
	}
	if len(b) > maxToken {
		return token{}, a.e.fail(host, ErrTooLarge, "the token server's answer", errTokenServer)
	}
	if json.Unmarshal(b, &answer) != nil {
		return token{}, a.e.fail(host, ErrMalformed, "the token server's answer is not JSON as it should be", errTokenServer)
	}
	if answer.AccessToken == "" {
		answer.AccessToken = answer.Token
	}
	if answer.AccessToken == "" || strings.ContainsAny(answer.AccessToken, "\r\n\x00") {
		return token{}, a.e.fail(host, ErrUnauthorized, "the token server gave no token", errTokenServer)
	}
	if answer.RefreshToken != "" && !a.identity.IsZero() {
		a.identity = NewSecret(answer.RefreshToken)
		a.note(a.identity)
	}
	life := tokenLife
	if answer.ExpiresIn > 0 {
		life = time.Duration(min(answer.ExpiresIn, maxLife.Seconds()) * float64(time.Second))
	}
	a.note(NewSecret(answer.AccessToken))
	// It is renewed a little early: it takes time to arrive.
	return token{header: NewSecret("Bearer " + answer.AccessToken), until: a.e.now().Add(life * 9 / 10)}, nil
}

// note remembers a secret for scrub; the latest few.
func (a *authorizer) note(s Secret) {
	const most = 8
	var list []Secret
	if old := a.issued.Load(); old != nil {
		list = append(list, (*old)[max(0, len(*old)-most+1):]...)
	}
	list = append(list, s)
	a.issued.Store(&list)
}

// scrub takes the secrets out of a text that others had a hand in: a server can send back what it was
// sent.
func (a *authorizer) scrub(text string) string {
	secrets := []Secret{a.creds.password, a.creds.identity, a.creds.token}
	if a.creds.username != "" {
		pair := a.creds.username + ":" + a.creds.password.text()
		secrets = append(secrets, NewSecret(base64.StdEncoding.EncodeToString([]byte(pair))))
	}
	if issued := a.issued.Load(); issued != nil {
		secrets = append(secrets, *issued...)
	}
	for _, values := range a.e.header {
		for _, v := range values {
			secrets = append(secrets, NewSecret(v))
		}
	}
	// What is shorter is guessed in no time, or is no secret ("1" in a header), and taking it out would make
	// nonsense of the text.
	const short = 4
	for _, s := range secrets {
		if plain := s.text(); len(plain) >= short {
			text = strings.ReplaceAll(text, plain, redacted)
			text = strings.ReplaceAll(text, url.QueryEscape(plain), redacted)
		}
	}
	return text
}
