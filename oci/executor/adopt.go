// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/keeper"
	"github.com/berth-cri/berth/oci/wire"
)

// findTime is how long a takeover waits for the log file of a container of which
// the keeper held nothing.
const findTime = time.Second

// adopt takes over from the executor before this one, if there was one. What can
// be known is in three places, and this is their order of trust: the kernel (is
// the process alive), the descriptors that the keeper held, the records.
//
// A record that cannot be read is left alone and told of: it never stops the
// others from being taken over.
//
// Nothing here waits for a container. What may is left to be done: requests are
// served meanwhile, and only those for a container that is not settled wait for it.
func (x *Executor) adopt(held []keeper.Held) (left []*takeover, err error) {
	names := make(map[string][]int, len(held))
	containers := make(map[string]heldContainer)
	for _, h := range held {
		if id, hc, ok := parseHeld(h.Name, h.FDs); ok {
			containers[id] = hc
			continue
		}
		names[h.Name] = h.FDs
	}
	if err := x.keeper.Put(keeper.MountNamespace, x.mnt.fd); err != nil {
		return nil, err
	}
	for _, fd := range names[keeper.MountNamespace] {
		unix.Close(fd) // the constructor has it, as x.mnt.fd
	}
	pods, err := x.adoptPods(names)
	if err != nil {
		return nil, err
	}
	if left, err = x.adoptContainers(names, containers); err != nil {
		return nil, err
	}
	left = append(left, pods...)
	if err := x.openJournals(names); err != nil {
		return nil, err
	}
	if err := x.sweep(names, containers); err != nil {
		return nil, err
	}
	if fds := names[listenName]; len(fds) == 1 {
		x.listen = fds[0]
	} else if err := x.listenOn(); err != nil {
		return nil, err
	}
	if err := x.holdBinary(); err != nil {
		return nil, err
	}
	for _, fd := range names[keeper.Executable] {
		unix.Close(fd) // the one before us put it; ours is held now
	}
	return left, nil
}

// holdBinary has the keeper start the next executor from our own sealed binary.
// Where there is none (vm.memfd_noexec=2) it starts from the path. Either tells the
// keeper that this executor serves.
func (x *Executor) holdBinary() error {
	if !exeseal.IsSelfExeCloned() {
		return x.keeper.Delete(keeper.Executable)
	}
	fd, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open our own binary: %w", err)
	}
	return x.keeper.Put(keeper.Executable, fd)
}

// adoptContainers makes a container of each record.
func (x *Executor) adoptContainers(names map[string][]int, held map[string]heldContainer) (left []*takeover, err error) {
	entries, err := os.ReadDir(x.files.containers())
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id := e.Name()
		c := newContainer(id)
		close(c.made)
		if err := read(x.files.in(id, "record"), &c.rec); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				x.leaveAlone(id, err, names, held)
				continue
			}
			// The folder was made, and nothing else: or all but the folder was removed.
			if err := x.removeFiles(id); err != nil {
				klog.ErrorS(err, "remains of a container", "container", id)
			}
			continue
		}
		c.tail = newTail(x.pump, id, x.files.in(id, "tail"), c.rec.LogMax)
		if err := c.tail.load(); err != nil {
			klog.ErrorS(err, "log goes on at its end", "container", id)
			c.tail.off = 1 << 62 // beyond any file: look puts it right
		}
		x.containers[id] = c
		h, ok := held[id]
		if !ok {
			h = heldContainer{pidfd: -1, log: -1, out: [2]int{-1, -1}, stdin: -1}
		}
		delete(held, id)
		if fds := names[stdinName(id)]; len(fds) == 1 {
			h.stdin = fds[0]
			delete(names, stdinName(id))
		}
		x.adoptOne(c, h)
		t := x.takeOver(c)
		x.adoptExecs(t, c, names)
		if len(t.steps) > 0 {
			left = append(left, t)
		} else {
			close(c.settled)
		}
	}
	return left, nil
}

// adoptOne fills c from what was held for it and, where nothing was because the
// keeper has died as well, from what can be found by path and pid.
func (x *Executor) adoptOne(c *container, h heldContainer) {
	c.held, c.pidfd, c.stdin, c.out = h.name, h.pidfd, h.stdin, h.out
	c.tail.in, c.tail.log, c.tail.shown, c.tail.held = h.out, h.log, h.log, h.name != ""
	c.acked = exists(x.files.in(c.id, "acked"))
	var exit wire.Exit
	if err := read(x.files.exit(c.id, ""), &exit); err == nil {
		c.exit = &exit
		c.state = wire.Exited
		close(c.exited)
	}
	if c.rec.Process.PID == 0 {
		c.rec.Process = h.process
		return // still wire.Creating: resume takes it back
	}
	if c.exit == nil {
		c.state = x.runs(c)
	}
	if h.name == "" {
		x.findByRecord(c)
	}
}

// runs says whether a container's own program was let run. libcontainer goes by
// the FIFO, which it removes after the start: an executor that dies in between
// leaves it behind, and a second start would wait at it for ever.
func (x *Executor) runs(c *container) wire.State {
	const waiting = "runc:[2:INIT]\n" // libcontainer's init; the program's name replaces it
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.rec.Process.PID))
	if exists(x.files.execFIFO(c.id)) && (err != nil || string(comm) == waiting) {
		return wire.IsCreated
	}
	return wire.Running
}

// findByRecord finds pidfd, streams and log of a container of which the keeper held nothing.
func (x *Executor) findByRecord(c *container) {
	if c.exit == nil {
		pidfd, err := sameProcess(c.rec.Process.PID, c.rec.Process.Start)
		if err == nil {
			c.pidfd = pidfd
		}
	}
	if !c.rec.TTY {
		for s, name := range []string{"stdout", "stderr"} {
			if fd, err := openFIFO(x.files.in(c.id, name)); err == nil {
				c.out[s], c.tail.in[s] = fd, fd
			}
		}
	}
	if c.rec.LogPath != "" {
		x.adoptLog(c)
	}
}

// adoptLog finds a container's log file by its path. Where the file system does not
// answer, nobody waits for it: there is no log then until it does.
func (x *Executor) adoptLog(c *container) {
	file, runs := c.tail.file, c.exit == nil
	o, err := x.pump.within(findTime,
		func() (opened, error) { return findLog(c.rec.LogPath, file, runs) },
		func(o opened, err error) {
			if err == nil {
				err = c.tail.adoptLate(o, func(log int) error { return x.hold(c, log) })
			}
			klog.InfoS("log was found late; what its container wrote meanwhile is lost", "container", c.id, "err", err)
		})
	if err == nil || !runs && errors.Is(err, fs.ErrNotExist) {
		c.tail.log, c.tail.shown = o.fd, o.fd
		return
	}
	klog.ErrorS(err, "log of a container that outlived both executor and keeper", "container", c.id)
}

// adoptExecs takes over the exec'd processes of c, and adds to t what of it is left.
func (x *Executor) adoptExecs(t *takeover, c *container, names map[string][]int) {
	entries, err := os.ReadDir(x.files.execs(c.id))
	if err != nil {
		return // none was ever run
	}
	for _, entry := range entries {
		name := entry.Name()
		if of, isExit := strings.CutSuffix(strings.TrimSuffix(name, ".tmp"), ".exit"); isExit || strings.HasSuffix(name, ".tmp") {
			if !isExit || !exists(x.files.exec(c.id, of)) {
				// It was acknowledged, and the executor died before all of it was forgotten; or
				// it died while it wrote a record.
				if err := remove(x.files.exec(c.id, name)); err != nil {
					klog.ErrorS(err, "remains of an exec", "container", c.id, "exec", of)
				}
			}
			continue
		}
		e := &execProc{c: c, pidfd: -1, exited: make(chan struct{})}
		if err := read(x.files.exec(c.id, name), &e.rec); err != nil {
			klog.ErrorS(err, "exec's record cannot be read and is left alone", "container", c.id, "exec", name)
			continue
		}
		c.execs[name] = e
		e.lost = e.rec.Process.PID == 0
		var exit wire.Exit
		if err := read(x.files.exit(c.id, name), &exit); err == nil {
			e.exit = &exit
			close(e.exited)
		}
		if e.lost {
			if e.exit == nil {
				t.slow = true
				t.add(func() error { return x.execLost(e) })
			}
			continue
		}
		if fds := names[execName(e.rec)]; len(fds) == 1 {
			e.pidfd, e.held = fds[0], true
			delete(names, execName(e.rec))
		} else if e.exit == nil {
			// The keeper held nothing of it.
			if e.pidfd, err = sameProcess(e.rec.Process.PID, e.rec.Process.Start); err != nil {
				e.pidfd = -1
			}
		}
		x.takeOverExec(t, e)
	}
}

// openJournals opens the pump's journals, and has completed what they were at. Some
// there are only because others hung in a file system.
func (x *Executor) openJournals(names map[string][]int) error {
	for n := range visits + stuckMax {
		if n >= visits && !exists(x.files.journal(n)) {
			continue
		}
		fds := names[pumpName(n)]
		delete(names, pumpName(n))
		fresh := len(fds) != 2
		if fresh {
			fds = nil
		}
		j, err := x.openJournal(n, fds)
		if err != nil {
			return err
		}
		owner := j.owner()
		if owner != "" && fresh {
			// The keeper died as well, and with it what was in the old private pipe.
			if bytes := j.forget(); bytes > 0 {
				klog.InfoS("log lines are lost: executor and keeper died while they were moved", "container", owner, "bytes", bytes)
			}
		}
		if owner == "" && n >= visits {
			if err := x.dropJournal(j); err != nil {
				return err
			}
			continue
		}
		if fresh { // after forget: who finds a pipe with the journal takes it for the one that was in use
			if err := x.keeper.Put(pumpName(n), j.r, j.w); err != nil {
				return err
			}
		}
		if owner != "" {
			x.complete(j, owner)
		} else {
			x.pump.add(j)
		}
	}
	return nil
}

// complete ends the visit that a journal was at, before any other to the same
// container. It may hang in the log's file system, and nobody waits for it.
func (x *Executor) complete(j *journal, owner string) {
	t := newTail(x.pump, owner, "", 0)
	t.deleted = true
	if c := x.containers[owner]; c != nil {
		t = c.tail
	}
	t.enter()
	v := x.pump.resume(j, owner, t.file.Dev)
	go func() {
		defer t.leave()
		if err := j.resume(t); err != nil {
			klog.ErrorS(err, "log was not completed", "container", owner)
			j.mem.ownerLen.Store(0)
			x.pump.giveBack(v)
			return
		}
		t.finish(v)
	}()
}

// sweep lets go of what no record names, and takes mounts back that were lent to
// a start that did not come to its end.
func (x *Executor) sweep(names map[string][]int, held map[string]heldContainer) error {
	for name, fds := range names {
		if name == listenName || name == keeper.MountNamespace || name == keeper.Executable || strings.HasPrefix(name, "pod/") && x.pods[name[len("pod/"):]] != nil {
			continue
		}
		if err := x.letGo(name, fds); err != nil {
			return err
		}
	}
	for _, h := range held {
		if err := x.letGo(h.name, []int{h.pidfd, h.log, h.out[0], h.out[1]}); err != nil {
			return err
		}
	}
	pods, containers := make(map[string]bool), make(map[string]bool)
	x.mu.Lock()
	for id := range x.pods {
		pods[id] = true
	}
	for id := range x.containers {
		containers[id] = true
	}
	for id := range x.unread {
		containers[id] = true
	}
	known := make(map[string]bool, len(x.containers))
	for _, u := range x.unread {
		for _, k := range u.keys() {
			known[k] = true
		}
	}
	for _, c := range x.containers {
		known[key(c.rec.Process)] = true
		for _, e := range c.execs {
			known[key(e.rec.Process)] = true
		}
	}
	x.mu.Unlock()
	entries, err := os.ReadDir(filepath.Join(x.files.state, "exit"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !known[e.Name()] && !strings.HasSuffix(e.Name(), ".tmp") { // .tmp: the keeper is writing it
			_ = remove(x.files.keeperExit(e.Name()))
		}
	}
	if err := errors.Join(x.mnt.sweep(pods, containers), x.sweepAccounts()); err != nil {
		klog.ErrorS(err, "remains of what was under way")
	}
	return nil
}

func (x *Executor) letGo(name string, fds []int) error {
	if err := x.keeper.Delete(name); err != nil {
		return err
	}
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
