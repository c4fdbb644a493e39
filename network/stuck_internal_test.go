// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A plugin in an uninterruptible wait does not end when it is killed: it is left alone after a while,
// and counted.
func TestStuckPlugins(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "gate")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "stuck")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nread line <"+fifo+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var pids []int
	r := &runner{
		command: "DEL", pod: "p1", stuck: &stuckPlugins{}, grace: time.Millisecond,
		kill: func(pid int) error { // that does not help
			mu.Lock()
			defer mu.Unlock()
			pids = append(pids, pid)
			return nil
		},
	}
	call := func(r *runner) error {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, ErrTimeout)
		defer cancel()
		_, err := r.ExecPlugin(ctx, path, nil, nil)
		return err
	}
	for i := range maxStuckPerPod {
		if err := call(r); !errors.Is(err, ErrTimeout) {
			t.Fatalf("call %d = %v", i, err)
		}
	}
	err := call(r)
	failed, ok := errors.AsType[*PluginError](err)
	if !errors.Is(err, ErrStuck) || !ok || failed.Plugin != "stuck" || failed.Command != "DEL" {
		t.Errorf("one too many = %v", err)
	}
	// Others notice nothing, up to the limit of all.
	other := &runner{command: "DEL", pod: "p2", stuck: r.stuck, grace: time.Millisecond, kill: r.kill}
	if err := call(other); !errors.Is(err, ErrTimeout) {
		t.Errorf("another pod's = %v", err)
	}
	for range maxStuck - maxStuckPerPod - 1 {
		r.stuck.add("p3")
	}
	if err := call(other); !errors.Is(err, ErrStuck) {
		t.Errorf("with %d stuck = %v", maxStuck, err)
	}
	// When the kernel lets go of them, they are forgotten.
	mu.Lock()
	for _, pid := range pids {
		if err := killGroup(pid); err != nil {
			t.Error(err)
		}
	}
	mu.Unlock()
	late := time.After(30 * time.Second)
	for r.stuck.check("p1") != nil {
		select {
		case <-time.After(time.Millisecond):
		case <-late:
			t.Fatal(r.stuck.check("p1"))
		}
	}
}

// A folder of plugins on a file server that is gone.
func TestFolderDoesNotAnswer(t *testing.T) {
	gate := make(chan struct{})
	r := &runner{command: "ADD", pod: "p1", stuck: &stuckPlugins{}, grace: time.Millisecond, find: func(string, []string) (string, error) {
		<-gate
		return "", nil
	}}
	for range maxStuckPerPod {
		if _, err := r.FindInPath("bridge", []string{"/opt/cni/bin"}); !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "/opt/cni/bin") {
			t.Fatalf("FindInPath = %v", err)
		}
	}
	if _, err := r.FindInPath("bridge", nil); !errors.Is(err, ErrStuck) {
		t.Errorf("one too many = %v", err)
	}
	close(gate)
	late := time.After(30 * time.Second)
	for r.stuck.check("p1") != nil {
		select {
		case <-time.After(time.Millisecond):
		case <-late:
			t.Fatal(r.stuck.check("p1"))
		}
	}
}

func TestWords(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", " a\n\tb\x00c ": "a b c", "\xff\xfe": "?", "abcdefghijk": "abcdefghij...", "abcdefghié": "abcdefghi...",
	} {
		if got := words(in, 10); got != want {
			t.Errorf("words(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestTail(t *testing.T) {
	w := &tail{}
	var all []byte
	for i := range 5000 {
		p := make([]byte, i%97)
		for j := range p {
			p[j] = byte(i + j)
		}
		all = append(all, p...)
		if n, err := w.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		if string(w.last()) != string(all[max(0, len(all)-maxWords):]) {
			t.Fatalf("after %d bytes the tail is not their end", len(all))
		}
		if cap(w.buf) > 16*maxWords {
			t.Fatalf("the buffer has grown to %d", cap(w.buf))
		}
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]uint64{
		"10M": 10e6, "1k": 1000, "1.5Gi": 1610612736, "1e6": 1e6, "2E3": 2000, "1P": 1e15, "1000": 1000, "+1Ki": 1024,
		"1000000m": 1000, "1000.0001": 1001, ".5M": 5e5, "2.": 0, "999": 0, "1.1P": 0, "1E": 0, "": 0, "M": 0, "10 M": 0, "10Mb": 0,
		"-10M": 0, "0x10M": 0, "1e400": 0, "1/2M": 0, "1..2M": 0, "1_000": 0, "10Ki0": 0, "10ki": 0, "Inf": 0, "e6": 0, "1ii": 0, "1KiB": 0, "1MM": 0,
	} {
		got, err := parseRate(text)
		if got != want && want > 0 || (err != nil) != (want == 0) {
			t.Errorf("parseRate(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"10M", "1.5Gi", "1e6", "1e-3", "+5k", "9999999999999999999999999999P", "1m"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if rate, err := parseRate(s); err == nil && (rate < minRate || rate > maxRate) {
			t.Errorf("parseRate(%q) = %d", s, rate)
		}
	})
}
