// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package crilog_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/berth-cri/berth/oci/crilog"
)

// joined returns what the container wrote, from the log.
func joined(t testing.TB, log []byte, limit int) (stdout, stderr []byte) {
	t.Helper()
	for line, err := range crilog.Lines(bytes.NewReader(log), limit) {
		if err != nil {
			t.Fatal(err)
		}
		p := &stdout
		if line.Stream == crilog.Stderr {
			p = &stderr
		}
		*p = append(*p, line.Content...)
		if !line.Partial {
			*p = append(*p, '\n')
		}
	}
	return stdout, stderr
}

const early = "2016-10-06T00:17:09.000000001Z "

// show prints what an iteration of Lines yields, one string a step.
func show(r io.Reader, limit int) (steps []string) {
	for line, err := range crilog.Lines(r, limit) {
		if err != nil {
			steps = append(steps, "error "+err.Error())
			continue
		}
		dots := ""
		if line.Partial {
			dots = "…"
		}
		steps = append(steps, fmt.Sprintf("%d %s %s%s", line.Time.Nanosecond(), line.Stream, line.Content, dots))
	}
	return steps
}

func TestLines(t *testing.T) {
	const later = "2016-10-06T00:17:09.000000002Z "
	errRead := errors.New("read failed")
	for _, tt := range []struct {
		name  string
		log   io.Reader
		limit int
		want  []string
	}{
		{name: "empty", log: strings.NewReader("")},
		{
			name: "full records",
			log:  strings.NewReader(early + "stdout F a\n" + early + "stderr F b\n" + early + "stdout F \n"),
			want: []string{"1 stdout a", "1 stderr b", "1 stdout "},
		},
		{
			name: "joined, with the time of the first record",
			log:  strings.NewReader(early + "stdout P ab\n" + later + "stdout P cd\n" + later + "stdout F e\n"),
			want: []string{"1 stdout abcde"},
		},
		{
			name: "streams are joined apart, in the order of their ends",
			log:  strings.NewReader(early + "stdout P o1\n" + later + "stderr P e1\n" + later + "stderr F e2\n" + later + "stdout F o2\n"),
			want: []string{"2 stderr e1e2", "1 stdout o1o2"},
		},
		{
			name: "ends without LF",
			log:  strings.NewReader(early + "stderr P e\n" + early + "stdout P o\n"),
			want: []string{"1 stdout o…", "1 stderr e…"},
		},
		{
			name: "an empty partial record",
			log:  strings.NewReader(early + "stdout P \n" + later + "stdout F a\n"),
			want: []string{"1 stdout a"},
		},
		{
			name:  "a line longer than the limit comes in pieces",
			log:   strings.NewReader(early + "stdout P abcd\n" + later + "stdout P efgh\n" + later + "stdout F i\n" + early + "stdout F j\n"),
			limit: 8,
			want:  []string{"1 stdout abcdefgh…", "2 stdout i", "1 stdout j"},
		},
		{
			name: "what is no record is passed over",
			log:  strings.NewReader("junk\n" + early + "stdout P a\n" + early + "stdout X b\n" + early + "stdout F c\n"),
			want: []string{
				"error offset 0: malformed log record: no space after the time",
				`error offset 47: malformed log record: unknown tag "X"`,
				"1 stdout ac",
			},
		},
		{
			name:  "a record longer than the limit is passed over",
			log:   strings.NewReader(early + "stdout F a\n" + early + "stdout F " + strings.Repeat("x", 1000) + "\n" + early + "stdout F b\n"),
			limit: 100,
			want: []string{
				"1 stdout a",
				"error offset 42: malformed log record: more than 100 bytes of content",
				"1 stdout b",
			},
		},
		{
			name:  "the limit is exact",
			log:   strings.NewReader(early + "stdout F " + strings.Repeat("x", 101) + "\n" + early + "stdout F " + strings.Repeat("y", 100) + "\n"),
			limit: 100,
			want: []string{
				"error offset 0: malformed log record: more than 100 bytes of content",
				"1 stdout " + strings.Repeat("y", 100),
			},
		},
		{
			name:  "no empty piece where the limit is reached",
			log:   strings.NewReader(early + "stdout P \n" + later + "stdout P abcdefgh\n" + later + "stdout F i\n"),
			limit: 8,
			want:  []string{"1 stdout abcdefgh…", "2 stdout i"},
		},
		{
			name: "torn in the content",
			log:  strings.NewReader(early + "stdout P a\n" + early + "stdout F b"),
			want: []string{"error offset 42: log ends within a record", "1 stdout a…"},
		},
		{
			name: "torn in the head",
			log:  strings.NewReader(early + "stdout F a\n" + early[:5]),
			want: []string{"1 stdout a", "error offset 42: log ends within a record"},
		},
		{
			name:  "torn where it is too long",
			log:   strings.NewReader(early + "stdout F " + strings.Repeat("x", 228-40)),
			limit: 100,
			want: []string{
				"error offset 0: malformed log record: more than 100 bytes of content",
				"error offset 228: log ends within a record",
			},
		},
		{
			name: "read error",
			log:  io.MultiReader(strings.NewReader(early+"stdout P a\n"+early), iotest.ErrReader(errRead)),
			want: []string{"error offset 73: read failed", "1 stdout a…"},
		},
		{
			name: "rotated within a line",
			log:  io.MultiReader(strings.NewReader(early+"stdout P a\n"), strings.NewReader(later+"stdout F b\n")),
			want: []string{"1 stdout ab"},
		},
		{
			name: "default limit",
			log:  strings.NewReader(early + "stdout F " + strings.Repeat("x", 1<<20) + "\n"),
			want: []string{"1 stdout " + strings.Repeat("x", 1<<20)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if have := show(tt.log, tt.limit); !slices.Equal(have, tt.want) {
				t.Errorf("have\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestReadErrorsAreWrapped(t *testing.T) {
	errRead := errors.New("read failed")
	for _, tt := range []struct {
		log  io.Reader
		want error
	}{
		{strings.NewReader("x\n"), crilog.ErrRecord},
		{strings.NewReader("x"), crilog.ErrTorn},
		{iotest.ErrReader(errRead), errRead},
	} {
		n := 0
		for _, err := range crilog.Records(tt.log, 0) {
			if n++; !errors.Is(err, tt.want) {
				t.Errorf("have %v, want %v", err, tt.want)
			}
		}
		if n != 1 {
			t.Errorf("%d steps, want the one with %v", n, tt.want)
		}
	}
}

func TestRecords(t *testing.T) {
	log := early + "stdout P a\n" + early + "stderr F " + strings.Repeat("x", 1<<20) + "\n"
	var have []byte
	for rec, err := range crilog.Records(strings.NewReader(log), 0) {
		if err != nil {
			t.Fatal(err)
		}
		have = rec.AppendTo(have)
	}
	if string(have) != log {
		t.Errorf("%d bytes reprint as %d", len(log), len(have))
	}
}

// TestLinesStop leaves the loop at each step; an iteration that went on would
// panic.
func TestLinesStop(t *testing.T) {
	log := early + "stdout P abcd\n" + early + "stdout P efgh\n" + early + "stdout F i\n" + "junk\n" + early + "stderr P e\n" + early + "stdout P o\n" + "torn"
	steps := len(show(strings.NewReader(log), 8))
	if steps != 6 {
		t.Fatalf("%d steps, want 6", steps)
	}
	for stop := range steps {
		n := 0
		for range crilog.Lines(strings.NewReader(log), 8) { //nolint:errcheck // that it can be left early is what is tested
			if n == stop {
				break
			}
			n++
		}
	}
}

// TestLinesTwoStreams writes both streams to one log, in turn, and reads them
// back.
func TestLinesTwoStreams(t *testing.T) {
	stdout := []byte(strings.Repeat("a line of stdout\n", 50) + strings.Repeat("o", 1000) + "\nend")
	stderr := []byte(strings.Repeat("e", 777) + strings.Repeat("\na line of stderr\n", 50))
	var log, restOut, restErr []byte
	out, err := chunked(stdout, 1), chunked(stderr, 2)
	for n := range max(len(out), len(err)) {
		if n < len(out) {
			log, restOut = crilog.Append(log, crilog.Stdout, stamp(n), slices.Concat(restOut, out[n]), 16)
		}
		if n < len(err) {
			log, restErr = crilog.Append(log, crilog.Stderr, stamp(n), slices.Concat(restErr, err[n]), 16)
		}
	}
	log = crilog.AppendRest(log, crilog.Stderr, stamp(0), restErr)
	log = crilog.AppendRest(log, crilog.Stdout, stamp(0), restOut)
	haveOut, haveErr := joined(t, log, 0)
	if !bytes.Equal(haveOut, stdout) {
		t.Errorf("stdout comes back as %q", haveOut)
	}
	if !bytes.Equal(haveErr, stderr) {
		t.Errorf("stderr comes back as %q", haveErr)
	}
}

// endless repeats text until it has given n bytes.
type endless struct {
	text   string
	n, off int
}

func (e *endless) Read(p []byte) (int, error) {
	if e.n <= 0 {
		return 0, io.EOF
	}
	n := copy(p, e.text[e.off:])
	e.off = (e.off + n) % len(e.text)
	e.n -= n
	return n, nil
}

// TestLinesMemory reads 64 MiB without the end of a line with a limit of 64 KiB.
func TestLinesMemory(t *testing.T) {
	const limit, size = 64 << 10, 64 << 20
	inUse := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for name, log := range map[string]io.Reader{
		"one line of many records": &endless{text: early + "stdout P " + strings.Repeat("x", 1000) + "\n", n: size},
		"one of each stream":       &endless{text: early + "stdout P " + strings.Repeat("x", 1000) + "\n" + early + "stderr P y\n", n: size},
		"one record":               io.MultiReader(strings.NewReader(early+"stdout F "), &endless{text: "x", n: size / 64}),
	} {
		t.Run(name, func(t *testing.T) {
			before := inUse()
			steps := 0
			for line := range crilog.Lines(log, limit) { //nolint:errcheck // some of what is read here is no log
				if len(line.Content) > limit {
					t.Fatalf("a piece of %d bytes, limit %d", len(line.Content), limit)
				}
				if steps++; steps < 10 || steps%100 == 0 {
					if used := inUse() - before; used > 5*limit+limit/2 {
						t.Fatalf("%d bytes in use after %d steps, limit %d", used, steps, limit)
					}
				}
			}
			if steps < 2 {
				t.Fatalf("%d steps", steps)
			}
		})
	}
}
