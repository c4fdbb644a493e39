// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/wire"
)

// Whether the kernel killed in a container for want of memory is read from its
// counters when the container has ended: no notification can be lost, and none can
// be false (on v1 the eventfd also fires when a cgroup goes).
//
// With cgroupfs that is the container's own counter, since only this executor
// removes the cgroup. systemd removes a scope as soon as it is empty, mostly before
// anybody can look. Then what the slice above counts tells, less what is explained
// by its other scopes: an account of what has been explained is kept for each
// slice, and each end is entered there before it is told.
//
// Where even that leaves a doubt (two have ended at once, or the slice is not a
// pod's alone, or gone) the kernel's log says who was killed.

// account is what is known of the kills in a systemd slice.
type account struct {
	Inode uint64             // of the slice's folder; another one counts from 0 again
	Base  cgroup.SliceCounts // what is explained
	Kills map[string]uint64  // by scope: of the containers that have ended and are still here
}

// oomBegin is called before a container's cgroup is made.
func (x *Executor) oomBegin(c *container) error {
	slice, _ := c.slice()
	if slice == "" {
		return nil // a new cgroup counts from 0
	}
	x.oomMu.Lock()
	defer x.oomMu.Unlock()
	a, err := x.account(slice)
	if err != nil {
		return err
	}
	return write(x.files.slice(slice), a)
}

// oomKilled says whether a process of c was killed for want of memory. It may be
// asked again, by the next executor, too.
//
// Preconditions: c's first process has ended, or was never there, and c is not yet
// deleted.
func (x *Executor) oomKilled(c *container, exit *wire.Exit) bool {
	slice, scope := c.slice()
	if slice != "" {
		return x.oomInSlice(c, slice, scope, exit)
	}
	group, err := c.group()
	var kills uint64
	if err == nil {
		kills, err = group.OOMKills()
	}
	if err != nil {
		kills = x.oomByLog(c, exit)
	}
	return kills > 0
}

func (x *Executor) oomInSlice(c *container, slice, scope string, exit *wire.Exit) bool {
	x.oomMu.Lock()
	defer x.oomMu.Unlock()
	a, err := x.account(slice)
	if kills, ok := a.Kills[scope]; ok && err == nil {
		return kills > 0
	}
	var now cgroup.SliceCounts
	if err == nil {
		now, err = readSlice(slice)
	}
	if err != nil {
		// The slice went with its last scope.
		return x.oomByLog(c, exit) > 0
	}
	ours := x.inSlice(slice)
	strangers, ended := maps.Clone(now.Scopes), []string(nil)
	for scope, other := range ours {
		delete(strangers, scope)
		if _, settled := a.Kills[scope]; other != c && !settled && other.hasEnded() {
			ended = append(ended, scope)
		}
	}
	kills, sure := a.Base.Attribute(now, scope, ended...)
	if _, own := now.Scopes[scope]; kills > 0 && !own && !(sure && len(strangers) == 0) {
		kills = min(kills, x.oomByLog(c, exit))
	}
	a.Base, a.Kills[scope] = a.Base.Settle(scope, kills), kills
	maps.DeleteFunc(a.Kills, func(scope string, _ uint64) bool { return ours[scope] == nil })
	if err := write(x.files.slice(slice), a); err != nil {
		klog.ErrorS(err, "out-of-memory kills may be counted twice", "container", c.id)
	}
	return kills > 0
}

// oomEnd closes the account of a slice when it has no container any more. Again is
// no error.
//
// Preconditions: c is no longer known.
func (x *Executor) oomEnd(c *container) error {
	slice, _ := c.slice()
	if slice == "" {
		return nil
	}
	x.oomMu.Lock()
	defer x.oomMu.Unlock()
	if len(x.inSlice(slice)) > 0 {
		return nil
	}
	return remove(x.files.slice(slice))
}

// sweepAccounts closes the accounts that an executor before this one has left open.
func (x *Executor) sweepAccounts() error {
	entries, err := os.ReadDir(filepath.Join(x.files.state, "slice"))
	if err != nil {
		return err
	}
	open := make(map[string]bool)
	for _, c := range x.all() {
		slice, _ := c.slice()
		open[filepath.Base(slice)] = true
	}
	for _, e := range entries {
		if !open[e.Name()] {
			err = errors.Join(err, remove(x.files.slice(e.Name())))
		}
	}
	return err
}

// inSlice returns the containers of a slice by scope.
func (x *Executor) inSlice(slice string) map[string]*container {
	ours := make(map[string]*container)
	for _, c := range x.all() {
		if s, scope := c.slice(); s == slice {
			ours[scope] = c
		}
	}
	return ours
}

// slice returns the path of the slice that c's scope is in, and the scope's name,
// where its own counter cannot be trusted to be there in the end; else "".
func (c *container) slice() (slice, scope string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := c.rec.Cgroup[""]
	if !c.rec.Systemd || len(c.rec.Cgroup) != 1 || path == "" {
		return "", ""
	}
	return filepath.Dir(path), filepath.Base(path)
}

// account reads a slice's account, or opens one.
//
// Preconditions: x.oomMu is held.
func (x *Executor) account(slice string) (account, error) {
	a := account{Kills: make(map[string]uint64)}
	err := read(x.files.slice(slice), &a)
	opened := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	var st unix.Stat_t
	if err := unix.Stat(slice, &st); err != nil && !errors.Is(err, unix.ENOENT) {
		return a, &os.PathError{Op: "stat", Path: slice, Err: err}
	}
	if opened && st.Ino == a.Inode {
		return a, nil
	}
	a.Inode, a.Base = st.Ino, cgroup.SliceCounts{}
	if opened || st.Ino == 0 {
		return a, nil // made since, or not yet: all that it counts is ours
	}
	a.Base, err = readSlice(slice)
	return a, err
}

func readSlice(path string) (cgroup.SliceCounts, error) {
	group, err := cgroup.FromPaths(map[string]string{"": path})
	if err != nil {
		return cgroup.SliceCounts{}, err
	}
	return cgroup.ReadSlice(group)
}

// hasEnded says whether c's first process has ended, and its exit is not yet known.
func (c *container) hasEnded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exit != nil || c.rec.Process.PID == 0 {
		return false
	}
	if c.pidfd < 0 {
		return true
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}, 0)
	return n > 0 && err == nil
}

// oomByLog counts the kills of c that the kernel's log tells of. Where there is no
// log to read, a SIGKILL that nobody is known to have sent is taken for one.
func (x *Executor) oomByLog(c *container, exit *wire.Exit) uint64 {
	c.mu.Lock()
	pid, path, v1 := c.rec.Process.PID, c.rec.Cgroup[""], c.rec.Cgroup["memory"]
	c.mu.Unlock()
	path = strings.TrimPrefix(path, x.host.Root())
	if v1 != "" { // ROOT/memory/path
		_, path, _ = strings.Cut(strings.TrimPrefix(v1, x.host.Root()+"/"), "/")
		path = "/" + path
	}
	records, err := kernelLog()
	if err != nil {
		klog.ErrorS(err, "out-of-memory kills cannot be told from others", "container", c.id)
		if exit.Signal == int(unix.SIGKILL) {
			return 1
		}
		return 0
	}
	return oomKillsIn(records, path, pid)
}

// oomKillsIn counts the kills, of a container's first process and of whatever was
// in its cgroup, in the lines of the kernel's log. The kernel says two things
// (mm/oom_kill.c), the first of them not more than ten times in five seconds:
//
//	oom-kill:constraint=…,oom_memcg=/s.slice,task_memcg=/s.slice/x.scope,task=sh,pid=7,uid=0
//	Memory cgroup out of memory: Killed process 7 (sh) total-vm:…
func oomKillsIn(records []string, cgroup string, pid int) uint64 {
	killed := make(map[int]bool)
	for _, line := range records {
		if _, rest, ok := strings.Cut(line, "ut of memory: Killed process "); ok {
			var n int
			if _, err := fmt.Sscanf(rest, "%d (", &n); err == nil && n == pid {
				killed[n] = true
			}
			continue
		}
		_, rest, ok := strings.Cut(line, ",task_memcg=")
		if !ok || !strings.HasPrefix(line, "oom-kill:") {
			continue
		}
		// The process's name may be anything; its cgroup's has no slash in a component.
		path, rest, _ := strings.Cut(rest, ",task=")
		var n int
		if i := strings.LastIndex(rest, ",pid="); i >= 0 && cgroup != "" && strings.Contains(path+"/", cgroup+"/") {
			if _, err := fmt.Sscanf(rest[i:], ",pid=%d", &n); err == nil {
				killed[n] = true
			}
		}
	}
	return uint64(len(killed))
}

// kernelLog returns the messages of the kernel itself that its log still has.
func kernelLog() ([]string, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/kmsg: %w", err)
	}
	defer unix.Close(fd)
	var lines []string
	for {
		var b [8192]byte // one record a read, and no longer one is made
		n, err := unix.Read(fd, b[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return lines, nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
			continue // overwritten meanwhile
		case err != nil:
			return nil, fmt.Errorf("read /dev/kmsg: %w", err)
		}
		// "PRIORITY,SEQUENCE,TIME,FLAGS;TEXT\n KEY=VALUE\n"; the facility, of which the
		// kernel's is 0, is the priority's higher part.
		head, text, _ := strings.Cut(string(b[:n]), ";")
		var priority int
		if _, err := fmt.Sscanf(head, "%d,", &priority); err != nil || priority>>3 != 0 {
			continue
		}
		text, _, _ = strings.Cut(text, "\n")
		lines = append(lines, text)
	}
}
