// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckNode holds that each thing that a node may lack is named, with the next step,
// and that only some make it unfit.
func TestCheckNode(t *testing.T) {
	good := func(t *testing.T) *config {
		t.Helper()
		cfg := new(config)
		if err := decode("defaults", []byte(defaults), cfg); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		cfg.Root, cfg.State = filepath.Join(dir, "not", "yet"), "/dev/shm/berth-check-none"
		cfg.Executor.Binary = filepath.Join(dir, "executor")
		cfg.Network.ConfDir = dir
		if err := os.WriteFile(cfg.Executor.Binary, []byte("#!/bin/sh\necho berth-executor 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	for name, c := range map[string]struct {
		change func(*config)
		want   string // in a line
		unfit  bool
	}{
		"fit":         {func(*config) {}, "ok    executor     berth-executor 1", false},
		"no network":  {func(*config) {}, "warn  network      no valid CNI configuration", false},
		"state":       {func(c *config) { c.State = c.Root }, "is not a tmpfs", true},
		"root":        {func(c *config) { c.Root = "/dev/shm/x" }, "FAIL  disk", true},
		"no executor": {func(c *config) { c.Executor.Binary = "/no/such/program" }, "/no/such/program --version", true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good(t)
			c.change(cfg)
			var out strings.Builder
			err := printFindings(&out, checkNode(t.Context(), cfg))
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("%q is not in\n%s", c.want, out.String())
			}
			if os.Geteuid() == 0 && errors.Is(err, errUnfit) != c.unfit {
				t.Errorf("error = %v\n%s", err, out.String())
			}
		})
	}
}
