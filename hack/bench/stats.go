// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"math"
	"slices"
)

// unit of a figure; what it is decides which way is better.
type unit string

const (
	milliseconds unit = "ms"
	perSecond    unit = "/s"
	kilobytes    unit = "kB" // of 1,024 bytes, as /proc writes it
	megabytes    unit = "MB/s"
	lines        unit = "lines"
	cpuMillis    unit = "CPU ms"
	cpuPerGB     unit = "CPU s/GB"
)

func (u unit) higherIsBetter() bool { return u == perSecond || u == megabytes }

// quantiles of some samples, in the samples' unit.
type quantiles struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

// quantilesOf returns the quantiles of at least one sample.
func quantilesOf(samples []float64) quantiles {
	sorted := slices.Sorted(slices.Values(samples))
	return quantiles{P50: percentile(sorted, 50), P95: percentile(sorted, 95), P99: percentile(sorted, 99)}
}

// percentile returns the nearest rank: the smallest sample that p percent of them do not exceed. It is
// always a sample, and with few of them p99 is the worst.
func percentile(sorted []float64, p int) float64 {
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(rank, 1)-1]
}

// median of at least one value; of an even number the mean of the middle two.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// medianOf takes the median of one field of each item.
func medianOf[T any](items []T, field func(T) float64) float64 {
	values := make([]float64, len(items))
	for i, item := range items {
		values[i] = field(item)
	}
	return median(values)
}

// ratio returns a/b, and whether there is one: nothing is a multiple of nothing, nor of less, and what
// has shrunk (memory may) is no multiple of anything.
func ratio(a, b float64) (float64, bool) {
	if a < 0 || b <= 0 || math.IsNaN(a) || math.IsNaN(b) {
		return 0, false
	}
	return a / b, true
}

// verdict says in a word which side of a ratio is the better one.
func verdict(r float64, u unit) string {
	switch c := cmp.Compare(r, 1); {
	case c == 0:
		return "equal"
	case (c > 0) == u.higherIsBetter():
		return "better"
	default:
		return "worse"
	}
}
