// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"
)

const (
	dialTimeout      = 30 * time.Second
	handshakeTimeout = 10 * time.Second
	idleTimeout      = 30 * time.Second

	// maxIdle bounds the connections that wait for the next request, of one pool and of one host in it.
	maxIdle        = 16
	maxIdlePerHost = 4

	// maxPools bounds how many configurations keep connections; the oldest goes.
	maxPools = 16

	// maxHeader bounds the header of an answer.
	maxHeader = 64 << 10
)

// pools are the connections that pulls share. Two hosts are served by one pool exactly if what
// hosts.toml says about their TLS, and the files that it names, are equal: so a file that changed has a
// new pool at the next pull, and no connection is used that was made under other rules.
type pools struct {
	proxy  func(*url.URL) (*url.URL, error)
	stalls time.Duration // how long an answer may take to begin

	mu sync.Mutex
	// +checklocks:mu
	byKey map[poolKey]*http.Transport
	// +checklocks:mu
	order []poolKey // the least recently used first
}

type poolKey [sha256.Size]byte

func newPools(stalls time.Duration) *pools {
	return &pools{
		proxy:  environmentProxy(),
		stalls: stalls,
		byKey:  make(map[poolKey]*http.Transport),
	}
}

// tlsFiles are what a host's TLS is made of, read.
type tlsFiles struct {
	config *tls.Config
	key    poolKey
}

// readTLS reads the files that a host names. Without clients there are no client certificates: a
// certificate says who we are, which is for the host alone for which it is configured.
func readTLS(h *hostConfig, clients bool) (tlsFiles, error) {
	sum := sha256.New()
	note := func(what string, b []byte) {
		fmt.Fprintf(sum, "%s %d\n", what, len(b))
		sum.Write(b)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if h.skipVerify != nil && *h.skipVerify {
		config.InsecureSkipVerify = true
		note("skip", nil)
	}
	if len(h.ca) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a node without any: what is named here is enough
		}
		for _, file := range h.ca {
			b, err := readConfig(file)
			if err != nil {
				return tlsFiles{}, err
			}
			if !pool.AppendCertsFromPEM(b) {
				return tlsFiles{}, fmt.Errorf("%w: %s: no certificate in PEM form", ErrConfig, file)
			}
			note("ca", b)
		}
		config.RootCAs = pool
	}
	if clients {
		for _, pair := range h.client {
			cert, both, err := readPair(pair)
			if err != nil {
				return tlsFiles{}, err
			}
			config.Certificates = append(config.Certificates, cert)
			note("client", both)
		}
	}
	fmt.Fprintf(sum, "dial %d\n", h.dial)
	return tlsFiles{config: config, key: poolKey(sum.Sum(nil))}, nil
}

// readPair reads a client's certificate and its key.
func readPair(pair [2]string) (cert tls.Certificate, both []byte, err error) {
	c, err := readConfig(pair[0])
	if err != nil {
		return cert, nil, err
	}
	k, keyFile := c, pair[0]
	if pair[1] != "" {
		keyFile = pair[1]
		if k, err = readConfig(keyFile); err != nil {
			return cert, nil, err
		}
	}
	if cert, err = tls.X509KeyPair(c, k); err != nil {
		return cert, nil, fmt.Errorf("%w: client certificate %s with key %s: %w", ErrConfig, pair[0], keyFile, err)
	}
	return cert, append(append([]byte(nil), c...), k...), nil
}

// transport returns the connections for a host. What it is asked for again with equal files is the same.
func (p *pools) transport(h *hostConfig, clients bool) (*http.Transport, error) {
	files, err := readTLS(h, clients)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t, ok := p.byKey[files.key]
	if ok {
		for i, key := range p.order {
			if key == files.key {
				p.order = append(p.order[:i], p.order[i+1:]...)
				break
			}
		}
	} else {
		t = p.make(files.config, h.dial)
		p.byKey[files.key] = t
	}
	p.order = append(p.order, files.key)
	if len(p.order) > maxPools {
		// Requests under way go on; their connections end with them.
		p.byKey[p.order[0]].CloseIdleConnections()
		delete(p.byKey, p.order[0])
		p.order = p.order[1:]
	}
	return t, nil
}

func (p *pools) make(config *tls.Config, dial time.Duration) *http.Transport {
	if dial == 0 {
		dial = dialTimeout
	}
	t := &http.Transport{
		Proxy:                  p.proxyFor,
		DialContext:            (&net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    handshakeTimeout,
		ResponseHeaderTimeout:  p.stalls,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		// A digest is of the bytes as they are stored, and so is an offset.
		DisableCompression: true,
		// Layers come over connections of their own, so that a stalled one can be given up alone.
		Protocols: new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// errProxy does not say what the environment has, which may be a password.
var errProxy = errors.New("HTTP_PROXY or HTTPS_PROXY in the daemon's environment is no URL of a proxy")

// environmentProxy is which proxy the environment names for a URL. One that is no URL is an error at the
// first pull that would go through it; the library would pass over it, and go past the proxy.
func environmentProxy() func(*url.URL) (*url.URL, error) {
	const nowhere = "nowhere.invalid"
	c := httpproxy.FromEnvironment()
	for _, proxy := range []*string{&c.HTTPProxy, &c.HTTPSProxy} {
		if !isProxy(*proxy) {
			*proxy = schemeHTTP + "://" + nowhere
		}
	}
	proxy := c.ProxyFunc()
	return func(u *url.URL) (*url.URL, error) {
		p, err := proxy(u)
		if err != nil || p != nil && p.Host == nowhere {
			return nil, errProxy
		}
		return p, nil
	}
}

// isProxy reports whether there is no proxy, or one that has a name.
func isProxy(s string) bool {
	if s == "" {
		return true
	}
	if !strings.Contains(s, "://") {
		s = schemeHTTP + "://" + s
	}
	u, err := url.Parse(s)
	return err == nil && u.Host != ""
}

func (p *pools) proxyFor(r *http.Request) (*url.URL, error) { return p.proxy(r.URL) }

// close ends the connections that wait.
func (p *pools) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.byKey {
		t.CloseIdleConnections()
	}
}

// errStalled is why a connection is given up.
var errStalled = errors.New("no bytes came")

// watched is a body that is given up when nothing comes. Only the time that is spent in Read counts:
// whoever reads may be slow.
type watched struct {
	body  io.ReadCloser
	timer *time.Timer
	wait  time.Duration
	cause func() error // why the request was ended
}

// watch makes a body that calls cancel, which ends the request's context, when a Read got nothing for
// the given time.
func watch(ctx context.Context, body io.ReadCloser, wait time.Duration, cancel context.CancelCauseFunc) *watched {
	w := &watched{body: body, wait: wait, cause: func() error { return context.Cause(ctx) }}
	w.timer = time.AfterFunc(wait, func() { cancel(errStalled) })
	w.timer.Stop()
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.wait)
	n, err := w.body.Read(p)
	w.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(w.cause(), errStalled) {
		err = fmt.Errorf("%w for %s", errStalled, w.wait)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	return w.body.Close()
}

// last is the body of the last answer to a request, with which the request ends.
type last struct {
	*watched
	cancel context.CancelCauseFunc
}

func (l *last) Close() error {
	err := l.watched.Close()
	l.cancel(errClosed)
	return err
}

// drain reads what little there is of a body that nobody needs, so that its connection can be used again.
func drain(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, maxMessage)
	body.Close()
}

// errClosed ends a request that is not needed any more.
var errClosed = errors.New("closed")
