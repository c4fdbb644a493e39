// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// stream makes the events of one package out of short lines: "run T", "output T text", "pass T"; T is
// "." for the package.
func stream(lines ...string) string {
	var b strings.Builder
	for _, l := range lines {
		action, rest, _ := strings.Cut(l, " ")
		name, text, _ := strings.Cut(rest, " ")
		if name == "." {
			name = ""
		}
		b.WriteString(`{"Action":"` + action + `","Package":"m/p","Test":"` + name + `","Elapsed":0.25`)
		if action == "output" {
			b.WriteString(`,"Output":"` + text + `"`)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func skipsFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "skips.txt")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// lastLine is what the continuous integration shows.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	return lines[len(lines)-1]
}

func TestRun(t *testing.T) {
	build := `{"ImportPath":"m/p","Action":"build-output","Output":"p.go:1:1: undefined: x\n"}` + "\n"
	for _, c := range []struct {
		name  string
		in    string
		skips string
		code  int
		want  string // whole output
	}{
		{
			name: "passes",
			in:   stream("start .", "run T", "output T === RUN   T\\n", "output T     p_test.go:1: noise\\n", "pass T", "output . PASS\\n", "output . ok  \\tm/p\\t0.25s\\n", "pass ."),
			want: "ok   p                           1 tests  250ms\n1 passed, 0 failed, 0 skipped\n",
		},
		{
			name: "cached",
			in:   stream("pass T", "output . ok  \\tm/p\\t(cached)\\n", "pass ."),
			want: "ok   p                           1 tests  cached\n1 passed, 0 failed, 0 skipped\n",
		},
		{
			name: "only subtests and seeds count",
			in:   stream("run T", "run T/a", "run T/a/x", "run T/b", "pass T/a/x", "pass T/a", "pass T/b", "pass T", "run Fuzz", "run Fuzz/seed#0", "pass Fuzz/seed#0", "pass Fuzz", "pass ."),
			want: "ok   p                           3 tests  250ms\n3 passed, 0 failed, 0 skipped\n",
		},
		{
			name: "a slash in the name of a subtest",
			in:   stream("run T", "run T/net/http", "pass T/net/http", "pass T", "pass ."),
			want: "ok   p                           1 tests  250ms\n1 passed, 0 failed, 0 skipped\n",
		},
		{
			name: "failure is shown in full, in order, without the frame",
			in: stream("run T", "output T === RUN   T\\n", "run T/a", "output T/a === RUN   T/a\\n", "output T/a     p_test.go:1: broken\\n", "output T     --- FAIL: T/a\\n", "output T --- FAIL: T\\n",
				"fail T/a", "fail T", "run U", "output U not shown\\n", "pass U", "output . FAIL\\n", "output . FAIL\\tm/p\\t0.25s\\n", "fail ."),
			code: 1,
			want: "    --- FAIL: T/a\n--- FAIL: T\n    p_test.go:1: broken\nFAIL p                           2 tests  250ms\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "a parent that fails by itself counts",
			in:   stream("run T", "run T/a", "pass T/a", "fail T", "fail ."),
			code: 1,
			want: "FAIL p                           2 tests  250ms\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "a panic takes tests along",
			in:   stream("run T", "output T panic: oops\\n", "run U", "output . exit status 2\\n", "fail ."),
			code: 1,
			want: "panic: oops\nexit status 2\nFAIL p                           2 tests  250ms\n0 passed, 2 failed, 0 skipped\n",
		},
		{
			name: "a package that fails with all its tests passed",
			in:   stream("run T", "pass T", "output . leak: 1 left behind\\n", "fail ."),
			code: 1,
			want: "leak: 1 left behind\nFAIL p                           1 tests  250ms\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "a build that fails",
			in:   build + `{"ImportPath":"m/p","Action":"build-fail"}` + "\n" + stream("start .", "output . FAIL\\tm/p [build failed]\\n", "fail ."),
			code: 1,
			want: "p.go:1:1: undefined: x\nFAIL p                           0 tests  250ms\n0 passed, 1 failed, 0 skipped\n",
		},
		{
			name: "a build that warns",
			in:   build + stream("pass T", "pass ."),
			want: "ok   p                           1 tests  250ms\np.go:1:1: undefined: x\n1 passed, 0 failed, 0 skipped\n",
		},
		{
			name: "skip that is allowed",
			in:   stream("run T", "output T     p_test.go:9: needs  cgroup v2\\n", "output T         and more\\n", "output T --- SKIP: T\\n", "skip T", "pass U", "pass ."),
			skips: "# comment\n\n" +
				"p T needs cgroup v2\n",
			want: "SKIP p T: needs  cgroup v2 and more\nok   p                           2 tests  250ms\n1 passed, 0 failed, 1 skipped\n",
		},
		{
			name:  "skip for another reason",
			in:    stream("output T     p_test.go:9: pull failed\\n", "skip T", "pass ."),
			skips: "p T needs cgroup v2\n",
			code:  1,
			want:  "SKIP p T: pull failed\nok   p                           1 tests  250ms\ntestsum: this skip is not allowed: p T: pull failed\n0 passed, 0 failed, 1 skipped\n",
		},
		{
			name:  "skip of another test",
			in:    stream("output T/a     p_test.go:9: needs cgroup v2\\n", "skip T/a", "pass T", "pass ."),
			skips: "p T needs cgroup v2\nq T/a needs cgroup v2\n",
			code:  1,
			want:  "SKIP p T/a: needs cgroup v2\nok   p                           1 tests  250ms\ntestsum: this skip is not allowed: p T/a: needs cgroup v2\n0 passed, 0 failed, 1 skipped\n",
		},
		{
			name:  "skip without a reason",
			in:    stream("output T --- SKIP: T\\n", "skip T", "pass ."),
			skips: "p T* no\n",
			want:  "SKIP p T: no reason given\nok   p                           1 tests  250ms\n0 passed, 0 failed, 1 skipped\n",
		},
		{name: "package without tests", in: stream("pass T", "pass .") + `{"Action":"skip","Package":"m/q"}` + "\n", want: "ok   p                           1 tests  250ms\n1 passed, 0 failed, 0 skipped\n"},
		{name: "nothing ran", in: stream("pass ."), code: 1, want: "testsum: no test ran\n0 passed, 0 failed, 0 skipped\n"},
		{name: "no input", code: 1, want: "testsum: no test ran\n0 passed, 0 failed, 0 skipped\n"},
		{
			name: "foreign lines and unknown events",
			in:   "go: downloading x\n{}\n" + `{"Action":"attr","Package":"m/p","Test":"T","Key":"k","Value":"v"}` + "\n" + stream("bench B", "pass T", "pass ."),
			want: "go: downloading x\n{}\nok   p                           2 tests  250ms\n2 passed, 0 failed, 0 skipped\n",
		},
		{
			name: "the input breaks off",
			in:   stream("pass T", "run U", "output U working\\n"),
			code: 1,
			want: "working\nFAIL p                           2 tests  0s\ntestsum: p: the output ends in the middle\n1 passed, 1 failed, 0 skipped\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code := run([]string{"-skips", skipsFile(t, c.skips)}, "m", strings.NewReader(c.in), &out, &errOut)
			if code != c.code || out.String() != c.want || errOut.Len() > 0 {
				t.Errorf("status %d, want %d; errors %q; output\n%s\nwant\n%s", code, c.code, errOut.String(), out.String(), c.want)
			}
		})
	}
}

func TestTotal(t *testing.T) {
	dir := t.TempDir()
	// keep runs testsum over events and keeps the results.
	keep := func(name, in string) string {
		file := filepath.Join(dir, "new", name)
		run([]string{"-skips", skipsFile(t, "p * needs root"), "-save", file}, "m", strings.NewReader(in), io.Discard, io.Discard)
		return file
	}
	needsRoot := "output T     p_test.go:9: needs root\\n"
	plain := keep("plain", stream(needsRoot, "skip T", "pass U", "pass V/a", "pass V", "pass ."))
	root := keep("root", stream("pass T", "pass U", "pass W", "pass ."))
	bad := keep("bad", stream("fail U", "fail ."))
	skipping := keep("skipping", stream(needsRoot, "skip T", "pass ."))
	for _, c := range []struct {
		name  string
		files []string
		skips string
		args  []string
		code  int
		want  string
	}{
		{"one", []string{plain}, "", nil, 0, "2 passed, 0 failed, 1 skipped\n"},
		{"each test once", []string{plain, root}, "", nil, 0, "4 passed, 0 failed, 0 skipped\n"},
		{"failed once is failed", []string{plain, bad, root}, "", nil, 1, "3 passed, 1 failed, 0 skipped\n"},
		{"all lines fit", []string{plain, root}, "p T needs root\np V needs\np V/* needs\n", []string{"-complete"}, 0, "4 passed, 0 failed, 0 skipped\n"},
		{"the parent skips", []string{skipping}, "p T/sub needs root\n", []string{"-complete"}, 0, "0 passed, 0 failed, 1 skipped\n"},
		{
			"lines that fit nothing",
			[]string{plain},
			"p T needs\np X needs\nq T needs\np U/a needs\n",
			[]string{"-complete"},
			1,
			"testsum: line 2 of the allowed skips fits no test: p X\ntestsum: line 3 of the allowed skips fits no test: q T\n" +
				"testsum: line 4 of the allowed skips fits no test: p U/a\n2 passed, 0 failed, 1 skipped\n",
		},
		{"not complete", []string{plain}, "q T needs\n", nil, 0, "2 passed, 0 failed, 1 skipped\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			args := append([]string{"-total", "-skips", skipsFile(t, c.skips)}, c.args...)
			code := run(append(args, c.files...), "m", nil, &out, io.Discard)
			if code != c.code || out.String() != c.want {
				t.Errorf("status %d, want %d; output\n%s\nwant\n%s", code, c.code, out.String(), c.want)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	good := skipsFile(t, "")
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		in   io.Reader
		want string
	}{
		{"unknown flag", []string{"-x"}, nil, "-x"},
		{"no list", []string{"-skips", good + "-absent"}, nil, "no such file"},
		{"two words", []string{"-skips", skipsFile(t, "p T r\np T\n")}, nil, "line 2: want PACKAGE TEST REASON"},
		{"bad pattern", []string{"-skips", skipsFile(t, "p T[ r\n")}, nil, "line 1: want PACKAGE TEST REASON"},
		{"no results", []string{"-skips", good, "-total", good + "-absent"}, nil, "no such file"},
		{"broken results", []string{"-skips", good, "-total", broken}, nil, "broken: unexpected end"},
		{"input fails", []string{"-skips", good}, iotest.ErrReader(io.ErrClosedPipe), "closed pipe"},
		{"cannot keep", []string{"-skips", good, "-save", good + "/x/y"}, strings.NewReader(stream("pass T", "pass .")), "not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var errOut bytes.Buffer
			code := run(c.args, "m", c.in, io.Discard, &errOut)
			if code != 2 || !strings.Contains(errOut.String(), c.want) {
				t.Errorf("status %d, errors %q, want %q", code, errOut.String(), c.want)
			}
		})
	}
}

// TestRealGo reads what the installed Go really writes, which the events above only imitate.
func TestRealGo(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":               "module m\n\ngo 1.26\n",
		"good/good_test.go":    "package good\n\nimport \"testing\"\n\nfunc TestA(t *testing.T) {\n\tt.Run(\"x\", func(t *testing.T) {})\n\tt.Run(\"y\", func(t *testing.T) { t.Skip(\"needs a moon\") })\n}\n",
		"bad/bad_test.go":      "package bad\n\nimport \"testing\"\n\nfunc TestB(t *testing.T) { t.Error(\"that is why\") }\n",
		"panics/p_test.go":     "package panics\n\nimport \"testing\"\n\nfunc TestP(t *testing.T) { panic(\"oops\") }\n\nfunc TestNotReached(t *testing.T) {}\n",
		"exits/e_test.go":      "package exits\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n\nfunc TestMain(m *testing.M) { m.Run(); os.Exit(1) }\n\nfunc TestE(t *testing.T) {}\n",
		"unbuilt/u.go":         "package unbuilt\n\nvar X int = \"x\"\n",
		"unbuilt/u_test.go":    "package unbuilt\n\nimport \"testing\"\n\nfunc TestU(t *testing.T) {}\n",
		"notests/notests.go":   "package notests\n",
		"unvetted/vet_test.go": "package unvetted\n\nimport (\n\t\"fmt\"\n\t\"testing\"\n)\n\nfunc TestV(t *testing.T) { _ = fmt.Sprintf(\"%d\", \"x\") }\n",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-json", "./...")
	cmd.Dir = dir
	events, err := cmd.Output()
	if err == nil {
		t.Fatal("go test must fail")
	}
	var out bytes.Buffer
	code := run([]string{"-skips", skipsFile(t, "good TestA/y needs a moon")}, "m", bytes.NewReader(events), &out, io.Discard)
	if code != 1 {
		t.Errorf("status %d", code)
	}
	// Passed: x of TestA, TestE. Failed: TestB, TestP, and the packages exits, unbuilt, unvetted.
	if got, want := lastLine(out.String()), "2 passed, 5 failed, 1 skipped"; got != want {
		t.Errorf("last line %q, want %q", got, want)
	}
	for _, want := range []string{
		"bad_test.go:5: that is why", "panic: oops", "SKIP good TestA/y: needs a moon\n", "cannot use \"x\"", "fmt.Sprintf format %d",
		"ok   good ", "FAIL bad ", "FAIL panics ", "FAIL exits ", "FAIL unbuilt ", "FAIL unvetted ",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q", want)
		}
	}
	if strings.Contains(out.String(), "notests") {
		t.Error("a package without tests is nothing to tell of")
	}
	if t.Failed() {
		t.Log(out.String())
	}
}
