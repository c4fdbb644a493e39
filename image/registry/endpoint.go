// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/berth-cri/berth/image/ref"
)

const (
	// maxRedirects is how often an answer may be "ask there".
	maxRedirects = 5
	// maxMessage is how much of an answer that says why not is read.
	maxMessage = 8 << 10
	// maxSends is how often one request is sent: without a token, with one, and with a new one.
	maxSends = 3
)

// endpoint is one host, as it serves one repository to one pull.
type endpoint struct {
	hostConfig
	repository ref.Repository
	namespace  string // the registry that a mirror is to stand for, "" to the registry itself
	agent      string
	stalls     time.Duration
	now        func() time.Time

	own     http.RoundTripper // connections to the host itself
	foreign http.RoundTripper // to hosts that it names: without client certificates
	plain   atomic.Bool       // plainFallback: the host speaks no TLS
	reached *atomic.Bool      // of the whole pull
	ailing  atomic.Bool       // it did not answer the last time
	auth    *authorizer
}

// ask is one question to a host: of a repository, by GET or HEAD.
type ask struct {
	method string
	path   string // below the repository
	accept string
	span   string // a Range header, or ""
}

// do asks a host, identifies itself if it has to, and follows where the answer leads. The body is to be
// closed. Only answers 200 and 206 are no error; an error is the context's or a *failure.
func (e *endpoint) do(ctx context.Context, q ask) (*http.Response, error) {
	for sent := 1; ; sent++ {
		authorization, err := e.auth.header(ctx)
		if err != nil {
			return nil, err
		}
		resp, away, err := e.send(ctx, q, authorization)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			e.ailing.Store(false)
			return resp, nil
		}
		why := e.refusal(resp, away)
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized || away || sent == maxSends {
			return nil, why
		}
		again, err := e.auth.answer(ctx, resp.Header, authorization)
		switch {
		case err != nil:
			return nil, err
		case !again:
			return nil, why
		}
	}
}

// url is where a question is put.
func (e *endpoint) url(q ask) *url.URL {
	u := &url.URL{Scheme: e.currentScheme(), Host: e.host, Path: e.path + "/" + string(e.repository) + "/" + q.path}
	if e.namespace != "" {
		u.RawQuery = url.Values{"ns": {e.namespace}}.Encode()
	}
	return u
}

func (e *endpoint) currentScheme() string {
	if e.plain.Load() {
		return schemeHTTP
	}
	return e.scheme
}

// send puts a question once and follows redirects. away says that the answer is another host's.
func (e *endpoint) send(ctx context.Context, q ask, authorization Secret) (resp *http.Response, away bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			cancel(errClosed)
		}
	}()
	u := e.url(q)
	for hop := 0; ; hop++ {
		r := (&http.Request{Method: q.method, URL: u, Header: make(http.Header), Host: u.Host}).WithContext(ctx)
		r.Header.Set("User-Agent", e.agent)
		if q.accept != "" {
			r.Header.Set("Accept", q.accept)
		}
		if q.span != "" {
			r.Header.Set("Range", q.span)
		}
		transport := e.foreign
		if !away {
			transport = e.own
			for name, values := range e.header {
				r.Header[name] = values
			}
			if !authorization.IsZero() {
				r.Header.Set("Authorization", authorization.text())
			}
		}
		if resp, err = e.roundTrip(transport, r, hop == 0); err != nil {
			return nil, away, err
		}
		next, err := e.redirect(resp, u, hop)
		if err != nil || next == nil {
			if err == nil {
				resp.Body = &last{watch(ctx, resp.Body, e.stalls, cancel), cancel}
			}
			return resp, away, err
		}
		drain(watch(ctx, resp.Body, e.stalls, cancel))
		// Once away, always away: another host does not get to say what is asked here in our name.
		away = away || next.Host != u.Host || next.Scheme != u.Scheme
		u = next
	}
}

// redirect says where an answer leads, nil if it is one itself.
func (e *endpoint) redirect(resp *http.Response, from *url.URL, hop int) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	fail := func(format string, args ...any) error {
		resp.Body.Close()
		return e.fail(from.Host, ErrMalformed, fmt.Sprintf(format, args...), nil)
	}
	if hop == maxRedirects {
		return nil, fail("more than %d redirects", maxRedirects)
	}
	// Not the address: it may be signed, and whoever has it has the content.
	to, err := from.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" || to.Host == "" || to.Scheme != schemeHTTP && to.Scheme != schemeHTTPS {
		return nil, fail("a redirect to nowhere")
	}
	if from.Scheme == schemeHTTPS && to.Scheme == schemeHTTP {
		return nil, fail("a redirect from HTTPS to plain HTTP at %s, which is not followed", to.Host)
	}
	to.User, to.Fragment = nil, ""
	return to, nil
}

// roundTrip sends one request. Where HTTPS is only the first thing to try it tries the other.
func (e *endpoint) roundTrip(transport http.RoundTripper, r *http.Request, first bool) (*http.Response, error) {
	resp, err := transport.RoundTrip(r)
	if err != nil && first && e.plainFallback && r.URL.Scheme == schemeHTTPS && r.Context().Err() == nil && speaksPlain(err, e.host) {
		e.plain.Store(true)
		again := r.Clone(r.Context())
		again.URL.Scheme = schemeHTTP
		*r.URL = *again.URL // redirects are relative to where the answer came from
		resp, err = transport.RoundTrip(again)
	}
	if err != nil {
		return nil, e.broken(r.Context(), r.URL.Host, err)
	}
	e.reached.Store(true)
	return resp, nil
}

// speaksPlain reports whether an error says that there is a server, but none that speaks TLS. Without a
// port the two are at different ones.
func speaksPlain(err error, host string) bool {
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return string(header.RecordHeader[:]) == "HTTP/"
	}
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial" && portOf(host) == ""
}

// broken makes a failure of what a transport, or a body, says.
func (e *endpoint) broken(ctx context.Context, host string, err error) error {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errStalled) {
		return context.Cause(ctx)
	}
	f := e.fail(host, ErrUnavailable, err.Error(), err)
	f.temporary = true
	say := func(next string) error {
		return e.fail(host, ErrUnavailable, err.Error()+"; "+next, err)
	}
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok && string(header.RecordHeader[:]) == "HTTP/" {
		return say("it speaks plain HTTP: if that is meant, name it as http:// in the registry's hosts.toml")
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return say("name its certificate authority as ca in the registry's hosts.toml")
	}
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, errProxy):
		f.temporary = false
	case ok && op.Op == "remote error":
		return say("it may want a client certificate: name one as client in the registry's hosts.toml")
	case ok && op.Op == "dial":
		f.unreached = true
	}
	return f
}

// refusal makes a failure of an answer that gives nothing.
func (e *endpoint) refusal(resp *http.Response, away bool) *failure {
	host := resp.Request.URL.Host
	text := resp.Status
	if text == "" {
		text = strconv.Itoa(resp.StatusCode)
	}
	// What other hosts say is not repeated: a registry can send us anywhere, and whoever reads the
	// message may not be allowed there.
	if !away && resp.Request.Method != http.MethodHead {
		if said := cleanTo(e.auth.scrub(errorMessage(resp.Body)), maxQuote); said != "" {
			text += ": " + said
		}
	}
	f := e.fail(host, ErrUnsupported, text, nil)
	f.status = resp.StatusCode
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		f.class = ErrNotFound
	case away && code == http.StatusForbidden:
		// An address that was signed for a time that is over.
		f.class, f.temporary = ErrUnavailable, true
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		f.class = ErrUnauthorized
		f.cause = e.told(text+"; "+e.auth.hint(), nil)
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code == http.StatusTooEarly,
		code >= 500 && code != http.StatusNotImplemented:
		f.class, f.temporary = ErrUnavailable, true
		f.after = retryAfter(resp.Header, e.now())
	case code < 400:
		f.class = ErrMalformed
	}
	return f
}

// retryAfter reads how long to wait (RFC 9110, section 10.2.3), 0 if it is not said.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

// errorMessage reads what a registry says about an error (distribution-spec, "Error Codes").
func errorMessage(body io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(body, maxMessage))
	if err != nil {
		return ""
	}
	var answer struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(b, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	first := answer.Errors[0]
	return strings.Trim(first.Code+": "+first.Message, ": ")
}

// fail makes a failure. No secret of this pull is in its text, whoever put one there.
func (e *endpoint) fail(host string, class error, text string, err error) *failure {
	return &failure{host: host, class: class, cause: e.told(text, err)}
}

// told is an error with a text of ours.
type told struct {
	text string
	err  error
}

func (t *told) Error() string { return t.text }
func (t *told) Unwrap() error { return t.err }

func (e *endpoint) told(text string, err error) error {
	// In this order: a secret that was cut short would not be found.
	return &told{text: cleanTo(e.auth.scrub(text), maxCause), err: err}
}
