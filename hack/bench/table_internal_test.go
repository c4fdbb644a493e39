// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"
)

// found is a report of two runtimes and three rounds, the last of which failed on the second.
func found() *report {
	r := &report{
		Kernel: "6.18", CPUs: 2, Image: "busybox", Rounds: 3,
		Endpoints: []runtimeOf{{"unix:///a", "berth 1.0"}, {"unix:///b", "other 2.0"}},
	}
	life := func(round int, endpoint string, load, run, create, perSec float64) {
		r.add(result{Round: round, Endpoint: endpoint, Phase: "life-host", Load: load, Fsync: 0.25, Measures: []measure{
			{"RunPodSandbox", milliseconds, 40, quantiles{run, 2 * run, 3 * run}},
			{"CreateContainer+StartContainer", milliseconds, 40, quantiles{create, create, create}},
			{"pods per second", perSecond, 1, quantiles{perSec, perSec, perSec}},
		}})
	}
	for round := 1; round <= 3; round++ {
		r.add(result{Round: round, Endpoint: machine, Phase: "floor", Load: 1, Fsync: 0.25, Measures: []measure{
			{floorCreate, milliseconds, 200, quantiles{2, 3, 4}},
		}})
		life(round, "unix:///a", float64(round), float64(round), 10, 50)
	}
	life(1, "unix:///b", 1, 10, 40, 12)
	life(2, "unix:///b", 2, 6, 40, 8)
	r.fail(3, "unix:///b", "life-host", errors.New("ExecSync true: no"))
	r.sum()
	return r
}

func TestPrint(t *testing.T) {
	var out strings.Builder
	found().print(&out)
	want := `kernel 6.18, 2 CPUs, image busybox, medians of 3 rounds
A: berth 1.0 at unix:///a
B: other 2.0 at unix:///b

floor: what the kernel alone needs (load 1.00, fsync p50 0.250 ms)
                             unit   p50   p95   p99
fork+exec in new namespaces    ms  2.00  3.00  4.00

life-host: lives of pods, network of the host, one at a time (load 2.00, fsync p50 0.250 ms)
                                unit  A p50  A p95  A p99  B p50  B p95  B p99
RunPodSandbox                     ms   2.00   4.00   6.00   8.00   16.0   24.0  only 2 of 3 rounds
CreateContainer+StartContainer    ms   10.0   10.0   10.0   40.0   40.0   40.0  only 2 of 3 rounds
pods per second                   /s   50.0                 10.0                only 2 of 3 rounds

ratios
                                           A/B p50  A/B p99  A/floor  B/floor    A is
life-host: RunPodSandbox                    0.250×   0.250×        -        -  better
life-host: CreateContainer+StartContainer   0.250×   0.250×    5.00×    20.0×  better
life-host: pods per second                   5.00×        -        -        -  better

FAILED in round 3: life-host on unix:///b: ExecSync true: no
`
	if got := out.String(); got != want {
		t.Errorf("printed:\n%s\nwant:\n%s", got, want)
	}
}

func TestPrintWithoutPeer(t *testing.T) {
	r := found()
	r.Endpoints = r.Endpoints[:1]
	r.sum()
	var out strings.Builder
	r.print(&out)
	_, ratios, _ := strings.Cut(out.String(), "\nratios\n")
	if !strings.Contains(ratios, "life-host: CreateContainer+StartContainer        -        -    5.00×        -") ||
		strings.Contains(ratios, "RunPodSandbox") || strings.Contains(out.String(), "  B p50") {
		t.Errorf("printed:\n%s", &out)
	}
}

func TestFigures(t *testing.T) {
	for value, want := range map[float64]string{
		0: "0", 0.01234: "0.012", 0.5: "0.500", 1: "1.00", 12.345: "12.3", 123.4: "123", 123456: "123456", -41.72: "-41.7",
	} {
		if got := figures(value); got != want {
			t.Errorf("%v is printed as %s, want %s", value, got, want)
		}
	}
}

func TestWriteTable(t *testing.T) {
	var out strings.Builder
	writeTable(&out, [][]string{{"", "a"}, {"long", "1×", "more"}, {"x", "100"}, {"y", "", ""}})
	if got, want := out.String(), "        a\nlong   1×  more\nx     100\ny\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
