// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json`: see `go doc test2json` and, for the two of the build, `go help
// buildjson`.
type event struct {
	Action     string
	Package    string
	ImportPath string // build-output and build-fail instead of Package
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

// test is one test of a package that has not ended yet.
type test struct {
	output  []string
	outcome outcome // nothing: it has not said how it ended
	parent  bool    // it has subtests
}

type pkg struct {
	tests  map[string]*test
	order  []string // names in the order of their first event; "" is the package itself
	cached bool
}

func (p *pkg) test(name string) *test {
	t := p.tests[name]
	if t == nil {
		t = &test{}
		p.tests[name] = t
		p.order = append(p.order, name)
	}
	return t
}

// markParents notes which tests are the frame of others. The name of a subtest may itself hold a slash,
// so not all that stands before one is a test.
func (p *pkg) markParents() {
	for name := range p.tests {
		for i := range name {
			if t := p.tests[name[:i]]; name[i] == '/' && t != nil {
				t.parent = true
			}
		}
	}
}

// summary is a test run that is being read.
type summary struct {
	out      io.Writer
	module   string
	allowed  skips
	results  results
	problems []string
	open     map[string]*pkg // by import path; a package leaves when it has ended
	build    []string        // what the build wrote and nobody has shown yet
}

// summarize reads a test run to its end and prints it package by package. The problems are what is
// wrong beside failures.
func summarize(in io.Reader, out io.Writer, module string, allowed skips) (results, []string, error) {
	s := &summary{out: out, module: module, allowed: allowed, results: make(results), open: make(map[string]*pkg)}
	r := bufio.NewReader(in)
	for {
		line, err := r.ReadString('\n')
		if line = strings.TrimSuffix(line, "\n"); line != "" {
			s.line(line)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
	}
	// go test was killed, or could not even begin.
	for _, path := range slices.Sorted(maps.Keys(s.open)) {
		s.end(path, event{Action: string(failed), Package: path})
		s.problems = append(s.problems, s.short(path)+": the output ends in the middle")
	}
	s.showBuild() // warnings: a build that failed has shown itself and its package fails
	return s.results, s.problems, nil
}

func (s *summary) short(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, s.module), "/")
}

func (s *summary) line(line string) {
	var e event
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Action == "" {
		fmt.Fprintln(s.out, line) // not ours: something of the build wrote to the same pipe
		return
	}
	switch e.Action {
	case "build-output":
		s.build = append(s.build, e.Output)
		return
	case "build-fail":
		s.showBuild()
		return
	}
	if e.Package == "" {
		return
	}
	p := s.open[e.Package]
	if p == nil {
		p = &pkg{tests: make(map[string]*test)}
		s.open[e.Package] = p
	}
	switch o := outcome(e.Action); {
	case e.Action == "output":
		t := p.test(e.Test)
		t.output = append(t.output, e.Output)
		if e.Test == "" && strings.Contains(e.Output, "\t(cached)") {
			p.cached = true
		}
	case e.Action == "bench":
		p.test(e.Test).outcome = passed // it says this, and nothing more
	case o != passed && o != failed && o != skipped:
		p.test(e.Test) // run, pause, cont, start, and what Go may add
	case e.Test == "":
		s.end(e.Package, e)
	default:
		t := p.test(e.Test)
		t.outcome = o
		if o == passed {
			t.output = nil // nobody will ask
		}
	}
}

func (s *summary) showBuild() {
	for _, text := range s.build {
		fmt.Fprint(s.out, text)
	}
	s.build = nil
}

// end concludes a package: e is the event that says how it ended.
func (s *summary) end(path string, e event) {
	p, name := s.open[path], s.short(path)
	delete(s.open, path)
	p.markParents()
	count := 0
	for _, testName := range p.order {
		t := p.tests[testName]
		switch {
		case testName == "":
			continue
		case t.outcome == "":
			t.outcome = failed // a panic or a timeout took it along
		case t.outcome == passed && t.parent, t.outcome == failed && p.childFailed(testName):
			continue // the frame of its subtests
		}
		s.results.set(name, testName, t.outcome)
		count++
		if t.outcome == skipped {
			s.skip(name, testName, reason(t.output))
		}
	}
	if outcome(e.Action) == failed {
		p.show(s.out)
		if s.failedIn(name) == 0 {
			// TestMain, an init, a data race outside of tests, or no test binary at all.
			s.results.set(name, "", failed)
		}
	}
	s.packageLine(name, e, p.cached, count)
}

func (s *summary) packageLine(name string, e event, cached bool, count int) {
	verdict, took := "ok", time.Duration(e.Elapsed*float64(time.Second)).Round(10*time.Millisecond).String()
	switch {
	case outcome(e.Action) == failed:
		verdict = "FAIL"
	case count == 0:
		return // no test files
	case cached:
		took = "cached"
	}
	fmt.Fprintf(s.out, "%-4s %-24s %4d tests  %s\n", verdict, name, count, took)
}

func (s *summary) failedIn(name string) int {
	n := 0
	for _, o := range s.results[name] {
		if o == failed {
			n++
		}
	}
	return n
}

func (p *pkg) childFailed(name string) bool {
	for other, t := range p.tests {
		if strings.HasPrefix(other, name+"/") && (t.outcome == failed || t.outcome == "") {
			return true
		}
	}
	return false
}

// show prints the output of all that failed, in the order in which it began, and that of the package
// itself, which holds panics and what TestMain says.
func (p *pkg) show(out io.Writer) {
	for _, name := range p.order {
		if t := p.tests[name]; name != "" && t.outcome == failed {
			showLines(out, t.output)
		}
	}
	if t := p.tests[""]; t != nil {
		showLines(out, t.output)
	}
}

func showLines(out io.Writer, lines []string) {
	for _, line := range lines {
		if !frame.MatchString(line) {
			fmt.Fprint(out, line)
		}
	}
}

var (
	// frame matches what go test says of every test and package, and the package line says again.
	frame = regexp.MustCompile(`^(=== (RUN|PAUSE|CONT|NAME) .*|PASS|FAIL|ok  \t.*|FAIL\t.*|\?   \t.*)\n?$`)
	// logged matches the place at the beginning of what a test says: "    x_test.go:12: ".
	logged = regexp.MustCompile(`^\s*[^\s:]+\.go:\d+: `)
)

// reason finds what was given to t.Skip: the last thing that the test said, with the lines that belong
// to it.
func reason(output []string) string {
	var said []string
	for _, line := range output {
		switch trimmed := strings.TrimSpace(line); {
		case strings.HasPrefix(trimmed, "=== "), strings.HasPrefix(trimmed, "--- "):
		case logged.MatchString(line):
			said = []string{strings.TrimSpace(logged.ReplaceAllString(line, ""))}
		case len(said) > 0:
			said = append(said, trimmed)
		}
	}
	return strings.Join(said, " ")
}

func (s *summary) skip(pkg, test, why string) {
	if why == "" {
		why = "no reason given"
	}
	fmt.Fprintf(s.out, "SKIP %s %s: %s\n", pkg, test, why)
	if !s.allowed.allow(pkg, test, why) {
		s.problems = append(s.problems, fmt.Sprintf("this skip is not allowed: %s %s: %s", pkg, test, why))
	}
}
