// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/wire"
)

// killOrphan ends an exec'd process whose executor died after it had let the
// process go and before it had written down which one it is. Its caller will be told
// that it is lost. A process that had
// not been let go ends by itself: libcontainer's end of its socket is gone.
//
// It is found by what only an exec makes: a process in the container's PID
// namespace whose parent is not in it. Where the container has no PID namespace of
// its own, nothing tells an exec from a daemon of the container, and it is left
// alone. An exec with a cgroup of its own is found by that.
func (x *Executor) killOrphan(e *execProc) error {
	c := e.c
	c.mu.Lock()
	ours := c.execs[e.rec.Exec] == e && !e.lost
	c.mu.Unlock()
	if ours || e.rec.Sub != "" {
		return nil // ours: libcontainer has ended it
	}
	pids, err := c.pids()
	if err != nil || len(pids) == 0 {
		return err
	}
	known, err := x.knownProcesses(c)
	if err != nil {
		return err
	}
	host, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return err
	}
	for _, pid := range pids {
		stat, err := readStat(pid)
		if err != nil || known[wire.Created{PID: pid, Start: stat.start}] || !injected(pid, host) {
			continue // or it has ended
		}
		pidfd, err := sameProcess(pid, stat.start)
		if err != nil {
			continue
		}
		klog.InfoS("a process is killed that was being exec'd when the executor died", "container", c.id, "pid", pid)
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // ended already is as good
		unix.Close(pidfd)
	}
	return nil
}

// injected says whether a process came into its PID namespace from another one,
// host, by setns. One that has ended did not.
func injected(pid int, host string) bool {
	within, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil || within == host {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	const parentField = 1 // after the name and its bracket
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) <= parentField {
		return false
	}
	parent, err := os.Readlink(fmt.Sprintf("/proc/%s/ns/pid", fields[parentField]))
	return err == nil && parent == host
}

// pids lists the processes in a container's own cgroup, not below it.
func (c *container) pids() ([]int, error) {
	group, err := c.group()
	if err != nil {
		return nil, err
	}
	for _, dir := range group.Paths() {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var pids []int
		for _, word := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", dir, err)
			}
			pids = append(pids, pid)
		}
		return pids, nil // in v1 a process is in all of them by the time it is let go
	}
	return nil, nil
}

// knownProcesses are a container's first process and the exec'd ones that have a
// record.
func (x *Executor) knownProcesses(c *container) (map[wire.Created]bool, error) {
	c.mu.Lock()
	known := map[wire.Created]bool{c.rec.Process: true}
	c.mu.Unlock()
	entries, err := os.ReadDir(x.files.execs(c.id))
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), ".exit") || strings.HasSuffix(entry.Name(), ".tmp") {
			continue
		}
		var rec execRecord
		if err := read(x.files.exec(c.id, entry.Name()), &rec); err != nil {
			return nil, err // it may be the one that would be killed
		}
		known[rec.Process] = true
	}
	return known, nil
}
