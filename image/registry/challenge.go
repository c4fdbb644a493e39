// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"net/http"
	"strings"
)

// challenge is one way in which a host wants a client to identify itself (RFC 9110, section 11).
type challenge struct {
	scheme string            // lower case: "bearer"
	params map[string]string // names in lower case
}

// maxChallenges bounds what is looked at; a registry has one or two.
const maxChallenges = 16

// parseChallenges reads WWW-Authenticate, of which there may be several, with several challenges each.
// What is not well formed is passed over.
func parseChallenges(h http.Header) []challenge {
	var out []challenge
	for _, line := range h.Values("WWW-Authenticate") {
		for line != "" && len(out) < maxChallenges {
			var c challenge
			if c, line = nextChallenge(line); c.scheme != "" {
				out = append(out, c)
			}
		}
	}
	return out
}

// nextChallenge reads one challenge, up to where the next one begins.
func nextChallenge(s string) (c challenge, rest string) {
	s = skipSeparators(s)
	scheme, s := cutToken(s)
	if scheme == "" {
		if s == "" {
			return challenge{}, ""
		}
		return challenge{}, s[1:] // a character that begins nothing
	}
	c = challenge{scheme: strings.ToLower(scheme), params: make(map[string]string)}
	for {
		s = skipSeparators(s)
		name, after := cutToken(s)
		if name == "" {
			return c, s
		}
		after = strings.TrimLeft(after, " \t")
		if !strings.HasPrefix(after, "=") {
			return c, s // the next challenge's scheme, or a token68, which nobody here reads
		}
		after = strings.TrimLeft(after[1:], " \t")
		var value string
		if strings.HasPrefix(after, `"`) {
			value, after = cutQuoted(after[1:])
		} else {
			value, after = cutToken(after)
		}
		if name = strings.ToLower(name); c.params[name] == "" {
			c.params[name] = value
		}
		s = after
	}
}

func skipSeparators(s string) string { return strings.TrimLeft(s, " \t,") }

// cutToken cuts off a token (RFC 9110, section 5.6.2).
func cutToken(s string) (token, rest string) {
	for i := range len(s) {
		if !isTokenByte(s[i]) {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

func isTokenByte(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// cutQuoted cuts off the rest of a quoted string. One without an end goes to the end.
func cutQuoted(s string) (value, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:]
		case '\\':
			if i++; i == len(s) {
				return b.String(), ""
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}
