// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSecretsReachNoDisk holds that the value of an environment variable is in live.db,
// on a tmpfs, and in no file below the root folder.
func TestSecretsReachNoDisk(t *testing.T) {
	const secret = "a-value-that-nobody-else-has"
	var live, disk int
	alive(t, func(t *testing.T, l *life) {
		pod := l.mustPod(t, podConfig("a", 0))
		cfg := containerConfig("x")
		cfg.Envs = []*cri.KeyValue{{Key: "TOKEN", Value: []byte(secret)}}
		id := l.mustContainer(t, pod, cfg)
		if err := l.rt.StartContainer(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		l.endLocked(id, 3)
		l.mu.Unlock()
		if err := l.db.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		live, disk = filesWith(t, l.cfg.State, secret), filesWith(t, l.cfg.Root, secret)
	})
	if live == 0 {
		t.Error("the value is nowhere: this test looks in the wrong place")
	}
	if disk > 0 {
		t.Errorf("%d files on the disk have it", disk)
	}
}

// filesWith counts the files below a folder that have a text.
func filesWith(t *testing.T, folder, text string) (n int) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
