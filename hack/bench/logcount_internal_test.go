// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

const stamp = "2026-03-04T05:06:07.5Z"

func TestCountLog(t *testing.T) {
	const head = stamp + " stdout F ready\n"
	line := func(tag, text string) string { return stamp + " stdout " + tag + " " + text + "\n" }
	for _, test := range []struct {
		name, log          string
		whole, torn, other int
	}{
		{"only the first line", head, 0, 0, 0},
		{"whole lines", head + line("F", "abc") + line("F", "abc"), 2, 0, 0},
		{"torn in two", head + line("F", "abc") + line("P", "a") + line("F", "bc"), 1, 1, 0},
		{"torn in three", head + line("P", "a") + line("P", "b") + line("F", "c") + line("F", "abc"), 1, 1, 0},
		{"torn at its end", head + line("P", "abc") + line("F", ""), 0, 1, 0},
		{"torn and wrong", head + line("P", "a") + line("F", "b") + line("F", "abc"), 1, 0, 1},
		{"torn without end", head + line("P", "a"), 0, 0, 1},
		{"wrong text", head + line("F", "abd"), 0, 0, 1},
		{"two lines in one", head + line("F", "abcabc"), 0, 0, 1},
		{"no format", head + "abc\n" + line("F", "abc"), 1, 0, 1},
		{"cut off", head + line("F", "abc") + stamp + " stdout F ab", 1, 0, 1},
	} {
		got, err := countLog(strings.NewReader(test.log), "abc")
		want := logCount{first: time.Date(2026, 3, 4, 5, 6, 7, 5e8, time.UTC), whole: test.whole, torn: test.torn, other: test.other}
		if got != want || err != nil {
			t.Errorf("%s: %+v, %v, want %+v", test.name, got, err, want)
		}
	}
	for _, log := range []string{"", "\n", "yesterday stdout F ready\n", stamp} {
		if got, err := countLog(strings.NewReader(log), "abc"); !errors.Is(err, errNoLog) {
			t.Errorf("%q: %+v, %v, want %v", log, got, err, errNoLog)
		}
	}
}

func FuzzCountLog(f *testing.F) {
	f.Add([]byte(stamp + " stdout F ready\n" + stamp + " stdout P a\n" + stamp + " stdout F bc\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		c, err := countLog(bytes.NewReader(log), "abc")
		if n := bytes.Count(log, []byte("\n")); err == nil && c.whole+c.torn+c.other > n {
			t.Errorf("%+v of %d lines", c, n)
		}
	})
}

func TestLinesOfTheLogAre100Bytes(t *testing.T) {
	if n := len(logLine + "\n"); n != 100 {
		t.Errorf("a line has %d bytes", n)
	}
}
