// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"math"
	"strconv"
	"strings"
	"testing"
)

func FuzzParseDecimal(f *testing.F) {
	for _, s := range []string{"0.00", "12.34", "100.00", "0.1", "7", "", ".", "1.", ".1", "1e3", "-1", "99999999.99", "123456789012345678"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseDecimal([]byte(s))
		if !ok {
			return
		}
		if want, err := strconv.ParseFloat(s, 64); err != nil || got != want {
			t.Errorf("%q: %v, want %v, %v", s, got, want, err)
		}
	})
}

func TestParseDecimal(t *testing.T) {
	for s, want := range map[string]float64{"0.00": 0, "12.34": 12.34, "100.00": 100, "0.07": 0.07, "7": 7, "1.": 1} {
		if got, ok := parseDecimal([]byte(s)); !ok || got != want {
			t.Errorf("%q: %v, %v", s, got, ok)
		}
	}
	for _, s := range []string{"", ".", ".1", "1e3", "-1", "+1", "1,2", "1.2.3", "1234567890123456", "0x1"} {
		if got, ok := parseDecimal([]byte(s)); ok {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func FuzzParseUint(f *testing.F) {
	for _, s := range []string{"0", "18446744073709551615", "18446744073709551616", "99999999999999999999", "1\n", "1\n\n", "\n", "", "-1", "1 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseUint([]byte(s))
		want, err := strconv.ParseUint(strings.TrimSuffix(s, "\n"), 10, 64)
		if ok != (err == nil) || ok && got != want {
			t.Errorf("%q: %d, %v; want %d, %v", s, got, ok, want, err)
		}
	})
}

func FuzzParsePSI(f *testing.F) {
	f.Add([]byte("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=1.00 avg60=0.20 avg300=99.00 total=123\n"))
	f.Add([]byte("some avg10=0.00 avg60=0.00 avg300=0.00 total=0"))
	f.Add([]byte("full\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		psi, ok := parsePSI(text)
		if !ok {
			return
		}
		for _, p := range []Pressure{psi.Some, psi.Full.V} {
			for _, a := range []float64{p.Avg10, p.Avg60, p.Avg300} {
				if math.IsNaN(a) || math.IsInf(a, 0) || a < 0 {
					t.Errorf("%q: %+v", text, psi)
				}
			}
		}
	})
}

func FuzzNextField(f *testing.F) {
	f.Add("anon 1\nfile 2\n")
	f.Add("anon 1")
	f.Add("anon\n1 \n 2\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		want := make(map[string]uint64) // the first of each key
		for line := range strings.SplitSeq(text, "\n") {
			key, value, _ := strings.Cut(line, " ")
			v, err := strconv.ParseUint(value, 10, 64)
			if _, twice := want[key]; err == nil && !twice && key != "" {
				want[key] = v
			}
		}
		for key, v := range want {
			if got, ok := lookup([]byte(text), key); !ok || got != v {
				t.Errorf("%q: %q is %d, %v; want %d", text, key, got, ok, v)
			}
		}
		lines := 0
		for rest := []byte(text); len(rest) > 0; lines++ {
			_, _, rest = nextField(rest)
		}
		if n := strings.Count(text, "\n") + 1; lines > n {
			t.Errorf("%d fields in %d lines", lines, n)
		}
	})
}

func TestSaturation(t *testing.T) {
	if got := subSat(1, 2); got != 0 {
		t.Errorf("1-2 = %d", got)
	}
	if got := mulSat(math.MaxUint64/1000+1, 1000); got != math.MaxUint64 {
		t.Errorf("overflow = %d", got)
	}
	if got := mulSat(math.MaxUint64/1000, 1000); got != math.MaxUint64/1000*1000 {
		t.Errorf("no overflow = %d", got)
	}
}
