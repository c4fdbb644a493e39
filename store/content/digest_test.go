// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package content_test

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/berth-cri/berth/store/content"
)

func TestParse(t *testing.T) {
	hex64 := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct {
		in string
		ok bool
	}{
		{"sha256:" + hex64, true},
		{"sha512:" + hex64 + hex64, true},
		{"", false},
		{"sha256", false},
		{"sha256:", false},
		{":" + hex64, false},
		{hex64, false},
		{"sha256:" + hex64[1:], false},
		{"sha256:" + hex64 + "0", false},
		{"sha256:" + hex64 + hex64, false},
		{"sha512:" + hex64, false},
		{"sha256:" + strings.ToUpper(hex64), false},
		{"SHA256:" + hex64, false},
		{"sha384:" + hex64 + hex64[:32], false},
		{"sha256:" + hex64[:63] + "g", false},
		{"sha256:" + hex64[:61] + "/..", false},
		{"sha256:" + hex64[:63] + "\n", false},
		{" sha256:" + hex64, false},
		{"sha256::" + hex64[1:], false},
		{"sha256+b64:" + hex64, false},
	} {
		d, err := content.Parse(c.in)
		if c.ok != (err == nil) {
			t.Errorf("%q: %v", c.in, err)
		}
		if err != nil && !errors.Is(err, content.ErrBadDigest) {
			t.Errorf("%q: %v is no ErrBadDigest", c.in, err)
		}
		if c.ok && (d.Algorithm()+":"+d.Hex() != c.in || d.String() != c.in) {
			t.Errorf("%q: parts %q and %q", c.in, d.Algorithm(), d.Hex())
		}
	}
	_, err := content.Parse("sha256:" + strings.Repeat("x", 1<<20))
	if len(err.Error()) > 1000 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

func TestFromBytes(t *testing.T) {
	// FIPS 180-2, appendix B.1.
	const want = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	if got := content.FromBytes([]byte("abc")); got != want {
		t.Errorf("got %s", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
	f.Add("sha512:")
	f.Add("sha256:../..")
	f.Add("\x00:")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := content.Parse(s)
		if err != nil {
			return
		}
		if raw, err := hex.DecodeString(d.Hex()); err != nil || len(raw) != d.NewHash().Size() {
			t.Errorf("%q was accepted: %v", s, err)
		}
		if strings.ContainsAny(s, "/\\. \x00") || strings.ToLower(s) != s {
			t.Errorf("%q was accepted", s)
		}
	})
}
