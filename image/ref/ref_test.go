// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ref_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berth-cri/berth/image/ref"
)

var (
	hex256 = strings.Repeat("0123456789abcdef", 4)
	hex512 = strings.Repeat("0123456789abcdef", 8)
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in         string
		registry   ref.Registry
		repository ref.Repository
		tag        ref.Tag
		digest     digest.Digest
		familiar   string
	}{
		{"busybox", "docker.io", "library/busybox", "latest", "", "busybox:latest"},
		{"busybox:1.36", "docker.io", "library/busybox", "1.36", "", "busybox:1.36"},
		{"team/app", "docker.io", "team/app", "latest", "", "team/app:latest"},
		{"a/b/c", "docker.io", "a/b/c", "latest", "", "a/b/c:latest"},
		{"docker.io/busybox", "docker.io", "library/busybox", "latest", "", "busybox:latest"},
		{"index.docker.io/busybox", "docker.io", "library/busybox", "latest", "", "busybox:latest"},
		{"docker.io/library/busybox:latest", "docker.io", "library/busybox", "latest", "", "busybox:latest"},
		{"library/busybox", "docker.io", "library/busybox", "latest", "", "busybox:latest"},
		{"localhost/app", "localhost", "app", "latest", "", "localhost/app:latest"},
		{"localhost:5000/app", "localhost:5000", "app", "latest", "", "localhost:5000/app:latest"},
		{"registry:5000/app:v1", "registry:5000", "app", "v1", "", "registry:5000/app:v1"},
		{"app:5000", "docker.io", "library/app", "5000", "", "app:5000"},
		{"Registry.Example/app", "Registry.Example", "app", "latest", "", "Registry.Example/app:latest"},
		{"127.0.0.1:5000/a/b", "127.0.0.1:5000", "a/b", "latest", "", "127.0.0.1:5000/a/b:latest"},
		{"[::1]:5000/app", "[::1]:5000", "app", "latest", "", "[::1]:5000/app:latest"},
		{"busybox@sha256:" + hex256, "docker.io", "library/busybox", "", digest.Digest("sha256:" + hex256), "busybox@sha256:" + hex256},
		{"r.example/a@sha512:" + hex512, "r.example", "a", "", digest.Digest("sha512:" + hex512), "r.example/a@sha512:" + hex512},
		{"busybox:1@sha256:" + hex256, "docker.io", "library/busybox", "1", digest.Digest("sha256:" + hex256), "busybox:1@sha256:" + hex256},
		{"sha256:abc", "docker.io", "library/sha256", "abc", "", "sha256:abc"}, // as everywhere
		{"a:" + strings.Repeat("t", 128), "docker.io", "library/a", ref.Tag(strings.Repeat("t", 128)), "", "a:" + strings.Repeat("t", 128)},
	} {
		t.Run(c.in, func(t *testing.T) {
			r, err := ref.Parse(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if r.Registry() != c.registry || r.Repository() != c.repository || r.Tag() != c.tag || r.Digest() != c.digest {
				t.Errorf("%q, %q, %q, %q", r.Registry(), r.Repository(), r.Tag(), r.Digest())
			}
			if got := r.Familiar(); got != c.familiar {
				t.Errorf("familiar %q, want %q", got, c.familiar)
			}
			if want := string(c.registry) + "/" + string(c.repository); r.Name() != want {
				t.Errorf("name %q, want %q", r.Name(), want)
			}
			for _, form := range []string{r.String(), r.Familiar()} {
				if again, err := ref.Parse(form); err != nil || again != r {
					t.Errorf("%q parses to %v, %v", form, again, err)
				}
			}
		})
	}
}

func TestBadReferences(t *testing.T) {
	for name, in := range map[string]string{
		"empty":            "",
		"space":            "busy box",
		"upper case":       "Team/App",
		"scheme":           "https://registry.example/app",
		"no name":          ":latest",
		"empty tag":        "busybox:",
		"empty digest":     "busybox@",
		"trailing slash":   "registry.example/",
		"dots":             "registry.example/../app",
		"id":               "sha256:" + hex256,
		"hex of an id":     hex256,
		"short digest":     "busybox@sha256:abcd",
		"upper-case hex":   "busybox@sha256:" + strings.ToUpper(hex256),
		"md5":              "busybox@md5:" + hex256[:32],
		"sha384":           "busybox@sha384:" + hex512[:96],
		"unknown":          "busybox@foo:" + hex256,
		"two tags":         "busybox:1:2",
		"two digests":      "busybox@sha256:" + hex256 + "@sha256:" + hex256,
		"tag after digest": "busybox@sha256:" + hex256 + ":1",
		"long tag":         "busybox:" + strings.Repeat("t", 129),
		"long name":        "r.example/" + strings.Repeat("a", 300),
		"very long":        strings.Repeat("a", 1<<20),
		"newline":          "busybox\n",
		"nul":              "busy\x00box",
		"query":            "r.example/app?ns=other",
		"percent":          "r.example/app%2e%2e",
	} {
		t.Run(name, func(t *testing.T) {
			r, err := ref.Parse(in)
			if !errors.Is(err, ref.ErrBadReference) || !r.IsZero() {
				t.Fatalf("%v, %v", r, err)
			}
			if len(err.Error()) > 2000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestDigestAndTag(t *testing.T) {
	r, err := ref.Parse("r.example/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	d := digest.Digest("sha256:" + hex256)
	byDigest, err := r.WithDigest(d)
	if err != nil || byDigest.String() != "r.example/app@"+d.String() {
		t.Errorf("%v, %v", byDigest, err)
	}
	if again, ok := byDigest.Tagged(); ok || !again.IsZero() {
		t.Errorf("tagged: %v", again)
	}
	both, err := ref.Parse("r.example/app:v1@" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	if tagged, ok := both.Tagged(); !ok || tagged != r {
		t.Errorf("tagged: %v", tagged)
	}
	for _, bad := range []digest.Digest{"", "sha256:", "sha384:" + digest.Digest(hex512[:96]), "sha256:../../x"} {
		if _, err := r.WithDigest(bad); !errors.Is(err, ref.ErrBadReference) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestZero(t *testing.T) {
	var r ref.Ref
	if !r.IsZero() || r.String() != "" || r.Familiar() != "" || r.Name() != "" {
		t.Errorf("%q, %q, %q", r.String(), r.Familiar(), r.Name())
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"busybox", "a/b:c", "localhost:5000/a@sha256:" + hex256, "a:b@sha512:" + hex512, "[::1]:5/a",
		"index.docker.io/library/a", "sha256:" + hex256, "A/b", "a//b", "docker.io/docker.io/a", "library/docker.io/a",
		"docker.io/library/a.b/c", "xn--n3h.example/a", "docker.io/localhost/a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ref.Parse(s)
		if err != nil {
			if !errors.Is(err, ref.ErrBadReference) || !r.IsZero() {
				t.Fatalf("%v, %v", r, err)
			}
			return
		}
		if r.Tag() == "" && r.Digest() == "" {
			t.Errorf("%q has neither tag nor digest", s)
		}
		// The parts become parts of URLs and of paths.
		if strings.ContainsAny(r.String(), "?#%\\ \n\x00") || strings.Contains("/"+r.Name()+"/", "/../") || strings.Contains(r.Name(), "//") {
			t.Errorf("%q becomes %q", s, r)
		}
		for _, form := range []string{r.String(), r.Familiar()} {
			if again, err := ref.Parse(form); err != nil || again != r {
				t.Errorf("%q → %q → %q, %v", s, form, again, err)
			}
		}
	})
}
