// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

const rollup = `55d2b1a3c000-7ffd0b5f2000 ---p 00000000 00:00 0                          [rollup]
Rss:               10648 kB
Pss:                6315 kB
Pss_Dirty:          3100 kB
Pss_Anon:           2900 kB
SwapPss:              12 kB
`

func TestParsePSS(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       int64
		err        error
	}{
		{"a process", rollup, 6315, nil},
		{"a kernel thread", "", 0, errSmaps},
		{"no line Pss", "Rss: 1 kB\nPss_Dirty: 2 kB\nSwapPss: 3 kB\n", 0, errSmaps},
		{"no number", "Pss: x kB\n", 0, strconv.ErrSyntax},
		{"another unit", "Pss: 12 MB\n", 0, errSmaps},
	} {
		got, err := parsePSS([]byte(test.text))
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: %d, %v, want %d, %v", test.name, got, err, test.want, test.err)
		}
	}
}

func statLine(pid, parent int, comm string, ticks [4]int) string {
	line := strconv.Itoa(pid) + " (" + comm + ") S " + strconv.Itoa(parent) + " 1 1 0 -1 4194560 1 2 3 4"
	for _, n := range ticks {
		line += " " + strconv.Itoa(n)
	}
	return line + " 20 0 1 0 12345 1000 200\n"
}

func TestParseStat(t *testing.T) {
	want := process{pid: 42, parent: 7, comm: "a) S 1 (b", cpu: 100 * time.Millisecond}
	if got, err := parseStat([]byte(statLine(42, 7, "a) S 1 (b", [4]int{1, 2, 3, 4}))); got != want || err != nil {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, line := range []string{"", "42", "42 (a", "42 (a) S 7", ") 42 (", "x (a) S 7 1 1 0 -1 0 1 2 3 4 1 1 1 1", "1 (a) S 7 1 1 0 -1 0 1 2 3 4 1 1 1 y"} {
		if got, err := parseStat([]byte(line)); !errors.Is(err, errStat) {
			t.Errorf("%q: %+v, %v, want %v", line, got, err, errStat)
		}
	}
}

func FuzzProc(f *testing.F) {
	f.Add([]byte(rollup))
	f.Add([]byte(statLine(1, 2, "c", [4]int{1, 2, 3, 4})))
	f.Fuzz(func(t *testing.T, text []byte) {
		if kB, err := parsePSS(text); err != nil && kB != 0 {
			t.Errorf("%d with %v", kB, err)
		}
		if p, err := parseStat(text); err != nil && p != (process{}) {
			t.Errorf("%+v with %v", p, err)
		}
	})
}

func TestFamily(t *testing.T) {
	table := make(map[int]process)
	for _, p := range []process{
		{pid: 1, comm: "init"},
		{pid: 10, parent: 1, comm: "daemon"},
		{pid: 9, parent: 11, comm: "grandchild"}, // pids wrap
		{pid: 11, parent: 10, comm: "child"},
		{pid: 20, parent: 1, comm: "containerd-shim"}, // cut to 15 bytes
		{pid: 21, parent: 20, comm: "payload"},
		{pid: 30, parent: 1, comm: "daemonette"},
	} {
		table[p.pid] = p
	}
	for _, test := range []struct {
		roots []int
		names []string
		want  []int
	}{
		{[]int{10}, nil, []int{9, 10, 11}},
		{[]int{10, 999}, nil, []int{9, 10, 11}},
		{[]int{11, 10}, []string{"containerd-shim-runc-v2"}, []int{9, 10, 11, 20, 21}},
		{nil, []string{"daemon"}, []int{9, 10, 11}},
		{nil, nil, nil},
	} {
		if got := family(table, test.roots, test.names); !slices.Equal(got, test.want) {
			t.Errorf("family of %v, %q: %v, want %v", test.roots, test.names, got, test.want)
		}
	}
}

// procTree makes a folder as /proc with one process per entry; its PID namespace is the value.
func procTree(t *testing.T, namespaces map[string]string, rollups map[string]string) string {
	t.Helper()
	proc := t.TempDir()
	for name, ns := range namespaces {
		dir := filepath.Join(proc, name, "ns")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(ns, filepath.Join(dir, "pid")); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range rollups {
		if err := os.WriteFile(filepath.Join(proc, name, "smaps_rollup"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return proc
}

func TestUsageLeavesContainersOut(t *testing.T) {
	proc := procTree(t,
		map[string]string{"self": "pid:[1]", "10": "pid:[1]", "11": "pid:[1]", "12": "pid:[2]", "13": "pid:[1]"},
		map[string]string{"10": "Pss: 100 kB\n", "11": "Pss: 20 kB\n", "12": "Pss: 3 kB\n"}) // 13 ends meanwhile, 14 has ended
	table := make(map[int]process)
	for _, pid := range []int{10, 11, 12, 13, 14} {
		table[pid] = process{pid: pid, cpu: time.Duration(pid)}
	}
	got, err := usageOf(proc, table, slices.Collect(maps.Keys(table)))
	if want := (usage{pss: 120, cpu: 21, n: 2}); got != want || err != nil {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

func TestUsageOfBrokenProcess(t *testing.T) {
	proc := procTree(t, map[string]string{"self": "pid:[1]", "10": "pid:[1]"}, map[string]string{"10": "nothing\n"})
	if got, err := usageOf(proc, nil, []int{10}); !errors.Is(err, errSmaps) {
		t.Errorf("%+v, %v, want %v", got, err, errSmaps)
	}
}

func TestKernelMemory(t *testing.T) {
	for _, test := range []struct {
		text string
		want int64
		err  error
	}{
		{"MemTotal: 9 kB\nSlab:  100 kB\nKernelStack:   20 kB\nPageTables:  3 kB\n", 123, nil},
		{"Slab:  100 kB\nPageTables:  3 kB\n", 0, errMeminfo},
	} {
		proc := t.TempDir()
		if err := os.WriteFile(filepath.Join(proc, "meminfo"), []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := kernelMemory(proc); got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%q: %d, %v, want %d, %v", test.text, got, err, test.want, test.err)
		}
	}
}

func TestLoadAverage(t *testing.T) {
	proc := t.TempDir()
	if err := os.WriteFile(filepath.Join(proc, "loadavg"), []byte("1.25 2.50 3.75 1/100 4242\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := loadAverage(proc); got != 1.25 || err != nil {
		t.Errorf("%v, %v, want 1.25", got, err)
	}
}
