// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-cri/berth/image/ref"
)

const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"

	hostsFile     = "hosts.toml"
	defaultFolder = "_default"

	// maxConfigFile bounds a hosts.toml, a certificate and a key.
	maxConfigFile = 1 << 20
)

// hostConfig is one host that may be asked for what a registry has.
type hostConfig struct {
	scheme string
	host   string // with its port, if one was given
	path   string // of the API: "/v2"

	pull    bool // may be asked by digest
	resolve bool // may be asked what a tag means, which nobody can verify

	ca         []string    // files
	client     [][2]string // files: certificate and key; the key "" if it is in the certificate's file
	skipVerify *bool       // nil: not said
	header     http.Header
	dial       time.Duration // 0: not said

	// origin: it is the registry itself and no mirror of it, so the registry's credentials are for it.
	origin bool
	// plainFallback: HTTPS is tried first, and HTTP where no TLS is spoken.
	plainFallback bool
}

// tls reports whether anything was said about TLS.
func (h *hostConfig) tls() bool { return len(h.ca) > 0 || len(h.client) > 0 || h.skipVerify != nil }

// loadHosts returns the hosts to ask for what a registry has, in order, the registry itself being the
// last. The first of the folders that knows the registry says, or has a default.
func loadHosts(roots []string, registry ref.Registry) ([]hostConfig, error) {
	hosts := []hostConfig{{}}
	folder, isDefault, err := findFolder(roots, string(registry))
	if err != nil {
		return nil, err
	}
	if folder != "" {
		if hosts, err = loadFolder(folder); err != nil {
			return nil, err
		}
	}
	last := &hosts[len(hosts)-1]
	switch {
	case last.host == "": // no server was named
		itself(last, registry)
	case !isDefault:
		last.origin = true
	}
	for i := range hosts {
		h := &hosts[i]
		if h.scheme == schemeHTTP && h.tls() && portOf(h.host) != "80" {
			// Whoever configures TLS means it, whatever the URL says.
			h.scheme, h.plainFallback = schemeHTTPS, true
		}
		if canonicalHost(h.scheme, h.host) == canonicalHost(schemeHTTPS, hostOf(registry)) {
			h.origin = true
		}
	}
	return hosts, nil
}

// itself fills in the registry as its own host.
func itself(h *hostConfig, registry ref.Registry) {
	h.scheme, h.host, h.path = schemeHTTPS, hostOf(registry), "/v2"
	h.pull, h.resolve, h.origin = true, true, true
	if !isLoopback(h.host) {
		return
	}
	// On this machine. A port that says nothing may be anything: TLS is tried first, then plain HTTP. A
	// certificate is not verified unless something was said about that.
	port := portOf(h.host)
	if port != "" && port != "443" {
		h.scheme = schemeHTTP
	}
	if port != "80" && h.skipVerify == nil {
		skip := true
		h.skipVerify = &skip
	}
}

// findFolder returns the folder for a registry, "" if there is none, and whether it is a default.
func findFolder(roots []string, registry string) (folder string, isDefault bool, err error) {
	names := []string{registry, defaultFolder}
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		// Not every file system has colons in names.
		names = append([]string{registry[:i] + "_" + registry[i+1:] + "_"}, names...)
	}
	for _, root := range roots {
		for _, name := range names {
			folder := filepath.Join(root, name)
			switch _, err := os.Stat(folder); {
			case err == nil:
				return folder, name == defaultFolder, nil
			case !errors.Is(err, fs.ErrNotExist):
				return "", false, fmt.Errorf("%w: %w", ErrConfig, err)
			}
		}
	}
	return "", false, nil
}

// loadFolder reads hosts.toml or, where there is none or an empty one, certificates as Docker lays them
// out. There is at least one host; the last one's name is empty where no server is named.
func loadFolder(folder string) ([]hostConfig, error) {
	file := filepath.Join(folder, hostsFile)
	b, err := readConfig(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0:
		return loadCertificates(folder)
	case err != nil:
		return nil, err
	}
	return parseHosts(file, b)
}

// loadCertificates reads a folder as of /etc/docker/certs.d: X.crt is a certificate authority, X.cert a
// client's certificate, X.key its key.
func loadCertificates(folder string) ([]hostConfig, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	var h hostConfig
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		path := filepath.Join(folder, e.Name())
		switch filepath.Ext(e.Name()) {
		case ".crt":
			h.ca = append(h.ca, path)
		case ".cert":
			key := strings.TrimSuffix(path, ".cert") + ".key"
			switch _, err := os.Stat(key); {
			case errors.Is(err, fs.ErrNotExist):
				key = ""
			case err != nil:
				return nil, fmt.Errorf("%w: %w", ErrConfig, err)
			}
			h.client = append(h.client, [2]string{path, key})
		}
	}
	return []hostConfig{h}, nil
}

// readConfig reads a file of the configuration.
func readConfig(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfigFile {
		return nil, fmt.Errorf("%w: %s: is to be a file of at most %d bytes", ErrConfig, path, maxConfigFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return b, nil
}

// portOf is the port that a host names, "" if it names none.
func portOf(host string) string {
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		return ""
	}
	return port
}

// isLoopback reports whether a host is this machine by its name: "localhost", 127.0.0.0/8, ::1. Nobody
// is asked.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
