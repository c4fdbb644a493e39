// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// configFor is a small run with logs in a folder of the test.
func configFor(t *testing.T, phases ...string) *config {
	t.Helper()
	dir := t.TempDir()
	return &config{
		image: "busybox", pods: 2, rounds: 1, lives: 3, execs: 10, logLines: 1000,
		phases: phases, logDir: dir, disk: dir, timeout: 30 * time.Second,
	}
}

// none checks that a run left nothing.
func none(t *testing.T, cfg *config, fakes ...*fakeRuntime) {
	t.Helper()
	for _, f := range fakes {
		if n := len(f.state.Pods) + len(f.state.Containers); n > 0 {
			t.Errorf("%s is left with %d pods and containers: %+v", f.name, n, f.state)
		}
	}
	entries, err := os.ReadDir(cfg.logDir)
	if err != nil || len(entries) > 0 {
		t.Errorf("in the folder of logs there are %v, %v", entries, err)
	}
}

func TestTwoEndpointsInTurn(t *testing.T) {
	a, b := newFake("first"), newFake("second")
	b.torn = true
	b.images["some/image:1"] = true
	cfg := configFor(t, "life-host", "life-host-8", "life-cni", "life-cni-8", "exec", "memory", "lists", "pull", "logs")
	cfg.rounds, cfg.pulls = 2, []string{"some/image:1"}
	targets := []target{{address: a.serve(t)}, {address: b.serve(t)}}
	r, err := runBench(t.Context(), cfg, targets, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Failures) > 0 {
		t.Errorf("failures: %+v", r.Failures)
	}
	none(t, cfg, a, b)
	for _, f := range []*fakeRuntime{a, b} {
		if f.most != cfg.lives || f.images["some/image:1"] {
			t.Errorf("%s had %d pods at once, of %d; images %v", f.name, f.most, cfg.lives, f.images)
		}
	}

	var got []string
	for _, res := range r.Results {
		if res.Phase == "exec" {
			got = append(got, res.Endpoint)
		}
	}
	if want := []string{targets[0].address, targets[1].address, targets[1].address, targets[0].address}; !slices.Equal(got, want) {
		t.Errorf("the order of the endpoints is %v, want %v", got, want)
	}

	got = nil
	for _, c := range r.Ratios {
		got = append(got, c.Phase+"/"+c.Name)
	}
	var want []string
	for _, p := range []string{"life-host", "life-host-8", "life-cni", "life-cni-8"} {
		for _, name := range []string{
			"RunPodSandbox", "CreateContainer+StartContainer", "ExecSync true", "StopContainer", "RemoveContainer",
			"StopPodSandbox+RemovePodSandbox", "whole pod life", "pods per second",
		} {
			want = append(want, p+"/"+name)
		}
	}
	want = append(want,
		"exec/ExecSync true", "exec/execs per second", "exec/CPU per exec",
		"memory/PSS without pods", "memory/PSS per idle pod", "memory/kernel memory per idle pod",
		"lists/ListContainers", "lists/ListPodSandbox", "lists/ListPodSandboxStats", "lists/lists and all statuses",
		"pull/pull some/image:1",
		"logs/log throughput", "logs/lines torn", "logs/CPU per GB of log")
	if !slices.Equal(got, want) {
		t.Errorf("compared are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	for _, test := range []struct {
		endpoint, phase, name string
		samples               int
		low, high             float64
	}{
		{a.name, "life-host", "RunPodSandbox", 3, 1e-3, 1e5},
		{a.name, "life-cni-8", "whole pod life", 3, 1e-3, 1e5},
		{a.name, "exec", "ExecSync true", 10, 1e-3, 1e5},
		{a.name, "memory", "PSS without pods", 1, 1000, 1e7}, // this process
		{a.name, "logs", "log throughput", 1, 1e-3, 0.11},    // 0.1 MB in a second, or more
		{a.name, "logs", "lines torn", 1, 0, 0},
		{b.name, "logs", "lines torn", 1, 1, 1},
	} {
		i := map[string]int{a.name: 0, b.name: 1}[test.endpoint]
		f, ok := r.figure(test.phase, targets[i].address, test.name)
		if !ok || f.P50 < test.low || f.P50 > test.high || f.Rounds != 2 || f.Single != (test.samples == 1) {
			t.Errorf("%+v: %+v", test, f)
		}
		for _, res := range r.Results {
			for _, m := range res.Measures {
				if res.Phase == test.phase && m.Name == test.name && m.Samples != test.samples {
					t.Errorf("%+v: %+v", test, m)
				}
			}
		}
	}
}

func TestFailedPhaseIsReportedAndTheOthersGoOn(t *testing.T) {
	for _, test := range []struct {
		method     string
		failed, ok []string
	}{
		{"ExecSync", []string{"life-host", "life-cni-8", "exec"}, []string{"memory", "lists", "logs"}},
		{"StartContainer", []string{"life-host", "life-cni-8", "exec", "memory", "lists", "logs"}, nil},
		{"ListPodSandboxStats", []string{"lists"}, []string{"life-host", "life-cni-8", "exec", "memory", "logs"}},
		{"Status", []string{"exec", "memory", "lists", "logs"}, []string{"life-host", "life-cni-8"}},
	} {
		f := newFake("broken")
		f.fail = test.method
		cfg := configFor(t, "life-host", "life-cni-8", "exec", "memory", "lists", "logs")
		r, err := runBench(t.Context(), cfg, []target{{address: f.serve(t)}}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		var failed, ok []string
		for _, failure := range r.Failures {
			failed = append(failed, failure.Phase)
			if !strings.Contains(failure.Error, errFake.Error()) || failure.Round != 1 {
				t.Errorf("%s: %+v", test.method, failure)
			}
		}
		for _, res := range r.Results {
			ok = append(ok, res.Phase)
		}
		if !slices.Equal(failed, test.failed) || !slices.Equal(ok, test.ok) {
			t.Errorf("%s: failed are %v, measured %v, want %v and %v", test.method, failed, ok, test.failed, test.ok)
		}
		none(t, cfg, f)
	}
}

func TestFailedPhaseLeavesNoPodsToTheNext(t *testing.T) {
	f := newFake("broken")
	f.fail = "StartContainer"
	if _, err := runBench(t.Context(), configFor(t, "memory", "lists"), []target{{address: f.serve(t)}}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if f.most != 1 {
		t.Errorf("%d pods stood at once", f.most)
	}
}

func TestShortListIsAFailure(t *testing.T) {
	f := newFake("forgetful")
	f.short = true
	r, err := runBench(t.Context(), configFor(t, "lists"), []target{{address: f.serve(t)}}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Failures) != 1 || !strings.Contains(r.Failures[0].Error, "1 listed of 2") {
		t.Errorf("failures: %+v", r.Failures)
	}
}

func TestWhatCannotBeRemovedIsReported(t *testing.T) {
	f := newFake("clinging")
	f.fail = "RemovePodSandbox"
	cfg := configFor(t, "exec")
	r, err := runBench(t.Context(), cfg, []target{{address: f.serve(t)}}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Failures, func(f failure) bool {
		return f.Phase == "end" && strings.Contains(f.Error, "clean up: pod pod1")
	})
	if i < 0 {
		t.Errorf("failures: %+v", r.Failures)
	}
}

func TestLeftoversGoAndOthersStay(t *testing.T) {
	f := newFake("used")
	f.state.Pods["left"] = &fakePod{Labels: map[string]string{label: "of a run that died"}}
	f.state.Pods["other"] = &fakePod{Labels: map[string]string{"app": "web"}}
	if _, err := runBench(t.Context(), configFor(t, "life-host"), []target{{address: f.serve(t)}}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if len(f.state.Pods) != 1 || f.state.Pods["other"] == nil {
		t.Errorf("there are %v", f.state.Pods)
	}
	if i, j := slices.Index(f.calls, "RemovePodSandbox"), slices.Index(f.calls, "RunPodSandbox"); i > j {
		t.Errorf("the first pod was made before the leftovers went: %v", f.calls)
	}
}

func TestMissingLogLinesAreAFailure(t *testing.T) {
	f := newFake("losing")
	f.logLines = 999
	cfg := configFor(t, "logs")
	cfg.timeout = time.Second
	r, err := runBench(t.Context(), cfg, []target{{address: f.serve(t)}}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Failures) != 1 || !strings.Contains(r.Failures[0].Error, "999 whole, 0 torn, 0 others") {
		t.Errorf("failures: %+v", r.Failures)
	}
	none(t, cfg, f)
}

func TestFloor(t *testing.T) {
	cfg := configFor(t, "floor")
	s := &session{cfg: cfg, logs: cfg.logDir}
	sheet := newSheet()
	if err := s.floorOfLogs(t.Context(), sheet); err != nil {
		t.Error(err)
	}
	want := []string{floorLog}
	// Namespaces are root's to make.
	switch err := floor(t.Context(), s, sheet); {
	case err == nil:
		want = append(want, floorCreate, floorExec)
	case !errors.Is(err, syscall.EPERM):
		t.Error(err)
	}
	measures := sheet.result(result{}).Measures
	for _, name := range want {
		if !slices.ContainsFunc(measures, func(m measure) bool { return m.Name == name && m.P50 > 0 }) {
			t.Errorf("no %s in %+v", name, measures)
		}
	}
	none(t, cfg)
}

func TestRunWritesTableAndJSON(t *testing.T) {
	f := newFake("berth")
	address := f.serve(t)
	file := filepath.Join(t.TempDir(), "result.json")
	var out, progress bytes.Buffer
	args := []string{
		"-endpoint", address, "-image", "new:1", "-lives", "2", "-rounds", "1", "-phases", "life-host",
		"-log-dir", t.TempDir(), "-json", file,
	}
	if status := run(t.Context(), args, &out, &progress); status != 0 {
		t.Errorf("status %d: %s", status, &progress)
	}
	if !strings.Contains(out.String(), "A: berth 1.0 at "+address) || !strings.Contains(out.String(), "whole pod life") {
		t.Errorf("printed:\n%s", &out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if f, ok := r.figure("life-host", address, "whole pod life"); !ok || f.P50 <= 0 || f.P99 < f.P50 {
		t.Errorf("in the file: %s", text)
	}

	f.mu.Lock()
	f.fail = "StopContainer"
	f.mu.Unlock()
	out.Reset()
	if status := run(t.Context(), args, &out, &progress); status != 1 {
		t.Errorf("status %d of a run with a failed phase", status)
	}
	if !strings.Contains(out.String(), "FAILED in round 1: life-host on "+address+": StopContainer: ") {
		t.Errorf("printed:\n%s", &out)
	}
}

func TestFlagsThatMakeNoSense(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", "-endpoint is missing"},
		{"-endpoint tcp://1.2.3.4:5", "not the address of a unix socket"},
		{"-endpoint unix:///nowhere/s", "connect"},
		{"-endpoint unix:///a -peer unix:///a", "-peer is the endpoint itself"},
		{"-endpoint unix:///a -phases lists,nap", `no phase "nap"`},
		{"-endpoint unix:///a -rounds 0", "begin at 1"},
		{"-endpoint unix:///a -log-dir logs", "not absolute"},
		{"-endpoint unix:///a -image i:1 -pull i:1", "-pull takes i:1 away"},
		{"-endpoint unix:///a -pid x", "invalid"},
		{"-endpoint unix:///a rest", `"rest" is not a flag`},
	} {
		var out, errOut bytes.Buffer
		if status := run(t.Context(), strings.Fields(test.args), &out, &errOut); status != 2 || !strings.Contains(errOut.String(), test.want) {
			t.Errorf("%s: status %d, %s, want %s", test.args, status, &errOut, test.want)
		}
	}
}
