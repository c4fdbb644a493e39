// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	"github.com/berth-cri/berth/image/ref"
)

// redacted is what a Secret looks like.
const redacted = "[redacted]"

// A Secret is a text that nobody but a registry is to see. However it is printed, marshalled or dumped,
// alone or as part of something, its text does not show. The zero Secret is empty.
type Secret struct {
	// A function: what prints or dumps values by reflection shows fields, and what pointers point to,
	// even where it may not call String, but never what a function holds.
	reveal func() string
}

// NewSecret hides a text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{reveal: func() string { return text }}
}

// text is what is hidden.
func (s Secret) text() string {
	if s.reveal == nil {
		return ""
	}
	return s.reveal()
}

// IsZero reports whether there is nothing to hide.
func (s Secret) IsZero() bool { return s.reveal == nil }

// String is "[redacted]", or empty if the secret is.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText is String, for JSON and its kin.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Auth is what a pull request carries to identify itself with: the fields of the CRI's AuthConfig. The
// zero Auth is nobody.
type Auth struct {
	Username string
	Password Secret
	// Encoded is base64 of "USERNAME:PASSWORD", for those who have no username of its own: the field
	// "auth".
	Encoded Secret
	// ServerAddress is the only host that the credentials are for, as a host or a URL. Empty: the
	// registry that the image's name begins with.
	ServerAddress string
	// IdentityToken is an OAuth2 refresh token, which the registry's token server changes into an access
	// token.
	IdentityToken Secret
	// RegistryToken is sent to the registry as it is, as a bearer token.
	RegistryToken Secret
}

// credentials are Auth, read.
type credentials struct {
	username string
	password Secret
	identity Secret
	token    Secret
}

func (c credentials) isZero() bool {
	return c.username == "" && c.password.IsZero() && c.identity.IsZero() && c.token.IsZero()
}

// basic is the value of an Authorization header, or the empty Secret.
func (c credentials) basic() Secret {
	if c.username == "" {
		return Secret{}
	}
	return NewSecret("Basic " + base64.StdEncoding.EncodeToString([]byte(c.username+":"+c.password.text())))
}

// read decodes what can be given in two ways. A username goes before "auth", as with the other runtimes.
func (a Auth) read() (credentials, error) {
	c := credentials{username: a.Username, password: a.Password, identity: a.IdentityToken, token: a.RegistryToken}
	if c.username == "" && !a.Encoded.IsZero() {
		decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(a.Encoded.text()))
		if err != nil {
			// The decoder's error would tell a byte of it.
			return credentials{}, fmt.Errorf("%w: auth is not base64", ErrBadAuth)
		}
		username, password, ok := strings.Cut(string(decoded), ":")
		if !ok || username == "" {
			return credentials{}, fmt.Errorf("%w: auth is not base64 of USERNAME:PASSWORD", ErrBadAuth)
		}
		c.username, c.password = username, NewSecret(strings.Trim(password, "\x00"))
	}
	if strings.ContainsAny(c.username, ":\x00\r\n") {
		return credentials{}, fmt.Errorf("%w: a username has no colons and no control characters", ErrBadAuth)
	}
	return c, nil
}

// server is the host that the credentials are for, or "" if that is left to the image's name.
func (a Auth) server() (string, error) {
	if a.ServerAddress == "" {
		return "", nil
	}
	address := a.ServerAddress
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		// Not the address itself: somebody may have written a password into it.
		return "", fmt.Errorf("%w: server_address is neither a host nor a URL", ErrBadAuth)
	}
	return canonicalHost(u.Scheme, u.Host), nil
}

// canonicalHost makes the spellings of one host equal: lower case, without the port that the scheme
// implies, and one name for Docker Hub's several.
func canonicalHost(scheme, host string) string {
	host = strings.ToLower(host)
	switch scheme {
	case schemeHTTPS:
		host = strings.TrimSuffix(host, ":443")
	case schemeHTTP:
		host = strings.TrimSuffix(host, ":80")
	}
	switch host {
	case "index.docker.io", hubHost:
		return hubName
	}
	return host
}

// Docker Hub is called by one name and found at another.
const (
	hubName = "docker.io"
	hubHost = "registry-1.docker.io"
)

// hostOf is where a registry is found.
func hostOf(r ref.Registry) string {
	if r == hubName {
		return hubHost
	}
	return string(r)
}
