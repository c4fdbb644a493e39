// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
)

// skip is one line of the list of allowed skips.
type skip struct {
	pkg, test, reason string
	line              int
}

type skips []skip

var errSkips = errors.New("want PACKAGE TEST REASON")

func readSkips(name string) (skips, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	list, err := parseSkips(string(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}

func parseSkips(text string) (skips, error) {
	var list skips
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 3 {
			return nil, fmt.Errorf("line %d: %w", n, errSkips)
		}
		if _, err := path.Match(f[1], ""); err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", n, errSkips, err)
		}
		list = append(list, skip{pkg: f[0], test: f[1], reason: strings.Join(f[2:], " "), line: n})
	}
	return list, nil
}

func (s skip) fits(pkg, test string) bool {
	ok, _ := path.Match(s.test, test) // parseSkips has checked the pattern
	return ok && s.pkg == pkg
}

// allow reports whether a test may skip for that reason.
func (l skips) allow(pkg, test, reason string) bool {
	for _, s := range l {
		if s.fits(pkg, test) && strings.HasPrefix(strings.Join(strings.Fields(reason), " "), s.reason) {
			return true
		}
	}
	return false
}

// stale returns the lines that fit none of the tests that there are.
func (l skips) stale(r results) []string {
	var problems []string
	for _, s := range l {
		if !s.known(r[s.pkg]) {
			problems = append(problems, fmt.Sprintf("line %d of the allowed skips fits no test: %s %s", s.line, s.pkg, s.test))
		}
	}
	return problems
}

// known reports whether there is such a test. Results name no frames, so a test that skips as a whole
// on one machine is seen on another by its subtests; and a subtest is not seen at all where its parent
// skips.
func (s skip) known(tests map[string]outcome) bool {
	want := strings.Split(s.test, "/")
	for test, o := range tests {
		have := strings.Split(test, "/")
		if len(have) < len(want) && o != skipped {
			continue
		}
		n := min(len(have), len(want))
		if ok, _ := path.Match(strings.Join(want[:n], "/"), strings.Join(have[:n], "/")); ok {
			return true
		}
	}
	return false
}
