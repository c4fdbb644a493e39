// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	errSmaps   = errors.New("smaps_rollup has no line Pss")
	errStat    = errors.New("malformed stat line")
	errMeminfo = errors.New("meminfo lacks a line")
)

// tick is the kernel's USER_HZ, which is the same on all architectures that Go runs on.
const tick = 10 * time.Millisecond

// parsePSS reads /proc/PID/smaps_rollup (since kernel 4.14) and returns the line Pss, in kB.
func parsePSS(rollup []byte) (int64, error) {
	kB, err := meminfoLine(rollup, "Pss")
	if errors.Is(err, errMeminfo) {
		return 0, errSmaps
	}
	return kB, err
}

// meminfoLine returns a line `NAME:   123 kB` of smaps_rollup or /proc/meminfo, in kB.
func meminfoLine(text []byte, name string) (int64, error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name+":")
		if !ok {
			continue
		}
		number, ok := strings.CutSuffix(strings.TrimSpace(rest), " kB")
		if !ok {
			return 0, fmt.Errorf("%w: %s has another unit", errMeminfo, name)
		}
		return strconv.ParseInt(number, 10, 64)
	}
	return 0, fmt.Errorf("%w: %s", errMeminfo, name)
}

// kernelMemory returns what the whole machine's kernel holds for its objects, in kB: slab, page tables
// and kernel stacks. Whatever else runs moves it too.
func kernelMemory(proc string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(proc, "meminfo"))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, name := range []string{"Slab", "PageTables", "KernelStack"} {
		kB, err := meminfoLine(text, name)
		if err != nil {
			return 0, err
		}
		sum += kB
	}
	return sum, nil
}

// process is what /proc/PID/stat tells (proc_pid_stat(5)).
type process struct {
	pid, parent int
	comm        string // 15 bytes of its name
	cpu         time.Duration
}

// parseStat reads one line of /proc/PID/stat. The name in parentheses may itself contain parentheses:
// it ends at the last closing one. cpu includes the children that it has waited for: what an exec
// costs is mostly theirs.
func parseStat(line []byte) (process, error) {
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return process{}, errStat
	}
	// After the name: state is field 3, ppid 4, utime 14, stime 15, cutime 16, cstime 17.
	rest := strings.Fields(string(line[end+1:]))
	if len(rest) < 15 {
		return process{}, errStat
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:open])))
	parent, err2 := strconv.Atoi(rest[1])
	p := process{pid: pid, parent: parent, comm: string(line[open+1 : end])}
	if err := errors.Join(err, err2); err != nil {
		return process{}, fmt.Errorf("%w: %w", errStat, err)
	}
	for _, field := range rest[11:15] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return process{}, fmt.Errorf("%w: %w", errStat, err)
		}
		p.cpu += time.Duration(ticks) * tick
	}
	return p, nil
}

// processTable reads all processes. One that ends while it is read is left out.
func processTable(proc string) (map[int]process, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	table := make(map[int]process, len(entries))
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join(proc, e.Name(), "stat"))
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p, err := parseStat(line)
		if err != nil {
			return nil, fmt.Errorf("process %s: %w", e.Name(), err)
		}
		table[p.pid] = p
	}
	return table, nil
}

// gone tells the errors of reading about a process that has ended.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) }

// family returns the roots, the processes with one of the names, and the descendants of all these;
// sorted. A name that was cut by the kernel is matched as cut.
func family(table map[int]process, roots []int, names []string) []int {
	member := make(map[int]bool)
	for _, pid := range roots {
		if _, lives := table[pid]; lives {
			member[pid] = true
		}
	}
	for pid, p := range table {
		if slices.ContainsFunc(names, func(name string) bool { return p.comm == name[:min(len(name), 15)] }) {
			member[pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for pid, p := range table {
			if !member[pid] && member[p.parent] {
				member[pid], grown = true, true
			}
		}
	}
	return slices.Sorted(maps.Keys(member))
}

// usage is what some processes use together.
type usage struct {
	pss int64 // kB
	cpu time.Duration
	n   int
}

// usageOf adds up the processes that are no containers: those that share the PID namespace of proc's
// own process. One that ends while it is read is left out.
func usageOf(proc string, table map[int]process, pids []int) (usage, error) {
	host, err := os.Readlink(filepath.Join(proc, "self/ns/pid"))
	if err != nil {
		return usage{}, err
	}
	var sum usage
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		ns, err := os.Readlink(filepath.Join(dir, "ns/pid"))
		if err == nil && ns != host {
			continue
		}
		var text []byte
		if err == nil {
			text, err = os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		}
		if gone(err) {
			continue
		}
		if err != nil {
			return usage{}, err
		}
		pss, err := parsePSS(text)
		if err != nil {
			return usage{}, fmt.Errorf("process %d: %w", pid, err)
		}
		sum.pss, sum.cpu, sum.n = sum.pss+pss, sum.cpu+table[pid].cpu, sum.n+1
	}
	return sum, nil
}

// loadAverage returns that of the last minute.
func loadAverage(proc string) (float64, error) {
	text, err := os.ReadFile(filepath.Join(proc, "loadavg"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	return strconv.ParseFloat(first, 64)
}
