// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

// It needs no root, but to be run without the race detector, which takes several times the memory.

package unpack_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/berth-cri/berth/image/unpack"
)

// inKB is kB in a MiB.
const inKB = 1 << 10

// generated are archives that are made while they are read, so that they take no memory themselves.
var generated = map[string]struct {
	limit int // MiB; what was measured is less by a third
	wrap  func(io.Writer) io.WriteCloser
	write func(w *tar.Writer)
}{
	"one file, gzip":          {12, gzipped, func(w *tar.Writer) { bigFile(w, 300<<20) }},
	"one file, zstd":          {28, zstd8, func(w *tar.Writer) { bigFile(w, 300<<20) }},
	"window of 32 MiB, zstd":  {56, zstd32, func(w *tar.Writer) { bigFile(w, 300<<20) }},
	"30,000 files":            {12, gzipped, func(w *tar.Writer) { many(w, 30_000, "d/%d/%[1]d", tar.TypeReg, "") }},
	"30,000 folders":          {12, gzipped, func(w *tar.Writer) { many(w, 30_000, strings.Repeat("n", 200)+"%d", tar.TypeDir, "") }},
	"one path 30,000 times":   {12, gzipped, func(w *tar.Writer) { many(w, 30_000, "d%.0d", tar.TypeReg, "") }},
	"links to lower layers":   {40, gzipped, func(w *tar.Writer) { many(w, 15_000, "d%d", tar.TypeLink, strings.Repeat("nnnnnnnnn/", 50)) }},
	"headers of 900 KiB each": {32, gzipped, func(w *tar.Writer) { longHeaders(w, 100) }},
}

func gzipped(w io.Writer) io.WriteCloser {
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
	return z
}

func zstd8(w io.Writer) io.WriteCloser {
	z, _ := zstd.NewWriter(w, zstd.WithWindowSize(8<<20))
	return z
}

func zstd32(w io.Writer) io.WriteCloser {
	z, _ := zstd.NewWriter(w, zstd.WithWindowSize(32<<20))
	return z
}

func bigFile(w *tar.Writer, size int64) {
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644, Size: size})
	part := words(1 << 20)
	for range size >> 20 {
		_, _ = w.Write(part)
	}
}

func many(w *tar.Writer, n int, name string, kind byte, target string) {
	for i := range n {
		h := &tar.Header{Typeflag: kind, Name: fmt.Sprintf(name, i), Mode: 0o755}
		if kind == tar.TypeLink {
			h.Linkname = target + h.Name
		}
		_ = w.WriteHeader(h)
	}
}

func longHeaders(w *tar.Writer, n int) {
	for i := range n {
		_ = w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: fmt.Sprint(i), Mode: 0o644, PAXRecords: map[string]string{"BERTH.comment": strings.Repeat("x", 900<<10)},
		})
	}
}

// TestMemory unpacks archives, each in a process of its own, and looks at the most memory that it has had.
func TestMemory(t *testing.T) {
	const in, out = "BERTH_TEST_MEMORY", "grew by %d kB"
	if name := os.Getenv(in); name != "" {
		l := newLayer(t)
		before := statusKB(t, "VmRSS:")
		_, err := unpack.New(unpack.Options{}).Unpack(t.Context(), unpack.Source{Blob: os.Stdin, MediaType: plain}, l.target)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf(out+"\n", statusKB(t, "VmHWM:")-before)
		return
	}
	for name, c := range generated {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestMemory$")
			cmd.Env = append(os.Environ(), in+"="+name)
			var output bytes.Buffer
			cmd.Stdout, cmd.Stderr = &output, &output
			blob, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			compressed := c.wrap(blob)
			w := tar.NewWriter(compressed)
			c.write(w)
			w.Close()
			compressed.Close()
			blob.Close()
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v: %s", err, &output)
			}
			var grew int
			if _, err := fmt.Sscanf(output.String(), out, &grew); err != nil {
				t.Fatalf("%v: %s", err, &output)
			}
			t.Logf("%d kB", grew)
			if grew > c.limit*inKB {
				t.Errorf("grew by %d kB, more than %d MiB", grew, c.limit)
			}
		})
	}
}

// statusKB reads a line of /proc/self/status.
func statusKB(t *testing.T, key string) int {
	t.Helper()
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var n int
		if rest, ok := strings.CutPrefix(s.Text(), key); ok {
			if _, err := fmt.Sscan(rest, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s", key)
	return 0
}
