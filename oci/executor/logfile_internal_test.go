// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
)

// brokenDisk makes a pwrite that fails, each time it is asked, as often as fails
// says, having written a part; then once it does not.
func brokenDisk(rng *rand.Rand, fails int, err error) pwriter {
	left := fails
	part := true
	return func(fd int, b []byte, off int64) (int, error) {
		if left == 0 {
			left, part = fails, true
			return unix.Pwrite(fd, b, off)
		}
		if part { // the kernel tells of a part first, and of the error when it is asked for the rest
			part = false
			if n := rng.IntN(len(b) + 1); n > 0 {
				return unix.Pwrite(fd, b[:n], off)
			}
		}
		left--
		part = left%2 == 0
		return 0, err
	}
}

// A log that cannot be written for a while loses nothing, doubles nothing and tears
// nothing, wherever executors die meanwhile.
func TestJournalSurvivesABrokenDisk(t *testing.T) {
	tests := []struct {
		name   string
		writes []output
		max    int
	}{
		{name: "lines of both streams", max: 1000, writes: []output{
			{0, lines(0, 30, 20)}, {1, lines(0, 20, 30)}, {0, lines(30, 10, 0)}, {0, "no end"},
		}},
		{name: "lines longer than a record", max: 16, writes: []output{
			{0, "0123456789abcdef"},
			{0, "\n"},
			{1, strings.Repeat("y", 100)},
			{0, "0123456789abcdefg\n" + strings.Repeat("z", 40) + "\nz"},
			{1, "\n"},
		}},
		{name: "more than a chunk", max: crilog.MaxLine, writes: []output{
			{0, lines(0, 1000, 151)}, {1, lines(0, 500, 200)}, {0, lines(1000, 300, 300)},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := exact(t, tt.writes, tt.max)
			disk := func() pwriter {
				rng := rand.New(rand.NewPCG(3, 3)) //nolint:gosec // to be the same each time
				return brokenDisk(rng, 2, unix.ENOSPC)
			}
			livesOn(t, tt.writes, tt.max, 0, false, disk, func(_ *story, log []byte) { checkExact(t, log, want) })
		})
	}
}

// A log that cannot be written for too long: whole lines are dropped, and counted.
// None of the others is torn, doubled, or joined with another.
func TestJournalDropsWholeLines(t *testing.T) {
	dir := memory(t)
	tests := []struct {
		name  string
		parts []string // of one stream, each at once
		max   int
	}{
		{name: "lines", max: 1000, parts: []string{lines(0, 40, 20), lines(40, 1, 20), lines(41, 40, 20), lines(81, 1, 20)}},
		{name: "lines in progress", max: 1000, parts: []string{"a", "b\nc", "d\n", "\n", "e", "f\ng", "h\n", "i\n", "j\n", "k\n"}},
		{name: "long lines", max: 8, parts: []string{
			"0123456789", "abcdefgh", "ijk\nshort\n", "A23456789B123456789C\nnext\n", "D23456789", "E23456789F\n", "last\n", "very last\n",
		}},
		{name: "lines longer than a chunk", max: lineCap, parts: []string{
			"begin" + strings.Repeat("w", chunk-5), strings.Repeat("w", chunk), strings.Repeat("w", chunk), "end\nnext\n", "last\n",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dropped := 0
			for seed := range uint64(150) {
				rng := rand.New(rand.NewPCG(seed, 5)) //nolint:gosec // to be the same each time
				w := newWorld(t, dir, 1<<20)
				w.max = tt.max
				pump := w.pump
				pump.logf = func(string, ...any) {}
				pump.patience = time.Duration(rng.IntN(2)) * time.Hour
				works := unix.Pwrite
				broken := brokenDisk(rng, 1<<30, unix.ENOSPC)
				j, tl := w.open()
				pump.add(j)
				tl.enter()
				for _, part := range tt.parts {
					pump.pwrite = works
					if rng.IntN(2) == 0 {
						pump.pwrite = broken
					}
					if rng.IntN(3) == 0 {
						pump.patience = time.Duration(rng.IntN(2)) * time.Hour
					}
					say(t, w.write[0], part)
					tl.fail.next = time.Time{}
					_, err := tl.move(0, share, false)
					if err != nil {
						t.Fatal(err)
					}
				}
				pump.pwrite, tl.fail.next = works, time.Time{}
				if !tl.catchUp() {
					t.Fatal("a disk that works took not all")
				}
				tl.leave()
				<-tl.end()
				wrote := strings.Join(tt.parts, "")
				got := logLines(t, w.log())[0]
				missing := checkLinesOf(t, got, strings.Split(wrote, "\n"), tt.max)
				told := int(pump.dropped.Load())
				if missing != told {
					t.Errorf("seed %d: %d bytes are missing, %d were told of, in\n%.200q", seed, missing, told, got)
				}
				if told > 0 {
					dropped++
				}
				w.close()
				if t.Failed() {
					t.FailNow()
				}
			}
			if dropped < 10 || dropped > 145 {
				t.Errorf("of 150 rounds %d dropped something", dropped)
			}
		})
	}
}

func say(tb testing.TB, fd int, text string) {
	tb.Helper()
	if n, err := unix.Write(fd, []byte(text)); err != nil || n != len(text) {
		tb.Fatalf("%d of %d bytes: %v", n, len(text), err)
	}
}

// checkLinesOf checks that each line of got is one of want, in their order and once,
// or the beginning of one. It returns how many bytes are missing, LFs included but
// for the one with which a line of which a part is there was ended.
func checkLinesOf(tb testing.TB, got, want []string, lineMax int) (missing int) {
	tb.Helper()
	at := 0
	for _, line := range got {
		for ; at < len(want); at++ {
			cut := len(line) > 0 && len(line)%lineMax == 0 && strings.HasPrefix(want[at], line)
			if want[at] == line || cut {
				break
			}
			missing += len(want[at]) + 1
		}
		if at == len(want) {
			tb.Fatalf("%.80q is no line that was written, or comes twice, in\n%.300q", line, got)
		}
		missing += len(want[at]) - len(line)
		at++
	}
	for ; at < len(want); at++ {
		missing += len(want[at])
		if at < len(want)-1 {
			missing++
		}
	}
	return missing
}

// Each of the ways in which lines are dropped.
func TestShed(t *testing.T) {
	tests := []struct {
		name     string
		raw      string
		ended    int
		mark     int64
		kept     string
		wantMark int64
		dropped  int
	}{
		{"nothing", "abc", 0, 0, "abc", 0, 0},
		{"nothing of an open line", "abc", 0, markOpen, "abc", markOpen, 0},
		{"lines", "a\nb\nc", 4, 0, "c", 0, 4},
		{"end of an open line", "a\nb\nc", 4, markOpen, "\nc", markOpen, 3},
		{"only the end of an open line", "\nc", 1, markOpen, "\nc", markOpen, 0},
		{"beginning of a line", "a\nbbbbc", 6, 0, "", markLost, 7},
		{"middle of an open line", "bbbbc", 4, markOpen, "", markLost | markOpen, 5},
		{"an open line, and the beginning of another", "a\nbbbbc", 6, markOpen, "", markLost | markOpen, 7},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kept, mark, dropped := shed([]byte(tt.raw), tt.ended, tt.mark)
			if string(kept) != tt.kept || mark != tt.wantMark || dropped != tt.dropped {
				t.Errorf("kept %q, mark %d, dropped %d, want %q, %d, %d", kept, mark, dropped, tt.kept, tt.wantMark, tt.dropped)
			}
		})
	}
}

// A part of a record that could not be taken back at once is, before the next write.
func TestTornRecordIsTakenBack(t *testing.T) {
	w := newWorld(t, t.TempDir(), 0)
	j, tl := w.open()
	w.pump.add(j)
	tl.enter()
	defer tl.leave()
	say(t, w.write[0], "a long line\n")
	w.pump.pwrite = func(fd int, b []byte, off int64) (int, error) {
		if off > 0 {
			return 0, unix.EIO
		}
		n, err := unix.Pwrite(fd, b[:20], off)
		tl.torn = true // as when truncate fails, too
		return n, err
	}
	if again, err := tl.move(0, share, false); err != nil || !again {
		t.Fatalf("again: %t, %v", again, err)
	}
	if err := os.WriteFile(w.logPath(), []byte(strings.Repeat("torn", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	tl.torn = true
	w.pump.pwrite, tl.fail.next = unix.Pwrite, time.Time{}
	if again, err := tl.move(0, share, false); err != nil || again {
		t.Fatalf("again: %t, %v", again, err)
	}
	if got := logLines(t, w.log())[0]; !slices.Equal(got, []string{"a long line"}) {
		t.Errorf("log has %q", got)
	}
}

// What an executor wrote in vain, since it died before it could say so, is not in the
// log when the next one has to drop it.
func TestWrittenInVainIsTakenBack(t *testing.T) {
	for _, first := range []string{"write", "retry"} {
		t.Run(first, func(t *testing.T) {
			s := &story{world: newWorld(t, t.TempDir(), 0), rng: rand.New(rand.NewPCG(1, 1))} //nolint:gosec // to be the same each time
			s.writes = []output{{0, lines(0, 10, 50)}}
			writes, fail := 0, first == "retry"
			s.pwrite = func(fd int, b []byte, off int64) (int, error) {
				if fail {
					fail = false
					return 0, unix.EIO
				}
				if n, err := unix.Pwrite(fd, b, off); err != nil || n != len(b) {
					return n, err
				}
				writes++
				panic(killed{})
			}
			if !s.live() || writes != 1 {
				t.Fatalf("died after %d writes", writes)
			}
			s.newPump()
			s.pump.patience = 0
			s.pump.pwrite = func(int, []byte, int64) (int, error) { return 0, unix.EIO }
			j, tl := s.open()
			if err := tl.load(); err != nil {
				t.Fatal(err)
			}
			tl.enter()
			defer tl.leave()
			v := s.pump.resume(j, j.owner(), 0)
			if err := j.resume(tl); err != nil || !tl.finish(v) {
				t.Fatal(err)
			}
			say(t, s.write[0], "next\n")
			if _, err := tl.move(0, share, false); err != nil {
				t.Fatal(err)
			}
			s.pump.pwrite, tl.fail.next = unix.Pwrite, time.Time{}
			say(t, s.write[0], "last\n")
			if _, err := tl.move(0, share, false); err != nil {
				t.Fatal(err)
			}
			if got := logLines(t, s.world.log())[0]; !slices.Equal(got, []string{"last"}) {
				t.Errorf("log has %q", got)
			}
			if n := s.pump.dropped.Load(); n != 500+5 {
				t.Errorf("%d bytes were dropped, want 505", n)
			}
		})
	}
}

// A journal whose visit cannot be ended stays with its container, and is the
// pump's again when it can.
func TestJournalIsKeptUntilItsTailIsSaved(t *testing.T) {
	w := newWorld(t, t.TempDir(), 0)
	j, tl := w.open()
	w.pump.add(j)
	path := tl.path
	tl.path = filepath.Join(w.dir, "none", "tail")
	tl.enter()
	defer tl.leave()
	for _, line := range []string{"one\n", "two\nthr"} {
		say(t, w.write[0], line)
		if again, err := tl.move(0, share, false); err != nil || !again {
			t.Fatalf("again: %t, %v", again, err)
		}
		if len(w.pump.free) > 0 || j.owner() != tl.id {
			t.Errorf("%d journals are free, and this one is owned by %q", len(w.pump.free), j.owner())
		}
	}
	tl.path = path
	say(t, w.write[0], "ee\n")
	if again, err := tl.move(0, share, false); err != nil || again {
		t.Fatalf("again: %t, %v", again, err)
	}
	if len(w.pump.free) != 1 || j.owner() != "" || w.pump.stuck != 0 {
		t.Errorf("%d journals are free, %d stuck, and this one is owned by %q", len(w.pump.free), w.pump.stuck, j.owner())
	}
	if got := logLines(t, w.log())[0]; !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("log has %q", got)
	}
}

// An executor that dies while a journal gets another owner leaves it without one:
// the slot is then the next owner's, and the name the last one's.
func TestJournalHasNoOwnerWhileItGetsOne(t *testing.T) {
	w := newWorld(t, t.TempDir(), 0)
	j, tl := w.open()
	tl.enter()
	defer tl.leave()
	tl.off = 1
	j.own(tl)
	next := newTail(w.pump, "c2", filepath.Join(w.dir, "tail2"), 0)
	next.enter()
	defer next.leave()
	next.off = 1000
	seen := 0
	j.did = func(step string) {
		if step != "slot" {
			return
		}
		seen++
		if off, owner := j.slot().off, j.owner(); off != 1000 || owner != "" {
			t.Errorf("slot stands at %d, and is owned by %q", off, owner)
		}
	}
	j.own(next)
	if seen != 1 || j.owner() != "c2" {
		t.Errorf("step was seen %d times, owner is %q", seen, j.owner())
	}
}

// A log that somebody truncates while it is written at full speed has no hole.
func TestJournalFollowsATruncatedFile(t *testing.T) {
	w := newWorld(t, t.TempDir(), 1<<20)
	j, tl := w.open()
	w.pump.add(j)
	const count = 10 * chunk / 64
	say(t, w.write[0], lines(0, count, 64))
	flips := 0
	j.did = func(step string) {
		if step != "flip" {
			return
		}
		if flips++; flips == 5 {
			if err := os.Truncate(w.logPath(), 0); err != nil {
				t.Error(err)
			}
		}
	}
	tl.enter()
	defer tl.leave()
	if again, err := tl.move(0, share, true); again || err != nil {
		t.Fatalf("again: %t, %v", again, err)
	}
	if flips != 10 {
		t.Fatalf("%d chunks, want 10", flips)
	}
	if got, want := logLines(t, w.log())[0], strings.Fields(lines(count/2, count/2, 64)); !slices.Equal(got, want) {
		t.Errorf("log has %d lines, first %.80q, want %d", len(got), got[0], len(want))
	}
}

// A stream does not end because there is no memory for once.
func TestStreamSurvivesAnError(t *testing.T) {
	w := newWorld(t, t.TempDir(), 0)
	j, tl := w.open()
	w.pump.add(j)
	private := j.w
	j.w = -1 // EBADF
	say(t, w.write[0], "line\n")
	tl.enter()
	defer tl.leave()
	if again, err := tl.move(0, share, false); !errors.Is(err, unix.EBADF) || !again {
		t.Errorf("again: %t, %v", again, err)
	}
	j.w = private
	if again, err := tl.move(0, share, false); err != nil || again {
		t.Errorf("again: %t, %v", again, err)
	}
	if got := logLines(t, w.log())[0]; !slices.Equal(got, []string{"line"}) {
		t.Errorf("log has %q", got)
	}
}

func TestFindLog(t *testing.T) {
	idOf := func(path string) fileID {
		o, err := openExisting(path)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(o.fd)
		return o.file
	}
	tests := []struct {
		name    string
		there   []string // the log's own first
		runs    bool
		want    string // "": none
		remains []string
	}{
		{"in place", []string{"0.log"}, true, "0.log", []string{"0.log"}},
		{"in place, ended", []string{"0.log"}, false, "0.log", []string{"0.log"}},
		{"rotated", []string{"0.log.1", "0.log"}, true, "0.log.1", []string{"0.log", "0.log.1"}},
		{"rotated, and not yet opened again", []string{"0.log.1"}, true, "0.log.1", []string{"0.log.1"}},
		{"removed", nil, true, "0.log", []string{"0.log"}},
		{"removed, ended", nil, false, "", nil},
		{"removed, ended, another there", []string{"gone", "0.log"}, false, "0.log", []string{"0.log"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			id := fileID{Dev: 1, Ino: 1}
			for i, name := range tt.there {
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					id = idOf(path)
				}
			}
			if len(tt.there) > 0 && tt.there[0] == "gone" {
				id.Ino = 1 // no file's
				if err := os.Remove(filepath.Join(dir, "gone")); err != nil {
					t.Fatal(err)
				}
			}
			o, err := findLog(filepath.Join(dir, "0.log"), id, tt.runs)
			switch {
			case tt.want == "":
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("found %+v, %v", o, err)
				}
			case err != nil:
				t.Error(err)
			default:
				defer unix.Close(o.fd)
				if want := idOf(filepath.Join(dir, tt.want)); o.file != want {
					t.Errorf("found %+v, want %s, %+v", o, tt.want, want)
				}
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if !slices.Equal(names, tt.remains) {
				t.Errorf("then there are %q, want %q", names, tt.remains)
			}
		})
	}
}
