// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestPathsDoNotWait holds that a path on a dead file system costs its pod four threads
// at most, the node a bounded number, and others nothing.
func TestPathsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPaths()
		p.total = 10
		dead := make(chan struct{})
		began := time.Now()
		for i := range 4 {
			if err := p.touch(t.Context(), "bad", "/dead", func() error { <-dead; return nil }); !errors.Is(err, ErrStuck) {
				t.Fatalf("call %d: error = %v", i, err)
			}
		}
		if took := time.Since(began); took != 4*p.limit {
			t.Errorf("four calls took %v, want the limit each, %v", took, p.limit)
		}
		began = time.Now()
		err := p.touch(t.Context(), "bad", "/dead/too", func() error { t.Error("the fifth was called"); return nil })
		if !errors.Is(err, ErrStuck) || !strings.Contains(err.Error(), "/dead/too") || time.Since(began) != 0 {
			t.Errorf("the fifth: %v after %v, want ErrStuck with the path, at once", err, time.Since(began))
		}
		if err := p.touch(t.Context(), "good", "/x", func() error { return unix.ENOENT }); !errors.Is(err, unix.ENOENT) {
			t.Errorf("another pod's: %v", err)
		}
		for range 6 {
			_ = p.touch(t.Context(), "worse", "/dead", func() error { <-dead; return nil })
			p.perPod = 6
		}
		if err := p.touch(t.Context(), "good", "/x", func() error { return nil }); !errors.Is(err, ErrStuck) {
			t.Errorf("with all of the node's used up: %v", err)
		}
		close(dead)
		synctest.Wait()
		err = p.touch(t.Context(), "bad", "/x", func() error { return nil })
		p.mu.Lock()
		defer p.mu.Unlock()
		if err != nil || len(p.stuck) != 0 || p.all != 0 {
			t.Errorf("after they have come back: %v, %v stuck, %d in all", err, p.stuck, p.all)
		}
	})
}

func TestPathsRead(t *testing.T) {
	p, dir := newPaths(), t.TempDir()
	file, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(file, []byte("12345"), 0o600), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path  string
		limit int64
		want  string
		err   string
	}{
		{file, 5, "12345", ""},
		{file, 4, "", "larger than 4 bytes"},
		{fifo, 5, "", "not a regular file"},
		{dir, 5, "", "not a regular file"},
		{filepath.Join(dir, "none"), 5, "", "no such file"},
	} {
		b, err := p.read(t.Context(), "pod", c.path, c.limit)
		if string(b) != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("read %s: %q, %v; want %q, %q", c.path, b, err, c.want, c.err)
		}
	}
}
