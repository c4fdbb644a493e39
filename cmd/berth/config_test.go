// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// TestDefaultsAreWhole holds that the printed configuration has every key, so that none
// has a default that nobody can read.
func TestDefaultsAreWhole(t *testing.T) {
	c := new(config)
	if err := decode("defaults", []byte(defaults), c); err != nil {
		t.Fatal(err)
	}
	if err := c.check(); err != nil {
		t.Error(err)
	}
	var want, got map[string]any
	b, err := toml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := toml.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if err := toml.Unmarshal([]byte(defaults), &got); err != nil {
		t.Fatal(err)
	}
	compareKeys(t, "", want, got)
}

func compareKeys(t *testing.T, path string, want, got map[string]any) {
	t.Helper()
	for k, v := range want {
		if k == "handlers" {
			continue
		}
		g, ok := got[k]
		if !ok {
			t.Errorf("default.toml does not have %s%s", path, k)
			continue
		}
		if sub, ok := v.(map[string]any); ok {
			have, _ := g.(map[string]any)
			compareKeys(t, path+k+".", sub, have)
		}
	}
}

// TestConfigErrors holds that each error names file, line or key, and what is allowed.
func TestConfigErrors(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":    {"root = \"/x\"\n[cri]\nsokket = \"/s\"\n", `c.toml:3: unknown key "cri.sokket"`},
		"unknown table":  {"[crri]\nsocket = \"/s\"\n", `unknown key "crri`},
		"wrong type":     {"[image]\nmax_concurrent_downloads = \"three\"\n", "c.toml:2: image.max_concurrent_downloads"},
		"syntax":         {"root = \n", "c.toml:1"},
		"relative":       {"root = \"var\"\n", `root = "var": not an absolute`},
		"same":           {"root = \"/x\"\nstate = \"/x\"\n", "root and state are both"},
		"driver":         {"[cgroup]\ndriver = \"upstart\"\n", "must be auto, systemd or cgroupfs"},
		"format":         {"[log]\nformat = \"xml\"\n", "must be text or json"},
		"duration":       {"[registry]\nno_progress_timeout = \"fast\"\n", "no_progress_timeout"},
		"negative":       {"[registry]\nno_progress_timeout = \"-1s\"\n", "is negative"},
		"address":        {"[cri.streaming]\naddress = \"here\"\n", "not an IP address"},
		"port":           {"[cri.streaming]\nport = 70000\n", "must be 0 to 65535"},
		"line size":      {"[logs]\nmax_line_size = 0\n", "must be 1 to"},
		"downloads":      {"[image]\nmax_concurrent_downloads = 0\n", "must be 1 or more"},
		"preference":     {"[network]\nip_preference = \"ipx\"\n", "must be cni, ipv4 or ipv6"},
		"handler's kind": {"[handlers.kata]\nkind = \"oci\"\n", "handlers.kata.kind"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.toml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := loadConfig(path)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error = %v, want %q and the path", err, c.want)
			}
		})
	}
	if _, err := loadConfig(filepath.Join(t.TempDir(), "none.toml")); err == nil {
		t.Error("a file that was named and is not there was no error")
	}
}

// TestConfigOverrides holds that what a file does not say stays as it is.
func TestConfigOverrides(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte("[cri]\nsocket = \"/other.sock\"\n[handlers.plain]\nkind = \"builtin\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.CRI.Socket != "/other.sock" || c.Root != "/var/lib/berth" || c.CRI.Streaming.Address != "127.0.0.1" || len(c.Handlers) != 1 {
		t.Errorf("configuration %+v", c)
	}
}

// TestUsage holds the exit codes of a wrong command line.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"version"}, 0},
		{[]string{"config", "default"}, 0},
		{[]string{"serve", "--nonsense"}, 2},
		{[]string{"config", "check", "/no/such/file"}, 1},
	} {
		if got := run(t.Context(), c.args); got != c.want {
			t.Errorf("berth %q: exit code %d, want %d", c.args, got, c.want)
		}
	}
}
