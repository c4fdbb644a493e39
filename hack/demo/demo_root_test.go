// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berth-cri/berth/hack/leak"
)

// TestDemo holds that `make run ONCE=1` comes to its end: the real programs, a real
// registry, a real bridge. It looks for what is left by itself; here the whole process is
// looked at as well.
func TestDemo(t *testing.T) {
	leak.Check(t)
	bin := t.TempDir()
	for _, p := range []string{"berth", "berth-executor", "cni"} {
		built, err := filepath.Abs(filepath.Join("..", "..", "bin", p))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(built); err != nil {
			t.Fatalf("%v (make build cni makes it)", err)
		}
		if err := os.Symlink(built, filepath.Join(bin, p)); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "demo-web"), "./web")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := demo(t.Context(), bin, true); err != nil {
		t.Error(err)
	}
}
