// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// outcome is how a test ended.
type outcome string

const (
	passed  outcome = "pass"
	failed  outcome = "fail"
	skipped outcome = "skip"
)

// results are package → test → outcome. What is wrong with a package rather than with one of its tests
// stands under the test "".
type results map[string]map[string]outcome

func (r results) set(pkg, test string, o outcome) {
	if r[pkg] == nil {
		r[pkg] = make(map[string]outcome)
	}
	r[pkg][test] = o
}

// count returns how many ended so.
func (r results) count(o outcome) int {
	n := 0
	for _, tests := range r {
		for _, got := range tests {
			if got == o {
				n++
			}
		}
	}
	return n
}

// conclude prints problems and the last line, and returns the exit status.
func (r results) conclude(out io.Writer, problems []string) int {
	pass, fail, skip := r.count(passed), r.count(failed), r.count(skipped)
	if pass+fail+skip == 0 {
		problems = append(problems, "no test ran")
	}
	for _, p := range problems {
		fmt.Fprintf(out, "testsum: %s\n", p)
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", pass, fail, skip)
	if fail > 0 || len(problems) > 0 {
		return 1
	}
	return 0
}

func (r results) save(name string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o666)
}

// load adds up kept results.
func load(names []string) (results, error) {
	sum := make(results)
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var r results
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for pkg, tests := range r {
			for test, o := range tests {
				sum.set(pkg, test, worse(sum[pkg][test], o))
			}
		}
	}
	return sum, nil
}

// worse joins two outcomes of one test: what failed once has failed; what passed once was not skipped.
func worse(a, b outcome) outcome {
	for _, o := range []outcome{failed, passed} {
		if a == o || b == o {
			return o
		}
	}
	return skipped
}
