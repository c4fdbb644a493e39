// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
)

// killed is what stops an executor in the middle of something.
type killed struct{}

// kill says when one dies: at the step with this number, counted over all
// executors, and how far it had come with what the kernel may do in part.
type kill struct {
	step int
	part int // quarters
}

// parts is into how many parts a step may fall: quarters done, 0 to 4.
func parts(step string) int {
	switch step {
	case "n", "write", "save": // then a read, a pwrite or the tail file may be half done
		return 5
	}
	return 1
}

// write is what a container writes at once.
type output struct {
	stream int
	text   string
}

// story is a container's life with executors that die.
type story struct {
	*world
	writes []output
	kills  []kill
	both   bool    // the keeper dies with each of them
	pwrite pwriter // nil: the kernel's

	steps []string // seen
	done  int      // writes
	died  string   // the last one after this step
	lost  int64    // bytes that forget told of
	rng   *rand.Rand
}

// tell lives it to its end and returns the log.
func (s *story) tell() []byte {
	s.tb.Helper()
	for s.live() {
		if s.both {
			s.renewPrivate()
		}
	}
	b, err := os.ReadFile(s.logPath())
	if err != nil {
		s.tb.Fatal(err)
	}
	return b
}

// live is one executor: it takes over, goes on, and dies or comes to the end.
func (s *story) live() (again bool) {
	s.newPump()
	if s.pwrite != nil {
		s.pump.pwrite, s.pump.logf = s.pwrite, func(string, ...any) {}
	}
	j, t := s.open()
	defer s.unmap(j)
	defer func() {
		switch p := recover().(type) {
		case nil:
		case killed:
			again = true
			// Of the slot that does not count, nothing counts: it may be half filled.
			mem := unsafe.Slice((*byte)(unsafe.Pointer(&j.mem.slots[(j.mem.cur.Load()+1)&1])), unsafe.Sizeof(slot{}))
			for i := range 300 {
				mem[i] = byte(s.rng.Uint32())
			}
		default:
			panic(p)
		}
	}()
	j.did = func(step string) { s.step(j, t, step) }

	// As Executor.adopt does it.
	if err := t.load(); err != nil {
		t.off = 1 << 62
	}
	t.enter() // and never leaves: the executor ends with it
	if owner := j.owner(); owner != "" {
		if owner != t.id {
			s.tb.Fatalf("journal is owned by %q", owner)
		}
		if s.both {
			s.lost += j.forget()
		}
		v := s.pump.resume(j, owner, 0)
		if err := j.resume(t); err != nil {
			s.tb.Fatal(err)
		}
		if !t.finish(v) {
			s.tb.Fatal("visit was not ended")
		}
	} else {
		s.pump.add(j)
	}
	s.visit(t)
	for s.done < len(s.writes) {
		w := s.writes[s.done]
		s.done++
		if n, err := unix.Write(s.world.write[w.stream], []byte(w.text)); err != nil || n != len(w.text) {
			s.tb.Fatalf("%d of %d bytes: %v", n, len(w.text), err)
		}
		s.visit(t)
	}
	return false
}

// visit moves all there is, as the pump does.
func (s *story) visit(t *tail) {
	for stream := range 2 {
		for again := true; again; {
			var err error
			if again, err = t.move(stream, (1<<20)/chunk, false); err != nil {
				s.tb.Fatal(err)
			}
			t.fail.next = time.Time{}
		}
	}
}

// step counts, and ends an executor whose time has come.
func (s *story) step(j *journal, t *tail, step string) {
	n := len(s.steps)
	s.steps = append(s.steps, step)
	if len(s.kills) == 0 || s.kills[0].step != n {
		return
	}
	part := s.kills[0].part
	s.died, s.kills = step, s.kills[1:]
	sl := j.slot()
	switch step {
	case "n":
		at := sl.carry[sl.stream]
		if k := sl.n * int64(part) / 4; k > 0 {
			if n, err := unix.Read(j.r, sl.raw[at:at+k]); err != nil || int64(n) != k {
				s.tb.Fatalf("read %d of %d: %v", n, k, err)
			}
		}
	case "write":
		if written := t.size() - sl.off; written > 0 {
			if err := unix.Ftruncate(t.log, sl.off+written*int64(part)/4); err != nil {
				s.tb.Fatal(err)
			}
		}
	case "save":
		fi, err := os.Stat(t.path)
		if err == nil && part < 4 {
			err = os.Truncate(t.path, fi.Size()*int64(part)/4)
		}
		if err != nil {
			s.tb.Fatal(err)
		}
	}
	panic(killed{})
}

func (s *story) unmap(j *journal) {
	if err := j.unmap(); err != nil {
		s.tb.Error(err)
	}
}

// record is what counts of one: all but its time.
type logRecord struct {
	stream  crilog.Stream
	partial bool
	content string
}

// records parses a log that must be whole.
func records(tb testing.TB, log []byte) (list [2][]logRecord) {
	tb.Helper()
	for r, err := range crilog.Records(bytes.NewReader(log), lineCap) {
		if err != nil {
			tb.Fatalf("log: %v", err)
		}
		s := 0
		if r.Stream == crilog.Stderr {
			s = 1
		}
		list[s] = append(list[s], logRecord{r.Stream, r.Partial, string(r.Content)})
	}
	return list
}

// streams joins what a container wrote.
func streams(writes []output) (list [2]string) {
	var b [2]strings.Builder
	for _, w := range writes {
		b[w.stream].WriteString(w.text)
	}
	return [2]string{b[0].String(), b[1].String()}
}

// exact is what the whole of each stream gives at once.
func exact(tb testing.TB, writes []output, lineMax int) (list [2][]logRecord) {
	tb.Helper()
	for s, wrote := range streams(writes) {
		b, _ := crilog.Append(nil, streamName(s), testTime(), []byte(wrote), lineMax)
		list[s] = records(tb, b)[s]
	}
	return list
}

// checkExact compares a log with what there should be.
func checkExact(tb testing.TB, log []byte, wants [2][]logRecord) {
	tb.Helper()
	got := records(tb, log)
	for s, want := range wants {
		for i := range max(len(got[s]), len(want)) {
			switch {
			case i >= len(got[s]):
				tb.Fatalf("%s: record %d is lost: %.60q", streamName(s), i, want[i].content)
			case i >= len(want):
				tb.Fatalf("%s: record %d is one too many: %.60q", streamName(s), i, got[s][i].content)
			case got[s][i] != want[i]:
				tb.Fatalf("%s: record %d is %.60q (partial: %t), want %.60q (partial: %t)",
					streamName(s), i, got[s][i].content, got[s][i].partial, want[i].content, want[i].partial)
			}
		}
	}
}

// lives runs a story once for each place where its executor can die, and, with
// again, once more for each place of the following steps where the next one dies.
func lives(t *testing.T, writes []output, lineMax, again int, both bool, check func(s *story, log []byte)) {
	livesOn(t, writes, lineMax, again, both, nil, check)
}

// pwriter is what a log is written by.
type pwriter = func(fd int, b []byte, off int64) (int, error)

// livesOn is lives with a disk of each story's own, nil for the kernel's.
func livesOn(t *testing.T, writes []output, lineMax, again int, both bool, disk func() pwriter,
	check func(s *story, log []byte),
) {
	dir := memory(t)
	run := func(kills ...kill) *story {
		rng := rand.New(rand.NewPCG(uint64(len(kills)), 7)) //nolint:gosec // to be the same each time
		s := &story{world: newWorld(t, dir, 1<<20), writes: writes, kills: kills, both: both, rng: rng}
		if disk != nil {
			s.pwrite = disk()
		}
		defer s.close()
		s.max = lineMax
		log := s.tell()
		if len(s.kills) > 0 {
			t.Fatalf("nobody died at %v", s.kills)
		}
		defer func() {
			if t.Failed() {
				t.Logf("kills %v, steps %v", kills, s.steps)
			}
		}()
		check(s, log)
		return s
	}
	steps := run().steps
	n := 0
	for k, step := range steps {
		for p := range parts(step) {
			first := run(kill{k, p})
			n++
			// The second executor's steps follow in the list.
			for k2 := k + 1; k2 <= min(k+again, len(first.steps)-1); k2++ {
				for p2 := 0; p2 < parts(first.steps[k2]); p2 += 2 {
					run(kill{k, p}, kill{k2, p2})
					n++
				}
			}
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d steps, %d lives", len(steps), n)
}

func lines(first, n, size int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%06d%s\n", first+i, strings.Repeat("x", max(size-7, 0)))
	}
	return b.String()
}

func TestJournalSurvivesDeathAnywhere(t *testing.T) {
	tests := []struct {
		name   string
		writes []output
		max    int
		again  int
	}{
		{name: "lines of both streams", max: 1000, again: 8, writes: []output{
			{0, lines(0, 3, 20)}, {1, lines(0, 2, 30)}, {0, lines(3, 1, 0)},
		}},
		{name: "lines in progress", max: 1000, again: 8, writes: []output{
			{0, "a"}, {1, "b"}, {0, "a"}, {0, "a\nnext"}, {1, "b\n"}, {0, "\n\n"}, {0, "no end"},
		}},
		{name: "lines longer than a record", max: 16, again: 8, writes: []output{
			{0, "0123456789abcdef"},
			{0, "\n"},
			{0, "0123456789abcdef" + "0"},
			{1, strings.Repeat("y", 100)},
			{0, "123456789abcde\n" + strings.Repeat("z", 40) + "\nz"},
			{1, "\n"},
		}},
		{name: "a byte a record", max: 1, again: 3, writes: []output{{0, "ab\n\ncd"}, {0, "\n"}}},
		{name: "more than a chunk", max: crilog.MaxLine, again: 2, writes: []output{
			{0, lines(0, 1000, 151)}, {1, lines(0, 500, 200)}, {0, lines(1000, 300, 300)},
		}},
		{name: "a line of many chunks", max: lineCap, again: 2, writes: []output{
			{0, "begin" + strings.Repeat("w", 3*chunk)}, {1, "other\n"}, {0, strings.Repeat("w", chunk) + "\nend\n"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := exact(t, tt.writes, tt.max)
			lives(t, tt.writes, tt.max, tt.again, false, func(_ *story, log []byte) { checkExact(t, log, want) })
		})
	}
}

// Random writes of any size, random lines, executors that die at random steps.
func TestJournalRandomDeaths(t *testing.T) {
	dir := memory(t)
	for seed := range uint64(25) {
		rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // to be the same each time
		var writes []output
		for range 5 + rng.IntN(20) {
			b := make([]byte, 1+rng.IntN([]int{10, 3000, 200_000}[rng.IntN(3)]))
			every := 1 + rng.IntN(500)
			for i := range b {
				b[i] = 'a' + byte(rng.IntN(26))
				if rng.IntN(every) == 0 {
					b[i] = '\n'
				}
			}
			writes = append(writes, output{rng.IntN(2), string(b)})
		}
		s := &story{world: newWorld(t, dir, 1<<20), writes: writes, rng: rng}
		s.max = []int{1, 7, 100, crilog.MaxLine, lineCap}[rng.IntN(5)]
		for at := 0; len(s.kills) < 30; {
			at += 1 + rng.IntN(25)
			s.kills = append(s.kills, kill{at, rng.IntN(5)})
		}
		log := s.tell()
		checkExact(t, log, exact(t, writes, s.max))
		s.close()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// Where the keeper dies as well, the private pipe is gone. Lines may be lost then,
// but none is torn, doubled, or joined with another.
func TestJournalForgets(t *testing.T) {
	tests := []struct {
		name   string
		writes []output
		max    int
	}{
		{name: "whole lines", max: 1000, writes: []output{
			{0, lines(0, 4, 20)}, {1, lines(0, 3, 20)}, {0, lines(4, 4, 20)}, {0, lines(8, 2, 20)},
		}},
		{name: "lines in progress", max: 1000, writes: []output{
			{0, "first\nsecond is "}, {0, "longer\nthird"}, {1, "one "}, {0, " and so on\nfourth\n"}, {1, "two\nthree\n"}, {0, "fifth\n"},
		}},
		{name: "lines longer than a record", max: 8, writes: []output{
			{0, "0123456789abcdefghi"}, {0, "jkl\nshort\n"}, {0, "ABCDEFGHIJKLMNOPQ\nanother that is long\n"}, {0, "last\n"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wrote := streams(tt.writes)
			lives(t, tt.writes, tt.max, 0, true, func(s *story, log []byte) {
				missing := 0
				for stream, list := range logLines(t, log) {
					missing += checkSubsequence(t, list, strings.Split(wrote[stream], "\n"), tt.max)
				}
				if missing > 0 && s.lost == 0 {
					t.Errorf("%d lines are lost and nobody was told", missing)
				}
				if missing > 0 && !slices.Contains([]string{"moving", "splice", "n", "read"}, s.died) {
					t.Errorf("%d lines are lost by a death after %s, when none was in the private pipe", missing, s.died)
				}
			})
		})
	}
}

// logLines joins records to lines.
func logLines(tb testing.TB, log []byte) (list [2][]string) {
	tb.Helper()
	for stream, recs := range records(tb, log) {
		line, inLine := "", false
		for _, r := range recs {
			line, inLine = line+r.content, true
			if !r.partial {
				list[stream] = append(list[stream], line)
				line, inLine = "", false
			}
		}
		if inLine {
			list[stream] = append(list[stream], line)
		}
	}
	return list
}

// checkSubsequence checks that each line of got is one of want, in their order, and
// once; a line may be cut, but only between records and for good. It returns how
// many are not there, which must lie together.
func checkSubsequence(tb testing.TB, got, want []string, lineMax int) (missing int) {
	tb.Helper()
	want = slices.DeleteFunc(slices.Clone(want), func(l string) bool { return l == "" })
	gaps, at := 0, 0
	for _, line := range got {
		skipped := 0
		for ; at < len(want); at++ {
			cut := len(line) > 0 && len(line)%lineMax == 0 && strings.HasPrefix(want[at], line)
			if want[at] == line || cut {
				break
			}
			skipped++
		}
		if at == len(want) {
			tb.Fatalf("%.80q is no line that was written, or comes twice, in\n%q", line, got)
		}
		if want[at] != line {
			missing++ // a part of it is
		}
		at++
		missing += skipped
		if skipped > 0 {
			gaps++
		}
	}
	if gaps > 1 {
		tb.Errorf("lines are missing in %d places:\n%q", gaps, got)
	}
	return missing + max(0, len(want)-at)
}

// What is in the private pipe after an error would come into the log of the next
// container.
func TestJournalDrainsAfterAnError(t *testing.T) {
	w := newWorld(t, t.TempDir(), 0)
	j, tl := w.open()
	if _, err := unix.Write(w.private[1], []byte("of nobody")); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(w.write[0], []byte("line\n")); err != nil {
		t.Fatal(err)
	}
	w.pump.add(j)
	tl.enter()
	defer tl.leave()
	if _, err := tl.move(0, share, false); err == nil {
		t.Error("bytes of nobody were taken for the container's")
	}
	if n, err := pending(w.private[0]); n != 0 || err != nil {
		t.Errorf("%d bytes are left in the private pipe, %v", n, err)
	}
	if _, err := unix.Write(w.write[0], []byte("next\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := tl.move(0, share, false); err != nil {
		t.Fatal(err)
	}
	if got := logLines(t, w.log())[0]; !slices.Equal(got, []string{"next"}) {
		t.Errorf("log has %q", got)
	}
}

// A log that somebody truncated while no executor was there: no hole of zeros.
func TestJournalResumesInAShorterFile(t *testing.T) {
	writes := []output{{0, lines(0, 5, 50)}, {0, lines(5, 5, 50)}}
	tell := func(kills ...kill) *story {
		s := &story{world: newWorld(t, t.TempDir(), 0), writes: writes, kills: kills, rng: rand.New(rand.NewPCG(1, 1))} //nolint:gosec // as above
		s.max = 1000
		if s.live() != (len(kills) > 0) {
			t.Fatalf("died wrongly, after %v", s.steps)
		}
		return s
	}
	// The first write is in the log, and the second is about to be.
	at := 0
	for i, step := range tell().steps {
		if step == "ready" {
			at = i
		}
	}
	s := tell(kill{step: at})
	if err := os.Truncate(s.logPath(), 0); err != nil {
		t.Fatal(err)
	}
	if s.live() {
		t.Fatal("died again")
	}
	if got, want := logLines(t, s.world.log())[0], strings.Fields(writes[1].text); !slices.Equal(got, want) {
		t.Errorf("log has %q, want %q", got, want)
	}
}

// A journal that no executor of this version has written must not keep every one
// from starting.
func TestJournalRefusesNonsense(t *testing.T) {
	for name, spoil := range map[string]func(sl *slot){
		"n":              func(sl *slot) { sl.n = chunk + 1 },
		"negative n":     func(sl *slot) { sl.n = -1 },
		"carry":          func(sl *slot) { sl.carry[0] = carryCap + 1 },
		"negative carry": func(sl *slot) { sl.carry[1] = -1 },
		"offset":         func(sl *slot) { sl.off = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, t.TempDir(), 0)
			j, tl := w.open()
			if _, err := unix.Write(w.private[1], []byte("line\n")); err != nil {
				t.Fatal(err)
			}
			j.own(tl)
			spoil(j.slot())
			if err := j.resume(tl); err == nil {
				t.Error("resumed")
			}
			if log := w.log(); len(log) > 0 {
				t.Errorf("log has %q", log)
			}
			if n, err := pending(w.private[0]); n != 0 || err != nil {
				t.Errorf("%d bytes are left in the private pipe, %v", n, err)
			}
		})
	}
}

func TestJournalOwner(t *testing.T) {
	w := newWorld(t, t.TempDir(), 0)
	path := filepath.Join(w.dir, "journal")
	j, tl := w.open()
	if got := j.owner(); got != "" {
		t.Errorf("a new journal is owned by %q", got)
	}
	for _, id := range []string{"c", strings.Repeat("i", 100)} {
		tl.id = id
		j.own(tl)
		again, err := openJournal(path, 0, w.private[0], w.private[1])
		if err != nil {
			t.Fatal(err)
		}
		if got := again.owner(); got != id {
			t.Errorf("owner is %q, want %q", got, id)
		}
		if err := j.disown(tl); err != nil {
			t.Fatal(err)
		}
		if got := again.owner(); got != "" {
			t.Errorf("owner is %q after the visit", got)
		}
	}
	// Whatever the file has, no read goes beyond it.
	j.mem.ownerLen.Store(1 << 31)
	if got := len(j.owner()); got != len(j.mem.owner) {
		t.Errorf("owner of %d bytes", got)
	}
}
