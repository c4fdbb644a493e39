// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"os"
	"path/filepath"
	"testing"
)

// What is berth's own part: a plugin that does nothing is a shell that says one line.
func BenchmarkOwnPart(b *testing.B) {
	r := newRig(b)
	script := "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.1.0.5/24\"}]}'\n"
	if err := os.WriteFile(filepath.Join(r.dir, "bin", "script"), []byte(script), 0o755); err != nil {
		b.Fatal(err)
	}
	r.listOf("1.0.0", "10-a.conflist", "net-a", map[string]any{"type": "script"})
	n := r.open()
	for b.Loop() {
		if _, err := n.Attach(b.Context(), pod("p1")); err != nil {
			b.Fatal(err)
		}
		if err := n.Detach(b.Context(), pod("p1"), nil); err != nil {
			b.Fatal(err)
		}
	}
}
