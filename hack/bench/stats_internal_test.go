// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"testing"
)

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, test := range []struct {
		sorted []float64
		p      int
		want   float64
	}{
		{[]float64{7}, 50, 7},
		{[]float64{7}, 99, 7},
		{[]float64{1, 2}, 50, 1},
		{[]float64{1, 2}, 95, 2},
		{[]float64{1, 2, 3}, 50, 2},
		{[]float64{1, 2, 3, 4}, 50, 2},
		{hundred, 50, 50},
		{hundred, 95, 95},
		{hundred, 99, 99},
		{append(hundred[:100:100], 101), 99, 100},
	} {
		if got := percentile(test.sorted, test.p); got != test.want {
			t.Errorf("p%d of %d: %v, want %v", test.p, len(test.sorted), got, test.want)
		}
	}
}

func TestQuantilesSortAndKeepTheirInput(t *testing.T) {
	samples := []float64{3, 1, 2}
	if got, want := quantilesOf(samples), (quantiles{P50: 2, P95: 3, P99: 3}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
	if samples[0] != 3 {
		t.Errorf("the samples were sorted in place: %v", samples)
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{5}, 5},
		{[]float64{9, 1}, 5},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 3, 100}, 3.5},
	} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v: %v, want %v", test.values, got, test.want)
		}
	}
}

func TestRatio(t *testing.T) {
	for _, test := range []struct {
		a, b, want float64
		ok         bool
	}{
		{1, 4, 0.25, true},
		{0, 4, 0, true},
		{-2, 4, 0, false},
		{1, 0, 0, false},
		{1, -4, 0, false},
		{math.NaN(), 4, 0, false},
		{1, math.NaN(), 0, false},
	} {
		if got, ok := ratio(test.a, test.b); got != test.want || ok != test.ok {
			t.Errorf("%v / %v: %v, %v, want %v, %v", test.a, test.b, got, ok, test.want, test.ok)
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, test := range []struct {
		ratio float64
		unit  unit
		want  string
	}{
		{0.5, milliseconds, "better"},
		{2, milliseconds, "worse"},
		{0.5, perSecond, "worse"},
		{2, perSecond, "better"},
		{2, megabytes, "better"},
		{0.5, kilobytes, "better"},
		{2, cpuMillis, "worse"},
		{2, cpuPerGB, "worse"},
		{1, perSecond, "equal"},
	} {
		if got := verdict(test.ratio, test.unit); got != test.want {
			t.Errorf("%v× of %s is %s, want %s", test.ratio, test.unit, got, test.want)
		}
	}
}
