// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// process is what /proc/PID/stat tells (proc_pid_stat(5)). A pid alone names nobody, because it is
// given out again; pid and start time do.
type process struct {
	pid, parent int
	start       uint64 // clock ticks after boot
	state       byte
	comm        string
}

func (p process) id() string { return fmt.Sprintf("%d@%d", p.pid, p.start) }

var errStat = errors.New("malformed stat line")

// parseStat reads one line of /proc/PID/stat. The name in parentheses may itself contain
// parentheses, spaces and newlines: it ends at the last closing one.
func parseStat(line []byte) (process, error) {
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return process{}, errStat
	}
	// After the name: state is field 3, ppid 4, starttime 22.
	rest := strings.Fields(string(line[end+1:]))
	if len(rest) < 20 {
		return process{}, errStat
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(string(line[:open])))
	parent, err2 := strconv.Atoi(rest[1])
	start, err3 := strconv.ParseUint(rest[19], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return process{}, fmt.Errorf("%w: %w", errStat, err)
	}
	return process{pid: pid, parent: parent, start: start, state: rest[0][0], comm: string(line[open+1 : end])}, nil
}

// processTable reads all processes. One that ends while it is read is left out.
func processTable() (map[int]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	table := make(map[int]process, len(entries))
	for _, e := range entries {
		if c := e.Name()[0]; c < '1' || c > '9' {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		p, err := parseStat(line)
		if err != nil {
			return nil, fmt.Errorf("process %s: %w", e.Name(), err)
		}
		table[p.pid] = p
	}
	return table, nil
}

func processes(sc *scope, all bool) (things, error) {
	table, err := processTable()
	if err != nil {
		return nil, err
	}
	seen := make(things)
	if all {
		for _, p := range table {
			seen[p.id()] = p.comm
		}
		return seen, nil
	}
	self := os.Getpid()
	named := make(map[int]string) // pid → what names it
	for pid := range table {
		if why := sc.names(pid); why != "" {
			named[pid] = why
		}
	}
	for pid, p := range table {
		if pid == self {
			continue
		}
		if why := owner(table, named, self, pid); why != "" {
			seen[p.id()] = p.describe(why)
		}
	}
	return seen, nil
}

// owner says why a process is the test's own: named by an option itself, or descended from the test
// or from one that is named (a container's processes, seen from the executor). Nothing if it is not.
func owner(table map[int]process, named map[int]string, self, pid int) string {
	if why := named[pid]; why != "" {
		return why
	}
	// The bound is for a table that was not read at one moment: reused pids could form a ring.
	for up, steps := table[pid].parent, 0; up > 1 && steps < len(table); steps++ {
		if up == self {
			return "child of the test"
		}
		if why := named[up]; why != "" {
			return fmt.Sprintf("child of pid %d, %s", up, why)
		}
		up = table[up].parent
	}
	return ""
}

// names says by which option a process is the test's own. What may not or can no longer be read does
// not name it.
func (sc *scope) names(pid int) string {
	dir := "/proc/" + strconv.Itoa(pid)
	if len(sc.under) > 0 {
		exe, _ := os.Readlink(dir + "/exe")
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		for _, folder := range sc.under {
			if below(exe, folder) {
				return "runs " + exe
			}
			for arg := range bytes.SplitSeq(cmdline, []byte{0}) {
				if mentions(string(arg), folder) {
					return "names " + folder
				}
			}
		}
	}
	if len(sc.cgroups) > 0 {
		text, _ := os.ReadFile(dir + "/cgroup")
		for _, p := range cgroupPaths(string(text)) {
			if sc.ownCgroup(p) {
				return "in cgroup " + p
			}
		}
	}
	return ""
}

// cgroupPaths reads /proc/PID/cgroup: hierarchy-ID:controllers:path, see cgroups(7). A v2 cgroup that has
// been removed under a zombie is marked, which is no part of its name.
func cgroupPaths(text string) []string {
	var paths []string
	for line := range strings.Lines(text) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 {
			paths = append(paths, strings.TrimSuffix(f[2], " (deleted)"))
		}
	}
	return paths
}

// ownCgroup reports whether a cgroup, given by its path from the root of a hierarchy, or one of its
// ancestors matches a pattern of Cgroups.
func (sc *scope) ownCgroup(p string) bool {
	have := strings.Split(strings.Trim(p, "/"), "/")
	return slices.ContainsFunc(sc.cgroups, func(pattern string) bool {
		want := strings.Split(strings.Trim(pattern, "/"), "/")
		if pattern[0] == '/' {
			return hasPrefix(have, want)
		}
		for i := range have {
			if hasPrefix(have[i:], want) {
				return true
			}
		}
		return false
	})
}

func hasPrefix(have, want []string) bool {
	if len(have) < len(want) {
		return false
	}
	for i, w := range want {
		if ok, _ := path.Match(w, have[i]); !ok {
			return false
		}
	}
	return true
}

func (p process) describe(why string) string {
	what := p.comm
	if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid)); len(cmdline) > 0 {
		what = strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")
	}
	state := ""
	if p.state == 'Z' {
		state = ", zombie"
	}
	return fmt.Sprintf("pid %d (%s%s), %s: %s", p.pid, p.comm, state, why, what)
}
