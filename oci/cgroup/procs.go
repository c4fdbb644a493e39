// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

const procsFile = "cgroup.procs"

// readProcs lists the processes in one folder, not below it. Gone is empty. A process that is
// not visible in our PID namespace is a 0. ErrThreaded for a threaded v2 folder, whose processes
// are listed by the threaded domain above it only.
func readProcs(dir string) ([]int, error) {
	var buf [512]byte
	path := dir + "/" + procsFile
	text, err := readFile(path, buf[:])
	switch {
	case err == nil:
	case isGone(err):
		return nil, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("%s: %w", dir, ErrThreaded)
	default:
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	var pids []int
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		n, ok := parseUint(line)
		if !ok || n > 1<<31-1 {
			return nil, fmt.Errorf("%s: line %q", path, string(line))
		}
		pids = append(pids, int(n))
	}
	return pids, nil
}

// treeProcs lists the processes of a folder and all below it, up to so many of them. What is threaded
// below it is listed by a domain between.
func treeProcs(dir string, most int) ([]int, error) {
	dirs, err := walk(dir)
	if err != nil {
		return nil, err
	}
	var pids []int
	for i, d := range dirs {
		p, err := readProcs(d)
		if i > 0 && errors.Is(err, ErrThreaded) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if pids = append(pids, p...); len(pids) >= most {
			return pids[:most], nil
		}
	}
	return pids, nil
}

// killBatch bounds how many descriptors killProcs holds at once.
const killBatch = 128

// killProcs sends SIGKILL to every process in one folder and says how many were listed there.
//
// A pid read from a list may belong to someone else by the time a signal is sent to it. So: read
// the list, open a pidfd for each pid, read the list again, and signal through the pidfds of
// those that are in both. If the process behind the pidfd is alive when the signal is sent, it
// was alive, and so owned its pid, at the second reading, where that pid was in the group: it
// was a member. If it is dead the signal goes nowhere (ESRCH), whoever may have the pid by then.
// This needs nothing of the freezer: a frozen process can still end (the OOM killer thaws its
// victim) or be moved out of the group.
func killProcs(dir string) (int, error) {
	pids, err := readProcs(dir)
	if err != nil {
		return 0, err
	}
	for batch := range slices.Chunk(pids, killBatch) {
		if err := killSome(dir, batch); err != nil {
			return len(pids), err
		}
	}
	return len(pids), nil
}

func killSome(dir string, pids []int) error {
	type target struct{ pid, fd int }
	targets := make([]target, 0, len(pids))
	defer func() {
		for _, t := range targets {
			unix.Close(t.fd)
		}
	}()
	for _, pid := range pids {
		if pid == 0 {
			continue
		}
		switch fd, err := unix.PidfdOpen(pid, 0); err {
		case nil:
			targets = append(targets, target{pid, fd})
		case unix.ESRCH, unix.EINVAL, unix.ENOENT: // ended; the last two: its pid is now a thread's
		default:
			return fmt.Errorf("pidfd of %d: %w", pid, err)
		}
	}
	again, err := readProcs(dir)
	if err != nil {
		return err
	}
	slices.Sort(again)
	for _, t := range targets {
		if _, member := slices.BinarySearch(again, t.pid); !member {
			continue
		}
		if err := unix.PidfdSendSignal(t.fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill %d: %w", t.pid, err)
		}
	}
	return nil
}

// killTree is killProcs for a folder and all below it.
func killTree(dir string) (int, error) {
	dirs, err := walk(dir)
	if err != nil {
		return 0, err
	}
	total := 0
	for i, d := range dirs {
		n, err := killProcs(d)
		if i > 0 && errors.Is(err, ErrThreaded) {
			continue
		}
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// guard refuses what must never be killed or removed, and tells whether there is anything to do:
// the processes that are in the group now, at most so many.
func (g Group) guard(most int) ([]int, error) {
	if g.version == 0 {
		return nil, errZero
	}
	self := os.Getpid()
	var all []int
	for _, dir := range g.dirs() {
		if err := refuseRoot(dir); err != nil {
			return nil, err
		}
		// No bound on this reading: our own pid may be the last.
		pids, err := treeProcs(dir, 1<<30)
		if err != nil {
			return nil, err
		}
		if slices.Contains(pids, self) {
			return nil, fmt.Errorf("%s: %w", dir, ErrSelf)
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return all[:min(most, len(all))], nil
}

// refuseRoot knows a hierarchy's root by its files: of v1 only the root has a release_agent, of
// v2 only the root has no cgroup.events.
func refuseRoot(dir string) error {
	root := exists(dir + "/release_agent")
	if exists(dir+"/cgroup.controllers") && !exists(dir+"/"+eventsFile) {
		// Unless it was removed between the two looks.
		root = exists(dir)
	}
	if root {
		return fmt.Errorf("%s: %w", dir, ErrRoot)
	}
	return nil
}

// remain describes who is still in the group. It is for a message, so what it cannot read is left out.
func (g Group) remain(cause error) *RemainError {
	e := &RemainError{Group: g.String(), Err: cause}
	var pids []int
	for _, dir := range g.dirs() {
		p, _ := treeProcs(dir, maxRemain)
		pids = append(pids, p...)
	}
	slices.Sort(pids)
	pids = slices.Compact(pids)
	for _, pid := range pids[:min(maxRemain, len(pids))] {
		e.Processes = append(e.Processes, describe(pid))
	}
	if fz, ok := g.path("freezer"); ok && g.version == V1 {
		var buf [8]byte
		text, _ := readFile(fz+"/freezer.parent_freezing", buf[:])
		e.Frozen = string(text) == "1\n"
	}
	return e
}

// describe reads /proc/PID/stat. The pid may be another's by now: good enough for a message.
func describe(pid int) Process {
	p := Process{PID: pid}
	if pid == 0 {
		return p
	}
	var buf [512]byte
	text, err := readFile("/proc/"+strconv.Itoa(pid)+"/stat", buf[:])
	if err != nil {
		return p
	}
	p.Comm, p.State, _ = parseStat(text)
	return p
}

// parseStat takes "12 (a) b) S 1 …" apart. The name is what stands between the first and the
// last parenthesis: it may hold both kinds, and blanks.
func parseStat(text []byte) (comm string, state byte, ok bool) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open || end+2 >= len(text) {
		return "", 0, false
	}
	return string(text[open+1 : end]), text[end+2], true
}
