// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package crilog_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/crilog"
)

// A piece is what does not depend on when a record was made.
type piece struct {
	partial bool
	content string
}

func (p piece) String() string {
	tag := "F"
	if p.partial {
		tag = "P"
	}
	if len(p.content) > 40 {
		return fmt.Sprintf("%s %q… (%d)", tag, p.content[:40], len(p.content))
	}
	return fmt.Sprintf("%s %q", tag, p.content)
}

// model returns the pieces of a stream, as containerd's redirectLogs would cut
// it (but for the CRs it drops): while more than maxLine bytes of a line have
// been seen, maxLine of them are a P.
func model(stream string, maxLine int) (pieces []piece) {
	for len(stream) > 0 {
		line, after, ended := strings.Cut(stream, "\n")
		stream = after
		for len(line) > maxLine {
			pieces = append(pieces, piece{true, line[:maxLine]})
			line = line[maxLine:]
		}
		if ended || line != "" {
			pieces = append(pieces, piece{!ended, line})
		}
	}
	return pieces
}

// stamp returns the time of the n-th call.
func stamp(n int) time.Time {
	return time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(n) * 1_000_001)
}

// write returns the log of a stream that is read in the given chunks, as a pump
// makes it: the rest of a call goes before the next chunk. It checks what holds
// for each call.
func write(t testing.TB, s crilog.Stream, chunks [][]byte, maxLine int) []byte {
	t.Helper()
	var log, rest []byte
	for n, chunk := range append(slices.Clip(chunks), nil) {
		raw := slices.Concat(rest, chunk)
		bound := crilog.Bound(len(raw), maxLine)
		const before = "before"
		dst := append(make([]byte, 0, len(before)+bound), before...)

		out, newRest := crilog.Append(dst, s, stamp(n), raw, maxLine)
		if &out[0] != &dst[0] {
			t.Fatalf("Bound(%d, %d) = %d does not suffice for Append", len(raw), maxLine, bound)
		}
		if !bytes.HasPrefix(out, []byte(before)) {
			t.Fatalf("dst was %q, is %q", before, out)
		}
		if with := crilog.AppendRest(out, s, stamp(n), newRest); &with[0] != &dst[0] {
			t.Fatalf("Bound(%d, %d) = %d does not suffice for Append and AppendRest", len(raw), maxLine, bound)
		}
		out = out[len(before):]
		if again, restAgain := crilog.Append(nil, s, stamp(n), raw, maxLine); !bytes.Equal(again, out) || !bytes.Equal(restAgain, newRest) {
			t.Fatalf("the same call twice: %q, then %q", out, again)
		}
		if len(newRest) > maxLine || bytes.IndexByte(newRest, '\n') >= 0 {
			t.Fatalf("rest of %d bytes with maxLine %d: %q", len(newRest), maxLine, newRest)
		}
		if !bytes.HasSuffix(raw, newRest) {
			t.Fatalf("rest %q is not the tail of %q", newRest, raw)
		}
		log, rest = append(log, out...), newRest
	}
	return crilog.AppendRest(log, s, stamp(len(chunks)), rest)
}

// piecesOf returns the pieces of a log with records of one stream, and checks
// that the kubelet reads every record as we do.
func piecesOf(t testing.TB, s crilog.Stream, log []byte) (pieces []piece) {
	t.Helper()
	for line := range bytes.Lines(log) {
		rec, err := crilog.Parse(line)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if rec.Stream != s {
			t.Fatalf("%q: stream is %q, want %q", line, rec.Stream, s)
		}
		if got := rec.AppendTo(nil); !bytes.Equal(got, line) {
			t.Fatalf("record does not reprint:\nhave %q\nwant %q", got, line)
		}
		checkKubelet(t, line, rec)
		pieces = append(pieces, piece{rec.Partial, string(rec.Content)})
	}
	return pieces
}

func TestAppendRecord(t *testing.T) {
	at := time.Date(2016, time.October, 6, 0, 17, 9, 669794202, time.UTC)
	for _, tt := range []struct {
		name   string
		stream crilog.Stream
		time   time.Time
		raw    string
		want   string
		rest   string
	}{
		{"nothing", crilog.Stdout, at, "", "", ""},
		{"no LF", crilog.Stdout, at, "abc", "", "abc"},
		{"line", crilog.Stdout, at, "abc\n", "2016-10-06T00:17:09.669794202Z stdout F abc\n", ""},
		{"stderr", crilog.Stderr, at, "abc\n", "2016-10-06T00:17:09.669794202Z stderr F abc\n", ""},
		{"empty line", crilog.Stdout, at, "\n", "2016-10-06T00:17:09.669794202Z stdout F \n", ""},
		{"long line", crilog.Stdout, at, "0123456789a\nb", "2016-10-06T00:17:09.669794202Z stdout P 01234567\n" +
			"2016-10-06T00:17:09.669794202Z stdout F 89a\n", "b"},
		{"spaces stay", crilog.Stdout, at, "  a  \n", "2016-10-06T00:17:09.669794202Z stdout F   a  \n", ""},
		{"bytes stay", crilog.Stdout, at, "\x00\xff\x80\r\v\r\n", "2016-10-06T00:17:09.669794202Z stdout F \x00\xff\x80\r\v\r\n", ""},
		{"whole second", crilog.Stdout, at.Truncate(time.Second), "a\n", "2016-10-06T00:17:09.000000000Z stdout F a\n", ""},
		{"one nanosecond", crilog.Stdout, at.Truncate(time.Second).Add(1), "a\n", "2016-10-06T00:17:09.000000001Z stdout F a\n", ""},
		{"local time", crilog.Stdout, at.In(time.FixedZone("", -(3*60+30)*60)), "a\n", "2016-10-06T00:17:09.669794202Z stdout F a\n", ""},
		{"zero time", crilog.Stdout, time.Time{}, "a\n", "0001-01-01T00:00:00.000000000Z stdout F a\n", ""},
		{"year -1", crilog.Stdout, time.Date(-1, 5, 5, 5, 5, 5, 5, time.UTC), "a\n", "0000-01-01T00:00:00.000000000Z stdout F a\n", ""},
		{"year 10000", crilog.Stdout, time.Date(10000, 5, 5, 5, 5, 5, 5, time.UTC), "a\n", "9999-12-31T23:59:59.999999999Z stdout F a\n", ""},
		{"year 9999 but not in UTC", crilog.Stdout, time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -7200)), "a\n", "9999-12-31T23:59:59.999999999Z stdout F a\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, rest := crilog.Append(nil, tt.stream, tt.time, []byte(tt.raw), 8)
			if string(out) != tt.want || string(rest) != tt.rest {
				t.Errorf("Append:\nhave %q, rest %q\nwant %q, rest %q", out, rest, tt.want, tt.rest)
			}
		})
	}
}

func TestAppendCuts(t *testing.T) {
	for _, maxLine := range []int{1, 2, 3, 8, 4096, crilog.MaxLine} {
		a := func(n int) string { return strings.Repeat("a", n) }
		for _, n := range []int{0, 1, maxLine - 1, maxLine, maxLine + 1, 2*maxLine - 1, 2 * maxLine, 2*maxLine + 1, 3 * maxLine} {
			for _, tt := range []struct{ name, stream string }{
				{"LF", a(n) + "\n"},
				{"no LF", a(n)},
				{"LF LF", a(n) + "\n\n"},
				{"CR LF", a(n) + "\r\n"},
				{"twice", a(n) + "\n" + a(n) + "\n"},
				{"twice, no LF", a(n) + "\n" + a(n)},
			} {
				t.Run(fmt.Sprintf("max %d/%d bytes, %s", maxLine, n, tt.name), func(t *testing.T) {
					log := write(t, crilog.Stdout, [][]byte{[]byte(tt.stream)}, maxLine)
					have, want := piecesOf(t, crilog.Stdout, log), model(tt.stream, maxLine)
					if !slices.Equal(have, want) {
						t.Errorf("have %v\nwant %v", have, want)
					}
				})
			}
		}
	}
}

// TestAppendCutsExplicit says for a few lines what TestAppendCuts takes from
// the model.
func TestAppendCutsExplicit(t *testing.T) {
	for _, tt := range []struct {
		raw  string
		want []piece // of Append
		rest string
	}{
		{"abc\n", []piece{{false, "abc"}}, ""},
		{"abcd\n", []piece{{false, "abcd"}}, ""},
		{"abcde\n", []piece{{true, "abcd"}, {false, "e"}}, ""},
		{"abcdefgh\n", []piece{{true, "abcd"}, {false, "efgh"}}, ""},
		{"abcdefghi\n", []piece{{true, "abcd"}, {true, "efgh"}, {false, "i"}}, ""},
		{"abc", nil, "abc"},
		{"abcd", nil, "abcd"},
		{"abcde", []piece{{true, "abcd"}}, "e"},
		{"abcdefgh", []piece{{true, "abcd"}}, "efgh"},
		{"abcdefghi", []piece{{true, "abcd"}, {true, "efgh"}}, "i"},
	} {
		out, rest := crilog.Append(nil, crilog.Stderr, stamp(0), []byte(tt.raw), 4)
		if have := piecesOf(t, crilog.Stderr, out); !slices.Equal(have, tt.want) || string(rest) != tt.rest {
			t.Errorf("%q: have %v, rest %q; want %v, rest %q", tt.raw, have, rest, tt.want, tt.rest)
		}
	}
}

func TestAppendDefaultMaxLine(t *testing.T) {
	for _, maxLine := range []int{0, -1} {
		raw := []byte(strings.Repeat("a", crilog.MaxLine+1) + "\n" + strings.Repeat("b", crilog.MaxLine) + "\n")
		have, _ := crilog.Append(nil, crilog.Stdout, stamp(0), raw, maxLine)
		want, _ := crilog.Append(nil, crilog.Stdout, stamp(0), raw, crilog.MaxLine)
		if !bytes.Equal(have, want) {
			t.Errorf("maxLine %d is not MaxLine", maxLine)
		}
	}
}

// TestAppendSplits visits every way to read a stream in two or three chunks:
// tags and contents are those of a single read.
func TestAppendSplits(t *testing.T) {
	for _, stream := range []string{
		"abc\nabcd\nabcde\nabcdefgh\nabcdefghi\n\n\nx",
		"abcdabcdabcd",
		"abcdabcdabcd\n",
		"\n\nabcd\n\nabcd",
	} {
		raw := []byte(stream)
		want := model(stream, 4)
		for i := range len(raw) + 1 {
			for j := i; j <= len(raw); j++ {
				log := write(t, crilog.Stdout, [][]byte{raw[:i], raw[i:j], raw[j:]}, 4)
				if have := piecesOf(t, crilog.Stdout, log); !slices.Equal(have, want) {
					t.Fatalf("%q | %q | %q:\nhave %v\nwant %v", raw[:i], raw[i:j], raw[j:], have, want)
				}
			}
		}
		if have := piecesOf(t, crilog.Stdout, write(t, crilog.Stdout, slices.Collect(slices.Chunk(raw, 1)), 4)); !slices.Equal(have, want) {
			t.Errorf("%q by single bytes:\nhave %v\nwant %v", raw, have, want)
		}
	}
}

// chunked splits raw at places that only seed decides.
func chunked(raw []byte, seed uint64) (chunks [][]byte) {
	rng := rand.New(rand.NewPCG(seed, 0))
	for len(raw) > 0 {
		n := 1 + rng.IntN(len(raw))
		if rng.IntN(2) == 0 {
			n = min(n, 1+rng.IntN(8))
		}
		chunks = append(chunks, raw[:n])
		raw = raw[n:]
	}
	return chunks
}

func FuzzAppend(f *testing.F) {
	f.Add([]byte("abc\nabcd\nabcde\nabcdefgh\nabcdefghi\n\n\nx"), uint16(4), uint64(1))
	f.Add([]byte("\x00\xff\r\n\r\r\n F P \n"), uint16(1), uint64(2))
	f.Add([]byte("2016-10-06T00:17:09.669794202Z stdout F abc\n"), uint16(20), uint64(3))
	f.Add(bytes.Repeat([]byte{'\n'}, 100), uint16(2), uint64(4))
	f.Add(bytes.Repeat([]byte{'a'}, 1000), uint16(7), uint64(5))
	f.Fuzz(func(t *testing.T, raw []byte, maxLine uint16, seed uint64) {
		limit := int(maxLine)
		if limit == 0 {
			limit = crilog.MaxLine
		}
		want := model(string(raw), limit)
		for _, chunks := range [][][]byte{{raw}, chunked(raw, seed)} {
			log := write(t, crilog.Stderr, chunks, limit)
			if have := piecesOf(t, crilog.Stderr, log); !slices.Equal(have, want) {
				t.Fatalf("%q:\nhave %v\nwant %v", chunks, have, want)
			}
			// A limit that some of the lines pass.
			_, stderr := joined(t, log, limit+len(raw)/2)
			if !bytes.Equal(stderr, raw) {
				t.Fatalf("%q comes back as %q", raw, stderr)
			}
		}
	})
}

func TestAppendRest(t *testing.T) {
	at := time.Date(2016, time.October, 6, 0, 17, 9, 5, time.UTC)
	if have, want := crilog.AppendRest([]byte("x"), crilog.Stderr, at, []byte("abc")), "x2016-10-06T00:17:09.000000005Z stderr P abc\n"; string(have) != want {
		t.Errorf("have %q, want %q", have, want)
	}
	if have := crilog.AppendRest([]byte("x"), crilog.Stderr, at, nil); string(have) != "x" {
		t.Errorf("no rest: have %q", have)
	}
}

// TestBound shows that Bound is exact where it has to be.
func TestBound(t *testing.T) {
	for _, tt := range []struct {
		name     string
		raw      string
		maxLine  int
		slack    int
		withRest bool
	}{
		{"empty", "", 8, 0, true},
		{"only LF", strings.Repeat("\n", 1000), 8, 1, false},
		{"one byte at the end", "a", 8, 0, true},
		{"LFs and one byte at the end", strings.Repeat("\n", 999) + "a", 8, 0, true},
		{"max 1", strings.Repeat("a", 1000), 1, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, rest := crilog.Append(nil, crilog.Stdout, stamp(0), []byte(tt.raw), tt.maxLine)
			if tt.withRest {
				out = crilog.AppendRest(out, crilog.Stdout, stamp(0), rest)
			}
			if have, want := crilog.Bound(len(tt.raw), tt.maxLine), len(out)+tt.slack; have != want {
				t.Errorf("Bound(%d, %d) = %d, want %d", len(tt.raw), tt.maxLine, have, want)
			}
		})
	}
	if have := crilog.Bound(-1, 8); have != 0 {
		t.Errorf("Bound(-1) = %d", have)
	}
}

// TestAppendStaysInside: what lies behind the returned slice may be somebody
// else's.
func TestAppendStaysInside(t *testing.T) {
	for _, raw := range []string{"", "abc", "abc\nabc", "abcdefghijk", "a\nabcdefghijk\n"} {
		buf := bytes.Repeat([]byte{'#'}, 1000)
		out, rest := crilog.Append(buf[:0], crilog.Stdout, stamp(0), []byte(raw), 4)
		out = crilog.AppendRest(out, crilog.Stdout, stamp(0), rest)
		if behind := buf[len(out):]; !bytes.Equal(behind, bytes.Repeat([]byte{'#'}, len(behind))) {
			t.Errorf("%q: wrote behind its result: %q", raw, behind)
		}
	}
}

func TestAppendAllocates(t *testing.T) {
	raw := []byte(strings.Repeat("some line\n\n", 100) + strings.Repeat("x", 100_000))
	dst := make([]byte, 0, crilog.Bound(len(raw), crilog.MaxLine))
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		out, rest := crilog.Append(dst, crilog.Stdout, now, raw, crilog.MaxLine)
		crilog.AppendRest(out, crilog.Stdout, now, rest)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestUnknownStreamPanics(t *testing.T) {
	for name, call := range map[string]func(){
		"Append":     func() { crilog.Append(nil, "stdin", stamp(0), []byte("a\n"), 8) },
		"Append nil": func() { crilog.Append(nil, "", stamp(0), nil, 8) },
		"AppendRest": func() { crilog.AppendRest(nil, "stdou", stamp(0), []byte("a")) },
		"AppendTo":   func() { crilog.Record{Stream: "STDOUT"}.AppendTo(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			call()
		})
	}
}
