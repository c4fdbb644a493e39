// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-cri/berth/oci/wire"
)

// BenchmarkLife is create, start, kill and delete of one container.
func BenchmarkLife(b *testing.B) {
	for _, parallel := range []int{1, 8} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			r := newRig(b)
			var n atomic.Int64
			inParallel(b, parallel, func() {
				id := fmt.Sprintf("b%d", n.Add(1))
				r.container(id, []string{"sleep"})
				ctx := b.Context()
				if err := r.KillAll(ctx, id); err != nil {
					b.Error(err)
				}
				if err := r.Delete(ctx, id); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// BenchmarkCreateStart is what StartContainer costs.
func BenchmarkCreateStart(b *testing.B) {
	r := newRig(b)
	for n := range b.N {
		id := fmt.Sprintf("b%d", n)
		r.container(id, []string{"sleep"})
		b.StopTimer()
		ctx := b.Context()
		if err := r.KillAll(ctx, id); err != nil {
			b.Error(err)
		}
		if err := r.Delete(ctx, id); err != nil {
			b.Error(err)
		}
		b.StartTimer()
	}
}

// BenchmarkExec is one exec of a program that ends at once, until its exit is told.
func BenchmarkExec(b *testing.B) {
	for _, parallel := range []int{1, 8} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			r := newRig(b)
			r.container("c", []string{"sleep"})
			var n atomic.Int64
			inParallel(b, parallel, func() {
				x := "x" + strconv.FormatInt(n.Add(1), 10)
				_, err := r.Exec(b.Context(), wire.Exec{ID: "c", Exec: x, Process: &specs.Process{Args: []string{"/guest", "exit", "0"}, Cwd: "/"}}, nil)
				if err != nil {
					b.Error(err)
				}
				r.wait("c/" + x)
			})
		})
	}
}

func inParallel(b *testing.B, parallel int, fn func()) {
	var (
		wg   sync.WaitGroup
		left atomic.Int64
	)
	left.Store(int64(b.N))
	b.ResetTimer()
	for range parallel {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				fn()
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}

// BenchmarkIdle reports what 100 idle containers cost: keeper and executor
// together and apart, as PSS.
func BenchmarkIdle(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		r := newRig(b)
		const count = 100
		r.container("first", []string{"sleep"})
		e0, k0 := pss(b, r.executorPID()), pss(b, r.keeperPID())
		for n := range count {
			r.container(fmt.Sprintf("i%d", n), []string{"sleep"})
		}
		e1, k1 := pss(b, r.executorPID()), pss(b, r.keeperPID())
		b.ReportMetric(e1, "executor-kB")
		b.ReportMetric(k1, "keeper-kB")
		b.ReportMetric((e1-e0+k1-k0)/count, "kB/container")
		b.ReportMetric(threads(b, r.executorPID()), "threads")
		b.StartTimer()
	}
}

func pss(tb testing.TB, pid int) float64 {
	return field(tb, fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
}

func threads(tb testing.TB, pid int) float64 {
	return field(tb, fmt.Sprintf("/proc/%d/status", pid), "Threads:")
}

func field(tb testing.TB, path, name string) float64 {
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			n, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				tb.Fatal(err)
			}
			return n
		}
	}
	tb.Fatalf("%s has no %s", path, name)
	return 0
}
