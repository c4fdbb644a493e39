// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/cgroup"
)

func some[T any](v T) cgroup.Opt[T] { return cgroup.Opt[T]{V: v, OK: true} }

const (
	pressure = "some avg10=1.50 avg60=0.23 avg300=0.13 total=3553680\nfull avg10=0.25 avg60=0.10 avg300=100.00 total=7\n"
	statV2   = "anon 4096\nfile 8192\nkernel 512\nsock 0\ninactive_anon 1\nactive_anon 2\ninactive_file 3000\nactive_file 5192\n" +
		"unevictable 0\nworkingset_refault_file 9\npgfault 77\npgmajfault 3\npgrefill 1\n"
	statV1 = "cache 1\nrss 2\ninactive_file 3\npgfault 4\npgmajfault 5\nswap 6\nhierarchical_memory_limit 7\n" +
		"total_cache 9000\ntotal_rss 4096\ntotal_swap 512\ntotal_pgfault 77\ntotal_pgmajfault 3\ntotal_inactive_file 3000\ntotal_active_file 5192\n"
)

func parsed() cgroup.PSI {
	return cgroup.PSI{
		Some: cgroup.Pressure{Avg10: 1.5, Avg60: 0.23, Avg300: 0.13, Total: 3553680000},
		Full: some(cgroup.Pressure{Avg10: 0.25, Avg60: 0.1, Avg300: 100, Total: 7000}),
	}
}

func filesV2() map[string]string {
	return map[string]string{
		"cgroup.procs":        "",
		"cpu.stat":            "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnr_periods 0\n",
		"cpu.pressure":        pressure,
		"memory.current":      "10000\n",
		"memory.stat":         statV2,
		"memory.max":          "20000\n",
		"memory.pressure":     pressure,
		"memory.swap.current": "512\n",
		"memory.swap.max":     "1024\n",
		"pids.current":        "5\n",
		"pids.max":            "max\n",
		"io.pressure":         pressure,
	}
}

func wantV2() cgroup.Stats {
	return cgroup.Stats{
		CPU: some(cgroup.CPU{Usage: 1234567000, PSI: some(parsed())}),
		Memory: some(cgroup.Memory{
			Usage: 10000, WorkingSet: 7000, RSS: 4096, PageFaults: 77, MajorPageFaults: 3,
			Limit: some[uint64](20000), Available: some[uint64](13000), PSI: some(parsed()),
		}),
		Swap: some(cgroup.Swap{Usage: 512, Available: some[uint64](512)}),
		Pids: some(cgroup.Pids{Current: 5}),
		IO:   some(parsed()),
	}
}

// stats reads and takes the time out, which it checks.
func stats(t *testing.T, g cgroup.Group) cgroup.Stats {
	t.Helper()
	before := time.Now()
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.Time.Before(before) || s.Time.After(time.Now()) {
		t.Errorf("time %v is not of this reading", s.Time)
	}
	s.Time = time.Time{}
	return s
}

func TestStatsV2(t *testing.T) {
	var none cgroup.Opt[uint64]
	tests := map[string]struct {
		change map[string]string // "" removes the file
		want   func(*cgroup.Stats)
	}{
		"all":             {nil, func(*cgroup.Stats) {}},
		"limited pids":    {map[string]string{"pids.max": "99\n"}, func(s *cgroup.Stats) { s.Pids.V.Limit = some[uint64](99) }},
		"no pids":         {map[string]string{"pids.current": "", "pids.max": ""}, func(s *cgroup.Stats) { s.Pids = cgroup.Opt[cgroup.Pids]{} }},
		"no memory limit": {map[string]string{"memory.max": "max\n"}, func(s *cgroup.Stats) { s.Memory.V.Limit, s.Memory.V.Available = none, none }},
		"above the limit": {map[string]string{"memory.max": "6000\n"}, func(s *cgroup.Stats) { s.Memory.V.Limit, s.Memory.V.Available = some[uint64](6000), some[uint64](0) }},
		"only cold cache": {map[string]string{"memory.current": "2000\n"}, func(s *cgroup.Stats) {
			s.Memory.V.Usage, s.Memory.V.WorkingSet, s.Memory.V.Available = 2000, 0, some[uint64](20000)
		}},
		"no memory":       {map[string]string{"memory.current": "", "memory.stat": "", "memory.max": "", "memory.swap.current": "", "memory.swap.max": ""}, func(s *cgroup.Stats) { s.Memory, s.Swap = cgroup.Opt[cgroup.Memory]{}, cgroup.Opt[cgroup.Swap]{} }},
		"no swap":         {map[string]string{"memory.swap.current": "", "memory.swap.max": ""}, func(s *cgroup.Stats) { s.Swap = cgroup.Opt[cgroup.Swap]{} }},
		"no swap limit":   {map[string]string{"memory.swap.max": "max\n"}, func(s *cgroup.Stats) { s.Swap.V.Available = none }},
		"swap over limit": {map[string]string{"memory.swap.max": "0\n"}, func(s *cgroup.Stats) { s.Swap.V.Available = some[uint64](0) }},
		"no PSI": {map[string]string{"cpu.pressure": "", "memory.pressure": "", "io.pressure": ""}, func(s *cgroup.Stats) {
			s.CPU.V.PSI, s.Memory.V.PSI, s.IO = cgroup.Opt[cgroup.PSI]{}, cgroup.Opt[cgroup.PSI]{}, cgroup.Opt[cgroup.PSI]{}
		}},
		"old CPU PSI":       {map[string]string{"cpu.pressure": strings.SplitAfter(pressure, "\n")[0]}, func(s *cgroup.Stats) { s.CPU.V.PSI.V.Full = cgroup.Opt[cgroup.Pressure]{} }},
		"a larger stat":     {map[string]string{"memory.stat": strings.Repeat("some_new_counter_of_a_later_kernel 12345678901234567890\n", 400) + statV2}, func(*cgroup.Stats) {}},
		"huge PSI total":    {map[string]string{"io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=18446744073709551615\n"}, func(s *cgroup.Stats) { s.IO = some(cgroup.PSI{Some: cgroup.Pressure{Total: 1<<64 - 1}}) }},
		"a new PSI average": {map[string]string{"io.pressure": strings.ReplaceAll(pressure, "avg10=", "avg1=9.00 avg10=")}, func(*cgroup.Stats) {}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			files := filesV2()
			maps.Copy(files, tt.change)
			maps.DeleteFunc(files, func(name, text string) bool { return text == "" && name != "cgroup.procs" })
			want := wantV2()
			tt.want(&want)
			if got := stats(t, v2(t, tree(t, files))); got != want {
				t.Errorf("\n got %+v\nwant %+v", got, want)
			}
		})
	}
}

func filesV1() map[string]string {
	return map[string]string{
		"cpuacct/cgroup.procs":                "",
		"cpuacct/cpuacct.usage":               "1234567890\n",
		"memory/cgroup.procs":                 "",
		"memory/memory.usage_in_bytes":        "10000\n",
		"memory/memory.stat":                  statV1,
		"memory/memory.limit_in_bytes":        "20000\n",
		"memory/memory.memsw.limit_in_bytes":  "21024\n",
		"memory/memory.memsw.usage_in_bytes":  "10512\n",
		"memory/memory.kmem.usage_in_bytes":   "1\n",
		"pids/cgroup.procs":                   "",
		"pids/pids.current":                   "5\n",
		"pids/pids.max":                       "99\n",
		"unified/cgroup.procs":                "",
		"unified/cpu.pressure":                pressure,
		"freezer/cgroup.procs":                "",
		"freezer/freezer.state":               "THAWED\n",
		"freezer/exec-1/cgroup.procs":         "",
		"freezer/exec-1/freezer.state":        "THAWED\n",
		"name=systemd/cgroup.procs":           "",
		"memory/inner/memory.usage_in_bytes":  "1\n",
		"cpuacct/inner/cgroup.clone_children": "0\n",
	}
}

func groupV1(t testing.TB, root string) cgroup.Group {
	t.Helper()
	paths := make(map[string]string)
	for _, c := range []string{"cpuacct", "memory", "pids", "freezer", "name=systemd"} {
		paths[c] = filepath.Join(root, c)
	}
	paths[""] = filepath.Join(root, "unified")
	return fromPaths(t, paths)
}

func TestStatsV1(t *testing.T) {
	var none cgroup.Opt[uint64]
	const noLimit = "9223372036854771712\n"
	base := cgroup.Stats{
		CPU: some(cgroup.CPU{Usage: 1234567890}),
		Memory: some(cgroup.Memory{
			Usage: 10000, WorkingSet: 7000, RSS: 4096, PageFaults: 77, MajorPageFaults: 3,
			Limit: some[uint64](20000), Available: some[uint64](13000),
		}),
		Swap: some(cgroup.Swap{Usage: 512, Available: some[uint64](512)}),
		Pids: some(cgroup.Pids{Current: 5, Limit: some[uint64](99)}),
	}
	tests := map[string]struct {
		change map[string]string
		want   func(*cgroup.Stats)
	}{
		"all": {nil, func(*cgroup.Stats) {}},
		"no limits": {
			map[string]string{"memory/memory.limit_in_bytes": noLimit, "memory/memory.memsw.limit_in_bytes": noLimit, "pids/pids.max": "max\n"},
			func(s *cgroup.Stats) {
				s.Memory.V.Limit, s.Memory.V.Available, s.Swap.V.Available, s.Pids.V.Limit = none, none, none, none
			},
		},
		"no swap limit": {map[string]string{"memory/memory.memsw.limit_in_bytes": noLimit}, func(s *cgroup.Stats) { s.Swap.V.Available = none }},
		"no swap":       {map[string]string{"memory/memory.memsw.limit_in_bytes": "20000\n"}, func(s *cgroup.Stats) { s.Swap.V.Available = some[uint64](0) }},
		"swap is not accounted": {
			map[string]string{"memory/memory.memsw.limit_in_bytes": ""},
			func(s *cgroup.Stats) { s.Swap = cgroup.Opt[cgroup.Swap]{} },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			files := filesV1()
			maps.Copy(files, tt.change)
			maps.DeleteFunc(files, func(name, text string) bool { return text == "" && filepath.Base(name) != "cgroup.procs" })
			want := base
			tt.want(&want)
			if got := stats(t, groupV1(t, tree(t, files))); got != want {
				t.Errorf("\n got %+v\nwant %+v", got, want)
			}
		})
	}
	t.Run("without the controllers", func(t *testing.T) {
		g := fromPaths(t, map[string]string{"freezer": tree(t, nil)})
		if got := stats(t, g); got != (cgroup.Stats{}) {
			t.Errorf("got %+v", got)
		}
	})
}

func TestStatsGone(t *testing.T) {
	root := tree(t, filesV2())
	if _, err := v2(t, root+"/none").Stats(); !errors.Is(err, cgroup.ErrGone) {
		t.Errorf("v2: %v", err)
	}
	// What a reader sees that opened the folder before it was removed: an empty one.
	if _, err := v2(t, t.TempDir()).Stats(); !errors.Is(err, cgroup.ErrGone) {
		t.Errorf("v2, removed while read: %v", err)
	}
	for _, c := range []string{"cpuacct", "memory", "pids"} {
		root := tree(t, filesV1())
		g := groupV1(t, root)
		if err := os.Rename(filepath.Join(root, c), filepath.Join(root, "away")); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Stats(); !errors.Is(err, cgroup.ErrGone) {
			t.Errorf("v1 without %s: %v", c, err)
		}
	}
}

func TestStatsRefusesWhatItCannotRead(t *testing.T) {
	for file, text := range map[string]string{
		"memory.current":  "many\n",
		"memory.max":      "-1\n",
		"pids.current":    "18446744073709551616\n",
		"cpu.pressure":    "some avg10=x avg60=0.00 avg300=0.00 total=0\n",
		"io.pressure":     "some avg10=0.00 avg60=0.00 total=0\n",
		"memory.pressure": "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
	} {
		files := filesV2()
		files[file] = text
		_, err := v2(t, tree(t, files)).Stats()
		if err == nil || errors.Is(err, cgroup.ErrGone) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s with %q: %v", file, text, err)
		}
	}
}

func BenchmarkStatsV2Files(b *testing.B) { benchmarkStats(b, v2(b, tree(b, filesV2()))) }

func BenchmarkStatsV1Files(b *testing.B) { benchmarkStats(b, groupV1(b, tree(b, filesV1()))) }

func benchmarkStats(b *testing.B, g cgroup.Group) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Stats(); err != nil {
			b.Fatal(err)
		}
	}
}
