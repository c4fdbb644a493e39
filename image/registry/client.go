// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/image/ref"
)

// Options are what a Client is told; the zero Options are good.
type Options struct {
	// ConfigPath are the folders of hosts.toml folders, the first that knows a registry counts:
	// "/etc/berth/certs.d". They are read anew for each pull.
	ConfigPath []string
	// Platform is for what an image is looked for in an index. Zero: the machine's.
	Platform Platform
	// UserAgent is what registries are told about us. Empty: "berth".
	UserAgent string
	// NoProgress is after how long without a byte a connection is given up. Zero: 30 s.
	NoProgress time.Duration
	// Retries is how many more times all hosts are asked that may answer later. Zero: 5. Negative: none.
	Retries int
	// Backoff is how long to wait before the first retry, about; it doubles, up to 30 s. Zero: 500 ms.
	Backoff time.Duration
}

const (
	defaultNoProgress = 30 * time.Second
	defaultRetries    = 5
	defaultBackoff    = 500 * time.Millisecond
	maxBackoff        = 30 * time.Second
	// maxWait is the longest Retry-After that is waited for. Whoever asks for more is given up.
	maxWait = time.Minute
	// unreachedRetries is how often all hosts are asked again if none was ever connected to.
	unreachedRetries = 1
)

// A Client pulls from registries. Its methods may be called by many goroutines.
type Client struct {
	options Options
	pools   *pools
	now     func() time.Time
	sleep   func(context.Context, time.Duration) error
}

// New returns a client. Proxies are those of the environment, now.
func New(o Options) *Client {
	o.NoProgress = cmp.Or(o.NoProgress, defaultNoProgress)
	o.Retries = max(cmp.Or(o.Retries, defaultRetries), 0)
	o.Backoff = cmp.Or(o.Backoff, defaultBackoff)
	o.UserAgent = cmp.Or(o.UserAgent, "berth")
	if o.Platform == (Platform{}) {
		o.Platform = Machine()
	}
	return &Client{options: o, pools: newPools(o.NoProgress), now: time.Now, sleep: sleep}
}

// Close ends the connections that wait for a next request. Requests under way go on.
func (c *Client) Close() { c.pools.close() }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A Repository is one repository as one pull sees it: with the hosts that are configured at the time, the
// request's credentials, and the tokens that came of them. Its methods may be called by many
// goroutines.
type Repository struct {
	client    *Client
	ref       ref.Ref
	endpoints []*endpoint // the registry itself is the last
	distrust  distrust
	reached   atomic.Bool              // some host answered, whatever
	kept      atomic.Pointer[Document] // what Resolve had to fetch
}

// Repository prepares a pull: it reads the configuration for the registry of r. It asks nobody. It returns
// ErrConfig or ErrBadAuth.
func (c *Client) Repository(r ref.Ref, auth Auth) (*Repository, error) {
	p := &Repository{client: c, ref: r}
	creds, err := auth.read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	server, err := auth.server()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	hosts, err := loadHosts(c.options.ConfigPath, r.Registry())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	for _, h := range hosts {
		e, err := c.endpoint(h, r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r, err)
		}
		forHost := server == "" && h.origin || server != "" && server == canonicalHost(h.scheme, h.host)
		// Credentials that are for the registry by name are for the server that stands for it.
		if server != "" && h.origin && server == canonicalHost(schemeHTTPS, string(r.Registry())) {
			forHost = true
		}
		own := creds
		if !forHost {
			own = credentials{}
		}
		e.reached = &p.reached
		e.auth = newAuthorizer(e, own, !forHost && !creds.isZero())
		p.endpoints = append(p.endpoints, e)
	}
	return p, nil
}

func (c *Client) endpoint(h hostConfig, r ref.Ref) (*endpoint, error) {
	e := &endpoint{
		hostConfig: h, repository: r.Repository(),
		agent: c.options.UserAgent, stalls: c.options.NoProgress, now: c.now,
	}
	if canonicalHost(schemeHTTPS, h.host) != canonicalHost(schemeHTTPS, hostOf(r.Registry())) {
		e.namespace = string(r.Registry())
	}
	own, err := c.pools.transport(&h, true)
	if err != nil {
		return nil, err
	}
	foreign, err := c.pools.transport(&h, false)
	if err != nil {
		return nil, err
	}
	e.own, e.foreign = own, foreign
	return e, nil
}

// Ref is the name that is pulled.
func (p *Repository) Ref() ref.Ref { return p.ref }

// wrap names what was pulled in an error, and takes the secrets of the pull out of its text.
func (p *Repository) wrap(what string, err error) error {
	text := err.Error()
	if what != "" {
		text = what + ": " + text
	}
	for _, e := range p.endpoints {
		text = e.auth.scrub(text)
	}
	return &told{text: p.ref.String() + ": " + text, err: err}
}

// round leads one question from host to host until one answers.
//
//	host 1 ──fails──▶ host 2 ──fails──▶ … ──▶ wait ──▶ host 1 …
//
// A host whose failure is final is not asked again; one that may answer later is, after the others. One that
// has just made this pull wait for nothing is asked last: a mirror that is down costs its timeout once, and
// not once for each layer.
type round struct {
	p        *Repository
	left     []*endpoint
	next     int
	retries  int                     // how many times all were asked again
	until    map[*endpoint]time.Time // what Retry-After asks for
	failures map[*endpoint]*failure  // the latest
}

// round begins with the hosts that may be asked.
func (p *Repository) round(may func(*endpoint) bool) (*round, error) {
	r := &round{p: p, until: make(map[*endpoint]time.Time), failures: make(map[*endpoint]*failure)}
	var ailing []*endpoint
	for _, e := range p.endpoints {
		switch {
		case !may(e):
		case e.ailing.Load():
			ailing = append(ailing, e)
		default:
			r.left = append(r.left, e)
		}
	}
	r.left = append(r.left, ailing...)
	if len(r.left) == 0 {
		return nil, fmt.Errorf("%w: no host of the registry's hosts.toml has the capability", ErrConfig)
	}
	return r, nil
}

// host is who to ask now, after waiting for as long as that takes.
func (r *round) host(ctx context.Context) (*endpoint, error) {
	if r.next == len(r.left) {
		if len(r.left) == 0 || r.retries >= r.most() {
			return nil, r.err()
		}
		r.next = 0
		if err := r.p.client.sleep(ctx, r.p.client.backoff(r.retries)); err != nil {
			return nil, err
		}
		r.retries++
	}
	e := r.left[r.next]
	if wait := r.until[e].Sub(r.p.client.now()); wait > 0 {
		if err := r.p.client.sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// most is how many retries there may be: fewer where there has never been anybody.
func (r *round) most() int {
	if r.p.reached.Load() {
		return r.p.client.options.Retries
	}
	for _, e := range r.left {
		if f := r.failures[e]; f == nil || !f.unreached {
			return r.p.client.options.Retries
		}
	}
	return min(r.p.client.options.Retries, unreachedRetries)
}

// failed takes what the host that was asked failed with, and goes on to the next. It returns an error
// that is no failure of a host's, which ends the question.
func (r *round) failed(ctx context.Context, e *endpoint, err error) error {
	f := asFailure(err)
	if f == nil {
		return err
	}
	r.failures[e] = f
	if f.ails() {
		e.ailing.Store(true)
	}
	if f.after > maxWait {
		f.temporary = false
		f.cause = e.told(fmt.Sprintf("%s; it asks to be left alone for %s", f.cause, f.after.Round(time.Second)), f.cause)
	}
	if !f.temporary {
		r.left = append(r.left[:r.next:r.next], r.left[r.next+1:]...)
	} else {
		r.until[e] = r.p.client.now().Add(f.after)
		r.next++
	}
	if len(r.left) > 0 && (r.next < len(r.left) || r.retries < r.most()) {
		klog.FromContext(ctx).Info("A registry's host failed; asking on", "image", r.p.ref.String(), "host", e.host, "reason", f.Error())
	}
	return nil
}

// progress says that the host that is asked now is worth its retries again.
func (r *round) progress() { r.retries = 0 }

// err is why nobody answered. What it is, is what the registry itself said, or the host nearest to it;
// the others are told of.
func (r *round) err() error {
	var main *failure
	var others []string
	for _, e := range r.p.endpoints {
		if f := r.failures[e]; f != nil {
			if main != nil {
				others = append(others, main.Error())
			}
			main = f
		}
	}
	if main == nil {
		panic("registry: a question failed that nobody was asked")
	}
	if len(others) == 0 {
		return main
	}
	return fmt.Errorf("%w (before that: %s)", main, strings.Join(others, "; "))
}

// backoff is how long to wait before the n-th retry.
func (c *Client) backoff(n int) time.Duration {
	d := min(c.options.Backoff<<min(n, 16), maxBackoff)
	// Between half of it and one and a half, so that the nodes of a cluster do not come all at once.
	return d/2 + rand.N(d+1)
}
