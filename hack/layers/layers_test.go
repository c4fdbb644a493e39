// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package layers_test

import (
	"os"
	"strings"
	"testing"

	"github.com/berth-cri/berth/hack/layers"
)

// root is the module's folder, seen from this package.
const root = "../.."

func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

func TestLayers(t *testing.T) {
	rules := layers.Table()
	report(t, rules.CheckSelf())
	for _, build := range []struct {
		name string
		tags string
		cgo  bool
	}{
		{"plain", "", true},
		{"tags root and seccomp", "root,seccomp", true},
		{"without cgo", "", false},
	} {
		t.Run(build.name, func(t *testing.T) {
			g, err := layers.Load(t.Context(), root, build.tags, build.cgo)
			if err != nil {
				t.Fatal(err)
			}
			// Else this test could not fail: it looked at nothing.
			if g.Packages[rules.Module+"/hack/layers"] == nil {
				t.Fatalf("%d packages, and this one is not among them", len(g.Packages))
			}
			report(t, rules.Check(g))
			for path, p := range g.Packages {
				if build.cgo && strings.HasPrefix(path, rules.Module+"/") {
					report(t, layers.CheckDoc(p))
				}
			}
		})
	}
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	report(t, layers.Table().CheckTopLevel(names))
}
