// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"math"
)

// parseUint reads a decimal number, with one line break after it at most.
func parseUint(b []byte) (uint64, bool) {
	b = bytes.TrimSuffix(b, []byte("\n"))
	if len(b) == 0 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		d := uint64(c - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

// nextField takes the first line "key value" off a text. The key is nil for a line of another
// shape: the kernel adds new ones. (Not an iterator or a callback, with which the text, and so
// the caller's buffer, would escape to the heap.)
func nextField(text []byte) (key []byte, v uint64, rest []byte) {
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	key, value, _ := bytes.Cut(line, []byte(" "))
	v, ok := parseUint(value)
	if !ok {
		key = nil
	}
	return key, v, rest
}

// lookup finds one key in lines "key value".
func lookup(text []byte, key string) (uint64, bool) {
	for len(text) > 0 {
		var k []byte
		var v uint64
		if k, v, text = nextField(text); string(k) == key {
			return v, true
		}
	}
	return 0, false
}

// parsePSI reads a pressure file (Documentation/accounting/psi.rst):
//
//	some avg10=0.00 avg60=0.00 avg300=0.00 total=0
//	full avg10=0.00 avg60=0.00 avg300=0.00 total=0
//
// cpu.pressure has no second line before Linux 5.13. It is false if there is no first.
func parsePSI(text []byte) (psi PSI, ok bool) {
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		kind, rest, _ := bytes.Cut(line, []byte(" "))
		p, good := parsePressure(rest)
		if !good {
			return PSI{}, false
		}
		switch string(kind) {
		case "some":
			psi.Some, ok = p, true
		case "full":
			psi.Full = Opt[Pressure]{p, true}
		}
	}
	return psi, ok
}

func parsePressure(fields []byte) (p Pressure, ok bool) {
	const all = 1 | 2 | 4 | 8
	seen := 0
	for len(fields) > 0 {
		var field []byte
		field, fields, _ = bytes.Cut(fields, []byte(" "))
		key, value, _ := bytes.Cut(field, []byte("="))
		good := true
		switch string(key) {
		case "avg10":
			p.Avg10, good = parseDecimal(value)
			seen |= 1
		case "avg60":
			p.Avg60, good = parseDecimal(value)
			seen |= 2
		case "avg300":
			p.Avg300, good = parseDecimal(value)
			seen |= 4
		case "total":
			p.Total, good = parseUint(value)
			p.Total = mulSat(p.Total, 1000)
			seen |= 8
		}
		if !good {
			return Pressure{}, false
		}
	}
	return p, seen == all
}

// parseDecimal reads "12.34" without the allocation of strconv.ParseFloat, to which it is equal
// as long as the digits fit in 53 bits: both operands of the division are then exact, and so its
// result is the nearest float64.
func parseDecimal(b []byte) (float64, bool) {
	whole, frac, _ := bytes.Cut(b, []byte("."))
	if len(whole) == 0 || len(whole)+len(frac) > 15 {
		return 0, false
	}
	var n, scale uint64 = 0, 1
	for _, part := range [2][]byte{whole, frac} {
		for _, c := range part {
			d := uint64(c - '0')
			if d > 9 {
				return 0, false
			}
			n = n*10 + d
		}
	}
	for range frac {
		scale *= 10
	}
	return float64(n) / float64(scale), true
}

// mulSat multiplies and stays at the largest value instead of wrapping around.
func mulSat(a, b uint64) uint64 {
	if b != 0 && a > math.MaxUint64/b {
		return math.MaxUint64
	}
	return a * b
}

// subSat subtracts and stays at 0 instead of wrapping around: the counters are read one after
// the other, so a part can be larger than its whole.
func subSat(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}
