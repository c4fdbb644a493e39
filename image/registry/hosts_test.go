// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/berth-cri/berth/image/ref"
	"github.com/berth-cri/berth/image/registry"
)

func TestHostsFile(t *testing.T) {
	const all = true
	plain := func(url string) registry.Host { return registry.Host{URL: url, Pull: all, Resolve: all} }
	for _, c := range []struct {
		name, text string
		want       []registry.Host // the server is the last
	}{
		{"nothing", "# a comment\n", []registry.Host{plain("")}},
		{"server", `server = "https://a.example"`, []registry.Host{plain("https://a.example/v2")}},
		{"server without scheme", `server = "a.example:5000"`, []registry.Host{plain("https://a.example:5000/v2")}},
		{"server with a path", `server = "https://a.example/x/"`, []registry.Host{plain("https://a.example/x/v2")}},
		{"server with the whole path", `server = "https://a.example/x/v2/"`, []registry.Host{plain("https://a.example/x/v2")}},
		{"path as it is", "server = 'https://a.example/x/'\noverride_path = true", []registry.Host{plain("https://a.example/x")}},
		{"no path as it is", "server = 'https://a.example'\noverride_path = true", []registry.Host{plain("https://a.example")}},
		{
			"order", "server = 'a'\n[host.'https://z']\n[host.'http://b:80']\n[host.'https://z'.header]\nq='1'\n[host.c]\nskip_verify=true",
			[]registry.Host{
				{URL: "https://z/v2", Pull: all, Resolve: all, Header: http.Header{"Q": {"1"}}},
				plain("http://b:80/v2"),
				{URL: "https://c/v2", Pull: all, Resolve: all, SkipVerify: "true"},
				plain("https://a/v2"),
			},
		},
		{
			"a header before its host", "[host.a.header]\nq='1'\n[host.b]\n",
			[]registry.Host{{URL: "https://a/v2", Pull: all, Resolve: all, Header: http.Header{"Q": {"1"}}}, plain("https://b/v2"), plain("")},
		},
		{"dotted keys", "host.a.skip_verify = false\nhost.b.skip_verify = true", []registry.Host{
			{URL: "https://a/v2", Pull: all, Resolve: all, SkipVerify: "false"}, {URL: "https://b/v2", Pull: all, Resolve: all, SkipVerify: "true"}, plain(""),
		}},
		{
			"capabilities", "[host.a]\ncapabilities=['pull']\n[host.b]\ncapabilities=['Resolve','push','referrers']\n[host.c]\ncapabilities=[]",
			[]registry.Host{{URL: "https://a/v2", Pull: true}, {URL: "https://b/v2", Resolve: true}, plain("https://c/v2"), plain("")},
		},
		{
			"certificates", "ca='x.crt'\nclient='/abs/c.pem'\n[host.a]\nca=['/abs/1','2']\nclient=['a.pem','b.pem']\n[host.b]\nclient=[['a.cert','a.key'],['/b.cert','/b.key']]",
			[]registry.Host{
				{URL: "https://a/v2", Pull: all, Resolve: all, CA: []string{"/abs/1", "/etc/h/2"}, Client: [][2]string{{"/etc/h/a.pem", ""}, {"/etc/h/b.pem", ""}}},
				{URL: "https://b/v2", Pull: all, Resolve: all, Client: [][2]string{{"/etc/h/a.cert", "/etc/h/a.key"}, {"/b.cert", "/b.key"}}},
				{Pull: all, Resolve: all, CA: []string{"/etc/h/x.crt"}, Client: [][2]string{{"/abs/c.pem", ""}}},
			},
		},
		{
			"header and time", "dial_timeout='3s'\n[header]\nx-a='b'\nX-C=['d','e']",
			[]registry.Host{{Pull: all, Resolve: all, Dial: 3 * time.Second, Header: http.Header{"X-A": {"b"}, "X-C": {"d", "e"}}}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := registry.ParseHosts("/etc/h/hosts.toml", []byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestHostsFileErrors(t *testing.T) {
	for name, c := range map[string]struct{ text, where string }{
		"no TOML":             {"server = 'a'\nserver", "hosts.toml:2: "},
		"twice":               {"server = 'a'\nserver = 'b'", "hosts.toml:2: "},
		"unknown key":         {"server = 'a'\n\nsrever = 'b'", "hosts.toml:3: srever: unknown key"},
		"unknown key of host": {"[host.'https://a']\npull = true", `hosts.toml:2: host."https://a".pull: unknown key`},
		"unknown table":       {"[hosts.a]", "hosts.toml:1: hosts"},
		"wrong type":          {"[host.a]\nskip_verify = 'yes'", "hosts.toml:2: host.a.skip_verify: "},
		"server of a type":    {"server = 3", "hosts.toml:1: server: "},
		"capability":          {"[host.a]\n\ncapabilities = ['pull', 'fly']", `hosts.toml:3: host.a.capabilities: "fly" is none of pull, resolve, push, referrers`},
		"ca":                  {"ca = 3", "hosts.toml:1: ca: "},
		"ca of a list":        {"ca = [['a']]", "hosts.toml:1: ca: "},
		"client":              {"\nclient = true", "hosts.toml:2: client: "},
		"client of three":     {"client = [['a','b','c']]", "hosts.toml:1: client: "},
		"client of one":       {"client = [['a']]", "hosts.toml:1: client: "},
		"header":              {"[header]\nx = 3", "hosts.toml:2: header.x: "},
		"header of nothing":   {"[header]\nx = []", "hosts.toml:2: header.x: "},
		"name of a header":    {"[header]\n'x y' = 'a'", `hosts.toml:2: header."x y": `},
		"newline in a header": {"[header]\nx = \"hunter2\\nb\"", "hosts.toml:2: header.x: "},
		"time":                {"dial_timeout = '3'", "hosts.toml:1: dial_timeout: "},
		"negative time":       {"dial_timeout = '-3s'", "hosts.toml:1: dial_timeout: "},
		"scheme":              {"server = 'ftp://a'", "hosts.toml:1: server: "},
		"password":            {"server = 'https://u:hunter2@a'", "hosts.toml:1: server: "},
		"query":               {"[host.b]\n[host.'https://a/?hunter=2']", `hosts.toml:2: host."https://a/?hunter=2": `},
		"no host":             {"[host.'https://']", "hosts.toml:1: host."},
		"empty host":          {"[host.'']", "hosts.toml:1: host."},
		"hosts in a line":     {"host = {a = {}, b = {}}", "hosts.toml:1: host: write each host as a table"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := registry.ParseHosts("/etc/h/hosts.toml", []byte(c.text))
			wantErr(t, err, registry.ErrConfig)
			wantText(t, err, "/etc/h/"+c.where)
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v", err)
			}
		})
	}
}

func FuzzHostsFile(f *testing.F) {
	for _, s := range []string{
		"server = 'a'\n[host.'https://z']\n[host.'http://b:80']\n[host.'https://z'.header]\nq='1'\n", "host.a.ca = [1]", "[[host.a]]", "[host]\na={}", "client=[['a','b'],'c']",
		"host = {a={capabilities=['pull']}}", "[host.\"\\u0000\"]", "dial_timeout='1ns'", "[header]\na=['b']\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		hosts, err := registry.ParseHosts("/etc/h/hosts.toml", b)
		if err != nil {
			if !errors.Is(err, registry.ErrConfig) {
				t.Errorf("error is %v", err)
			}
			return
		}
		for i, h := range hosts {
			if h.URL == "" && i < len(hosts)-1 || h.URL != "" && !strings.HasPrefix(h.URL, "http") || h.Dial < 0 {
				t.Errorf("%+v", h)
			}
		}
	})
}

// TestFolders finds the folder for a registry, and says who the registry itself is.
func TestFolders(t *testing.T) {
	type files map[string]string // path below a folder of roots → contents
	itself := func(url string) registry.Host {
		return registry.Host{URL: url, Pull: true, Resolve: true, Origin: true}
	}
	local := itself("https://127.0.0.1:5000/v2")
	local.PlainFallback, local.SkipVerify = true, "true"
	for _, c := range []struct {
		name, image string
		files       files
		want        []registry.Host
	}{
		{"none", "r.example/a", nil, []registry.Host{itself("https://r.example/v2")}},
		{"none, with a port", "r.example:5000/a", nil, []registry.Host{itself("https://r.example:5000/v2")}},
		{"none, Docker Hub", "a", nil, []registry.Host{itself("https://registry-1.docker.io/v2")}},
		{"none, this machine", "127.0.0.1:5000/a", nil, []registry.Host{local}},
		{"none, this machine, port 80", "localhost:80/a", nil, []registry.Host{itself("http://localhost:80/v2")}},
		{"none, this machine, no port", "localhost/a", nil, []registry.Host{{URL: "https://localhost/v2", Pull: true, Resolve: true, Origin: true, SkipVerify: "true"}}},
		{"none, this machine, IPv6", "[::1]:5000/a", nil, []registry.Host{{URL: "https://[::1]:5000/v2", Pull: true, Resolve: true, Origin: true, SkipVerify: "true", PlainFallback: true}}},
		{"its own", "r.example/a", files{"1/r.example/hosts.toml": "[host.m]"}, []registry.Host{{URL: "https://m/v2", Pull: true, Resolve: true}, itself("https://r.example/v2")}},
		{"with a port", "r.example:5000/a", files{"1/r.example:5000/hosts.toml": "[host.m]"}, []registry.Host{{URL: "https://m/v2", Pull: true, Resolve: true}, itself("https://r.example:5000/v2")}},
		{
			"with a port, spelled for all file systems", "r.example:5000/a",
			files{"1/r.example_5000_/hosts.toml": "server='http://s:80'", "1/r.example:5000/hosts.toml": "x"},
			[]registry.Host{itself("http://s:80/v2")},
		},
		{"default", "r.example/a", files{"1/_default/hosts.toml": "[host.m]", "1/other/hosts.toml": "x"}, []registry.Host{{URL: "https://m/v2", Pull: true, Resolve: true}, itself("https://r.example/v2")}},
		{"its own goes before the default", "r.example/a", files{"1/_default/hosts.toml": "x", "1/r.example/hosts.toml": ""}, []registry.Host{itself("https://r.example/v2")}},
		{"the first folder goes before the second", "r.example/a", files{"2/r.example/hosts.toml": "x", "1/_default/hosts.toml": "#"}, []registry.Host{itself("https://r.example/v2")}},
		{"the second folder", "r.example/a", files{"2/r.example/hosts.toml": "server='s'", "1/other/hosts.toml": "x"}, []registry.Host{itself("https://s/v2")}},
		{"a server of the default is a mirror", "r.example/a", files{"1/_default/hosts.toml": "server='s'"}, []registry.Host{{URL: "https://s/v2", Pull: true, Resolve: true}}},
		{"a server of the default that is the registry", "r.example/a", files{"1/_default/hosts.toml": "server='r.example:443'"}, []registry.Host{itself("https://r.example:443/v2")}},
		{"a host that is the registry", "a", files{"1/docker.io/hosts.toml": "server='s'\n[host.'registry-1.docker.io']"}, []registry.Host{itself("https://registry-1.docker.io/v2"), itself("https://s/v2")}},
		{"plain HTTP", "r.example/a", files{"1/r.example/hosts.toml": "server='http://r.example:5000'"}, []registry.Host{itself("http://r.example:5000/v2")}},
		{"plain HTTP beside TLS", "r.example/a", files{"1/r.example/hosts.toml": "server='http://r.example:5000'\nskip_verify=false"}, []registry.Host{{URL: "https://r.example:5000/v2", Pull: true, Resolve: true, Origin: true, PlainFallback: true, SkipVerify: "false"}}},
		{"plain HTTP at port 80", "r.example/a", files{"1/r.example/hosts.toml": "server='http://r.example:80'\nskip_verify=false"}, []registry.Host{{URL: "http://r.example:80/v2", Pull: true, Resolve: true, Origin: true, SkipVerify: "false"}}},
		{"capabilities without a server", "r.example/a", files{"1/r.example/hosts.toml": "capabilities=['pull']"}, []registry.Host{itself("https://r.example/v2")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range c.files {
				write(t, filepath.Join(root, path), text)
			}
			o := registry.Options{ConfigPath: []string{filepath.Join(root, "1"), filepath.Join(root, "2")}}
			got := repository(t, newClient(t, o), c.image, registry.Auth{}).Hosts()
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
	t.Run("a broken file stops the pull", func(t *testing.T) {
		r, err := ref.Parse("r.example/a")
		if err != nil {
			t.Fatal(err)
		}
		for text, word := range map[string]string{"x": "hosts.toml:1: ", "ca='nope.crt'": "nope.crt", "client='nope.pem'": "nope.pem"} {
			root := hostsFolder(t, "r.example", text)
			_, err := newClient(t, registry.Options{ConfigPath: []string{root}}).Repository(r, registry.Auth{})
			wantErr(t, err, registry.ErrConfig)
			wantText(t, err, "r.example/a:latest: ", word)
		}
		root := t.TempDir()
		write(t, filepath.Join(root, "r.example", "bad.crt"), "no certificate")
		_, err = newClient(t, registry.Options{ConfigPath: []string{root}}).Repository(r, registry.Auth{})
		wantErr(t, err, registry.ErrConfig)
		wantText(t, err, "bad.crt", "PEM")
		big := hostsFolder(t, "r.example", strings.Repeat("#", 1<<20+1))
		_, err = newClient(t, registry.Options{ConfigPath: []string{big}}).Repository(r, registry.Auth{})
		wantErr(t, err, registry.ErrConfig)
	})
}

// TestCapabilities asks no host for what it may not be asked, and tells mirrors for whom they stand.
func TestCapabilities(t *testing.T) {
	origin, mirror := start(t, nil), start(t, nil)
	img := origin.image(t, "team/app", "v1", 100)
	mirror.image(t, "team/app", "v1", 100) // what the tag is not to mean
	put := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Query().Get("ns") != origin.host {
			t.Errorf("%s without its registry", r.URL)
		}
		next.ServeHTTP(w, r)
	}
	mirror.set(put)
	for _, b := range img.bytes {
		mirror.blob(t, "team/app", b)
	}
	root := hostsFolder(t, origin.host, fmt.Sprintf("server=%q\n[host.%q]\ncapabilities=['pull']\n", origin.URL, mirror.URL))
	p := repository(t, newClient(t, registry.Options{ConfigPath: []string{root}}), origin.host+"/team/app:v1", registry.Auth{})
	d, err := p.Resolve(t.Context())
	if err != nil || d != img.manifest {
		t.Fatalf("%+v, %v", d, err)
	}
	if n := len(mirror.asked()); n != 0 {
		t.Errorf("a mirror was asked %d times what a tag means", n)
	}
	for _, r := range origin.asked() {
		if r.URL.Query().Has("ns") {
			t.Errorf("%s", r.URL)
		}
	}
	if err := p.Fetch(t.Context(), img.layers[0], openStore(t), nil); err != nil {
		t.Fatal(err)
	}
	if n, k := len(mirror.asked()), len(origin.asked()); n != 1 || k != 0 {
		t.Errorf("the mirror was asked %d times, the registry %d times", n, k)
	}

	root = hostsFolder(t, origin.host, fmt.Sprintf("server=%q\ncapabilities=['pull']\n", origin.URL))
	_, err = repository(t, newClient(t, registry.Options{ConfigPath: []string{root}}), origin.host+"/team/app:v1", registry.Auth{}).Resolve(t.Context())
	wantErr(t, err, registry.ErrConfig)
	wantText(t, err, "capability")
}

// TestOverridePath asks at another root of the API.
func TestOverridePath(t *testing.T) {
	s := start(t, nil)
	s.image(t, "app", "v1", 100)
	s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		path, ok := strings.CutPrefix(r.URL.Path, "/proxy/docker")
		if !ok {
			w.WriteHeader(404)
			return
		}
		r.URL.Path = "/v2" + path
		next.ServeHTTP(w, r)
	})
	root := hostsFolder(t, "r.example", fmt.Sprintf("[host.%q]\noverride_path=true\n", s.URL+"/proxy/docker"))
	if err := pullAll(t, repository(t, newClient(t, registry.Options{ConfigPath: []string{root}}), "r.example/app:v1", registry.Auth{})); err != nil {
		t.Error(err)
	}
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key, a.pem, _ = a.issue(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue makes a certificate, by itself if there is no authority yet.
func (a *authority) issue(t *testing.T, template *x509.Certificate) (cert *x509.Certificate, key *ecdsa.PrivateKey, certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: "test"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return cert, key, encode("CERTIFICATE", der), encode("PRIVATE KEY", b)
}

// TestTLS pulls from registries with certificates of their own, with and without clients'.
func TestTLS(t *testing.T) {
	clients := newAuthority(t)
	_, _, clientCert, clientKey := clients.issue(t, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	s := startTLS(t, nil)
	mutual := startTLS(t, nil)
	s.image(t, "app", "v1", 100)
	mutual.image(t, "app", "v1", 100)
	pool := x509.NewCertPool()
	pool.AddCert(clients.cert)
	// From here on, for pulls only: what was pushed is there.
	mutual.TLS.ClientCAs = pool
	mutual.TLS.ClientAuth = tls.RequireAndVerifyClientCert
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))

	for _, c := range []struct {
		name  string
		of    *server
		files map[string]string // beside each other
		err   error
		words []string
	}{
		{"unknown authority", s, map[string]string{"hosts.toml": "skip_verify = false"}, registry.ErrUnavailable, []string{"certificate", "name its certificate authority as ca"}},
		{"ca", s, map[string]string{"hosts.toml": "ca = 'my.pem'", "my.pem": ca}, nil, nil},
		{"ca of two", s, map[string]string{"hosts.toml": "ca = ['other.pem', 'my.pem']", "my.pem": ca, "other.pem": clients.pem}, nil, nil},
		{"another ca", s, map[string]string{"hosts.toml": "ca = 'other.pem'\nskip_verify = false", "other.pem": clients.pem}, registry.ErrUnavailable, []string{"certificate"}},
		{"skip_verify", s, map[string]string{"hosts.toml": "skip_verify = true"}, nil, nil},
		{"certificates as Docker has them", s, map[string]string{"my.crt": ca}, nil, nil},
		{"client certificate missing", mutual, map[string]string{"hosts.toml": "skip_verify = true"}, registry.ErrUnavailable, []string{"client certificate", "hosts.toml"}},
		{"client certificate", mutual, map[string]string{"hosts.toml": "skip_verify = true\nclient = [['c.pem', 'k.pem']]", "c.pem": clientCert, "k.pem": clientKey}, nil, nil},
		{"client certificate in one file", mutual, map[string]string{"hosts.toml": "skip_verify = true\nclient = 'c.pem'", "c.pem": clientCert + clientKey}, nil, nil},
		{"client certificate as Docker has it", mutual, map[string]string{"my.crt": ca, "c.cert": clientCert, "c.key": clientKey}, nil, nil},
		{"client certificate as Docker has it, in one file", mutual, map[string]string{"my.crt": ca, "c.cert": clientCert + clientKey}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range c.files {
				if name == "hosts.toml" {
					text = fmt.Sprintf("server = %q\n", c.of.URL) + text
				}
				write(t, filepath.Join(root, c.of.host, name), text)
			}
			client := newClient(t, registry.Options{ConfigPath: []string{root}, Retries: -1})
			err := pullAll(t, repository(t, client, c.of.host+"/app:v1", registry.Auth{}))
			if !errors.Is(err, c.err) {
				t.Fatalf("error is %v, want %v", err, c.err)
			}
			wantText(t, err, c.words...)
		})
	}

	t.Run("key of another", func(t *testing.T) {
		root := t.TempDir()
		_, _, _, otherKey := clients.issue(t, &x509.Certificate{})
		write(t, filepath.Join(root, "r.example", "hosts.toml"), "client = [['c.pem', 'k.pem']]")
		write(t, filepath.Join(root, "r.example", "c.pem"), clientCert)
		write(t, filepath.Join(root, "r.example", "k.pem"), otherKey)
		r, err := ref.Parse("r.example/a")
		if err != nil {
			t.Fatal(err)
		}
		_, err = newClient(t, registry.Options{ConfigPath: []string{root}}).Repository(r, registry.Auth{})
		wantErr(t, err, registry.ErrConfig)
		wantText(t, err, "c.pem", "k.pem")
	})

	// A client certificate is for the host alone for which it is configured: where that redirects to another
	// it is not shown.
	t.Run("redirect", func(t *testing.T) {
		curious := startTLS(t, nil)
		curious.TLS.ClientAuth = tls.RequestClientCert
		img := mutual.image2(t, clientCert, clientKey)
		mutual.set(blobs(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, curious.URL+r.URL.Path, http.StatusFound)
		}))
		shown := 0
		curious.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			shown += len(r.TLS.PeerCertificates)
			_, _ = w.Write(img.bytes[img.layers[0].Digest])
		})
		root := t.TempDir()
		write(t, filepath.Join(root, mutual.host, "hosts.toml"), fmt.Sprintf("server = %q\nskip_verify = true\nclient = [['c.pem', 'k.pem']]", mutual.URL))
		write(t, filepath.Join(root, mutual.host, "c.pem"), clientCert)
		write(t, filepath.Join(root, mutual.host, "k.pem"), clientKey)
		p := repository(t, newClient(t, registry.Options{ConfigPath: []string{root}}), mutual.host+"/app:v1", registry.Auth{})
		if err := p.Fetch(t.Context(), img.layers[0], openStore(t), nil); err != nil {
			t.Fatal(err)
		}
		if shown != 0 || len(curious.asked()) != 1 {
			t.Errorf("%d certificates were shown", shown)
		}
	})
}

// image2 pushes an image to a registry that wants a client certificate.
func (s *server) image2(t *testing.T, cert, key string) pushed {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	transport := s.Client().Transport.(*http.Transport)
	transport.CloseIdleConnections()
	transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	return s.image(t, "app", "v2", 100)
}

// TestSpeaksPlainHTTP says what to do where TLS was expected.
func TestSpeaksPlainHTTP(t *testing.T) {
	s := start(t, nil)
	root := hostsFolder(t, s.host, fmt.Sprintf("server = 'https://%s'\n", s.host))
	_, err := repository(t, newClient(t, registry.Options{ConfigPath: []string{root}, Retries: -1}), s.host+"/app:v1", registry.Auth{}).Resolve(t.Context())
	wantErr(t, err, registry.ErrUnavailable)
	wantText(t, err, "plain HTTP", "http://")
}

// TestReadAnew changes hosts.toml, and a certificate that it names, between two pulls.
func TestReadAnew(t *testing.T) {
	s := startTLS(t, nil)
	s.image(t, "app", "v1", 100)
	root := hostsFolder(t, s.host, fmt.Sprintf("server = %q\nca = 'ca.pem'\nskip_verify = false", s.URL))
	file := filepath.Join(root, s.host, "ca.pem")
	good := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	client := newClient(t, registry.Options{ConfigPath: []string{root}, Retries: -1})
	pull := func() error { return pullAll(t, repository(t, client, s.host+"/app:v1", registry.Auth{})) }
	for range 2 {
		write(t, file, newAuthority(t).pem)
		wantErr(t, pull(), registry.ErrUnavailable)
		write(t, file, good)
		if err := pull(); err != nil {
			t.Error(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(root, s.host)); err != nil {
		t.Fatal(err)
	}
	if err := pull(); err != nil { // at a loopback address nothing is verified
		t.Error(err)
	}
}

// TestManyConfigurations keeps connections for a few configurations only.
func TestManyConfigurations(t *testing.T) {
	s := startTLS(t, nil)
	s.image(t, "app", "v1", 100)
	root := t.TempDir()
	client := newClient(t, registry.Options{ConfigPath: []string{root}})
	for i := range 40 {
		write(t, filepath.Join(root, s.host, "hosts.toml"), fmt.Sprintf("server = %q\nskip_verify = true\ndial_timeout = '%ds'", s.URL, i+1))
		if err := pullAll(t, repository(t, client, s.host+"/app:v1", registry.Auth{})); err != nil {
			t.Fatal(err)
		}
	}
	if n := client.Pools(); n != 16 {
		t.Errorf("%d pools", n)
	}
}
