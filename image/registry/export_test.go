// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"net/http"
	"time"
)

// SetClock gives a client another clock, for the repositories that it prepares from now on.
func (c *Client) SetClock(now func() time.Time) { c.now = now }

// SetSleep gives a client another way to wait.
func (c *Client) SetSleep(sleep func(context.Context, time.Duration) error) { c.sleep = sleep }

// Challenge is what ParseChallenges returns.
type Challenge struct {
	Scheme string
	Params map[string]string
}

// ParseChallenges is parseChallenges.
func ParseChallenges(h http.Header) []Challenge {
	var out []Challenge
	for _, c := range parseChallenges(h) {
		out = append(out, Challenge{c.scheme, c.params})
	}
	return out
}

// CheckDocument is parseDocument without what it finds.
func CheckDocument(mediaType string, raw []byte) error {
	_, err := parseDocument(mediaType, raw)
	return err
}

// Choices is Platform.choices.
func (p Platform) Choices() []Platform { return p.choices() }

// Host is a host of a hosts.toml, printed.
type Host struct {
	URL                   string
	Pull, Resolve, Origin bool
	PlainFallback         bool
	CA                    []string
	Client                [][2]string
	SkipVerify            string // "", "true", "false"
	Header                http.Header
	Dial                  time.Duration
}

func show(hosts []hostConfig) []Host {
	var out []Host
	for _, h := range hosts {
		skip := ""
		if h.skipVerify != nil {
			skip = map[bool]string{true: "true", false: "false"}[*h.skipVerify]
		}
		url := ""
		if h.host != "" {
			url = h.scheme + "://" + h.host + h.path
		}
		out = append(out, Host{
			URL: url, Pull: h.pull, Resolve: h.resolve, Origin: h.origin, PlainFallback: h.plainFallback,
			CA: h.ca, Client: h.client, SkipVerify: skip, Header: h.header, Dial: h.dial,
		})
	}
	return out
}

// ParseHosts is parseHosts.
func ParseHosts(file string, b []byte) ([]Host, error) {
	hosts, err := parseHosts(file, b)
	return show(hosts), err
}

// Hosts are those that a repository asks.
func (p *Repository) Hosts() []Host {
	var hosts []hostConfig
	for _, e := range p.endpoints {
		hosts = append(hosts, e.hostConfig)
	}
	return show(hosts)
}

// Pools is how many configurations have connections.
func (c *Client) Pools() int {
	c.pools.mu.Lock()
	defer c.pools.mu.Unlock()
	return len(c.pools.byKey)
}
