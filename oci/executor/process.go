// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// process makes libcontainer's process from the spec's, within our limits. env is its
// environment where p's cannot be it: see wire.EnvBytes.
func (x *Executor) process(p *specs.Process, env [][]byte) (*libcontainer.Process, error) {
	if len(p.Args) == 0 {
		return nil, invalid("process without a command")
	}
	// libcontainer tells its init the environment in JSON, too, and has no other way.
	// Better no process than one with another password than it was given.
	for n, v := range env {
		if !utf8.Valid(v) {
			name, _, _ := bytes.Cut(v, []byte("="))
			return nil, invalid("environment variable %d, %.100q, is not UTF-8: this executor cannot pass it on unchanged", n, name) // its value may be a secret
		}
	}
	rlimits, err := x.limits.rlimits(p.Rlimits)
	if err != nil {
		return nil, err
	}
	lp := &libcontainer.Process{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd,
		UID: int(p.User.UID), GID: int(p.User.GID),
		Label: p.SelinuxLabel, AppArmorProfile: p.ApparmorProfile,
		NoNewPrivileges: &p.NoNewPrivileges,
		Capabilities:    x.limits.capabilities(p.Capabilities),
		Rlimits:         rlimits,
		LogLevel:        "2", // errors only: what an init says costs it time
	}
	for _, gid := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(gid))
	}
	if p.Scheduler != nil {
		s := *p.Scheduler
		lp.Scheduler = &s
	}
	if p.IOPriority != nil {
		prio := *p.IOPriority
		lp.IOPriority = &prio
	}
	if p.ConsoleSize != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	return lp, nil
}

// procStat is what /proc/PID/stat says of a process.
type procStat struct {
	state  byte
	parent int
	start  uint64 // clock ticks after boot
	code   int    // wait status; only of a zombie
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(b))
}

// parseStat reads the fields after the command's name, which may hold anything.
func parseStat(text string) (procStat, error) {
	const stateField, parentField, startField, codeField = 3, 4, 22, 52
	end := strings.LastIndexByte(text, ')')
	if end < 0 {
		return procStat{}, errors.New("stat: no command name")
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) <= codeField-stateField {
		return procStat{}, fmt.Errorf("stat: %d fields", len(fields))
	}
	parent, err := strconv.Atoi(fields[parentField-stateField])
	if err != nil {
		return procStat{}, fmt.Errorf("stat: parent: %w", err)
	}
	start, err := strconv.ParseUint(fields[startField-stateField], 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("stat: start time: %w", err)
	}
	code, err := strconv.Atoi(fields[codeField-stateField])
	if err != nil {
		return procStat{}, fmt.Errorf("stat: exit code: %w", err)
	}
	return procStat{state: fields[0][0], parent: parent, start: start, code: code}, nil
}

// pidfdInfo is struct pidfd_info of include/uapi/linux/pidfd.h, version 1.
type pidfdInfo struct {
	mask     uint64
	cgroupID uint64
	pid, tgid, ppid,
	ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid uint32
	exitCode int32
}

const (
	pidfdInfoExit = 1 << 3                          // PIDFD_INFO_EXIT, kernel 6.15
	pidfdGetInfo  = 3<<30 | 64<<16 | 0xff<<8 | 0x0b // _IOWR(PIDFS_IOCTL_MAGIC, 11, 64 bytes)
)

// exitInfo asks the kernel how a process ended that somebody else has reaped.
// ok is false where the kernel does not know, or is older than 6.15.
func exitInfo(pidfd int) (status unix.WaitStatus, ok bool) {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return 0, false
	}
	return unix.WaitStatus(info.exitCode), true
}

// peek returns the status of a child that has ended, and leaves it to be reaped.
// ECHILD means that it is not our child.
func peek(pidfd int) (status unix.WaitStatus, ended bool, err error) {
	// siginfo_t of waitid; the fields that are used are where every 64-bit
	// architecture has them.
	var info struct {
		signo, errno, code, _ int32
		pid                   int32
		uid                   uint32
		status                int32
		_                     [100]byte
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_PIDFD, uintptr(pidfd),
			uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, false, errno
		case info.pid == 0:
			return 0, false, nil
		}
		const cldExited = 1
		if info.code == cldExited {
			return unix.WaitStatus(info.status << 8), true, nil
		}
		return unix.WaitStatus(info.status & 0x7f), true, nil
	}
}

// reap waits for a child that peek has seen.
func reap(pidfd int) error {
	for {
		err := unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// sameProcess opens a pidfd for a process known by pid and start time. It returns
// fs.ErrNotExist if that process has gone, whoever has its pid now.
func sameProcess(pid int, start uint64) (pidfd int, err error) {
	pidfd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fs.ErrNotExist
	}
	// Read after the pidfd was opened: if it still is the one that was started then,
	// the pidfd is its.
	stat, err := readStat(pid)
	if err != nil || stat.start != start {
		unix.Close(pidfd)
		return -1, fs.ErrNotExist
	}
	return pidfd, nil
}
