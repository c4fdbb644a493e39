// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package crilog_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/crilog"
)

// benchData are 64 KiB reads, what a pump gets from a full pipe.
func benchData() []struct {
	name string
	raw  []byte
} {
	const size = 64 << 10
	lines := func(n int) []byte {
		line := append(bytes.Repeat([]byte{'x'}, n-1), '\n')
		return bytes.Repeat(line, size/n)
	}
	return []struct {
		name string
		raw  []byte
	}{
		{"line=10B", lines(10)},
		{"line=100B", lines(100)},
		{"line=1KiB", lines(1 << 10)},
		{"line=16KiB", lines(16 << 10)},
		{"noLF", bytes.Repeat([]byte{'x'}, size)},
		{"onlyLF", lines(1)},
	}
}

// BenchmarkAppend reports the throughput in bytes of raw, not of the log.
func BenchmarkAppend(b *testing.B) {
	for _, bm := range benchData() {
		b.Run(bm.name, func(b *testing.B) {
			now := time.Now()
			dst := make([]byte, 0, crilog.Bound(len(bm.raw), crilog.MaxLine))
			b.SetBytes(int64(len(bm.raw)))
			b.ReportAllocs()
			for b.Loop() {
				crilog.Append(dst, crilog.Stdout, now, bm.raw, crilog.MaxLine)
			}
		})
	}
}

// BenchmarkAppendOneLine is the price of a call.
func BenchmarkAppendOneLine(b *testing.B) {
	now := time.Now()
	raw := append(bytes.Repeat([]byte{'x'}, 99), '\n')
	dst := make([]byte, 0, crilog.Bound(len(raw), crilog.MaxLine))
	b.ReportAllocs()
	for b.Loop() {
		crilog.Append(dst, crilog.Stdout, now, raw, crilog.MaxLine)
	}
}

// BenchmarkLines reports the throughput in bytes of the log.
func BenchmarkLines(b *testing.B) {
	for _, bm := range benchData() {
		b.Run(bm.name, func(b *testing.B) {
			log, rest := crilog.Append(nil, crilog.Stdout, time.Now(), bm.raw, crilog.MaxLine)
			log = crilog.AppendRest(log, crilog.Stdout, time.Now(), rest)
			log = bytes.Repeat(log, 16)
			b.SetBytes(int64(len(log)))
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				for _, err := range crilog.Lines(bytes.NewReader(log), crilog.MaxLine) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
				if n == 0 {
					b.Fatal(io.ErrNoProgress)
				}
			}
		})
	}
}
