// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

var (
	// ErrNotFound says that the registry does not have it: no such repository, tag or blob, or none for
	// this platform.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized says that the registry wants credentials, or others than those that it was given.
	ErrUnauthorized = errors.New("not authorized")
	// ErrUnavailable says that the registry could not be asked, or could not answer: no such host, no
	// connection, no trust in its certificate, 429, 5xx, silence. To ask again later may help. In the
	// CRI it is RegistryUnavailable.
	ErrUnavailable = errors.New("registry is unavailable")
	// ErrUnsupported refuses what is no image of today: a Docker schema 1 manifest, an artifact, an
	// encrypted layer.
	ErrUnsupported = errors.New("unsupported")
	// ErrTooLarge refuses a manifest, a configuration or an answer beyond its bound, and an index that
	// nests too deep.
	ErrTooLarge = errors.New("too large")
	// ErrMalformed refuses what is not as the specification says.
	ErrMalformed = errors.New("malformed")
	// ErrConfig says that a hosts.toml, or a certificate beside it, cannot be used.
	ErrConfig = errors.New("bad registry configuration")
	// ErrBadAuth says that the credentials of a request have no meaning.
	ErrBadAuth = errors.New("bad credentials")
)

// failure is why one host did not give what it was asked for.
type failure struct {
	host  string
	class error // a sentinel
	cause error // says more; may be nil

	temporary bool          // the same host may answer later
	unreached bool          // there was no connection
	status    int           // 0: there was no answer
	after     time.Duration // for how long the host asked to be left alone
}

func (f *failure) Error() string {
	if f.cause == nil {
		return f.host + ": " + f.class.Error()
	}
	return fmt.Sprintf("%s: %s: %s", f.host, f.class, f.cause)
}

func (f *failure) Unwrap() []error {
	if f.cause == nil {
		return []error{f.class}
	}
	return []error{f.class, f.cause}
}

// ails reports whether the host as such is in a bad state, and not one connection to it.
func (f *failure) ails() bool {
	timeout, ok := errors.AsType[net.Error](f.cause)
	return f.temporary && (f.unreached || f.status != 0 || errors.Is(f.cause, errStalled) || ok && timeout.Timeout())
}

// asFailure finds the failure in an error, or nil.
func asFailure(err error) *failure {
	f, _ := errors.AsType[*failure](err)
	return f
}

// The length of what is repeated of others' words, in bytes.
const (
	maxQuote = 300
	maxCause = 1000
)

// clean makes a foreign name fit for a line of a log.
func clean(s string) string { return cleanTo(s, maxQuote) }

// cleanTo makes foreign text fit for a line of a log: printable, one line, not long.
func cleanTo(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return ' '
		default:
			return r
		}
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= most {
		return s
	}
	cut := most
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}
