// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package cgroup_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-cri/berth/oci/cgroup"
)

// play is what the victims do once they are through the gate; the result is the exit code.
func play(part, arg string, gate func()) int {
	switch part {
	case "exit":
		return 7
	case "hold": // until the gate opens again
		fmt.Println("held")
		gate()
		return 7
	case "sh":
		fmt.Println(syscall.Exec("/bin/sh", []string{"sh", "-c", arg}, os.Environ()))
		return 1
	case "bomb":
		signal.Ignore(syscall.SIGCHLD) // children are reaped by the kernel
		bomb()
	case "relay":
		signal.Ignore(syscall.SIGCHLD)
		relay()
		fmt.Println("running")
		gate()
		return 7
	case "hog": // so many MiB
		touch(arg)
		fmt.Println("survived")
		return 7
	case "parent": // of a hog
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), victimEnv+"=hog "+arg)
		in, _ := cmd.StdinPipe()
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		_, _ = in.Write([]byte("\n"))
		fmt.Println(cmd.Wait())
		gate()
		return 7
	case "burn": // so many MiB, and 50 ms of CPU
		touch(arg)
		for begin := cpuTime(); cpuTime()-begin < 50*time.Millisecond; {
		}
		fmt.Println("burnt")
		gate()
		return 7
	case "kill": // the group whose text this is
		text, _ := hex.DecodeString(arg)
		var g cgroup.Group
		if err := g.UnmarshalText(text); err != nil {
			fmt.Println(err)
			return 1
		}
		err := g.Kill(context.Background())
		fmt.Println(errors.Is(err, cgroup.ErrSelf))
		return 7
	}
	fmt.Println("no such part")
	return 1
}

// touch makes so many MiB resident and keeps them.
func touch(mib string) {
	n, _ := strconv.Atoi(mib)
	mem, err := syscall.Mmap(-1, 0, n<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		fmt.Println(err)
		return
	}
	for i := 0; i < len(mem); i += os.Getpagesize() {
		mem[i] = 1
	}
}

func cpuTime() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// bomb forks for ever. Its children do so too, twenty times each, and end, so that pids come and
// go all the time. The children of a bare clone have no Go runtime but the thread they are on, so
// nothing here may allocate, block or grow the stack.
//
//go:norace
//go:nosplit
func bomb() {
	child := false
	for n := 0; ; n++ {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if errno == 0 && pid == 0 {
			child, n = true, 0
		}
		if child && n == 20 {
			_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
}

// relay leaves a process behind that forks and ends, again and again: whoever reads its pid and
// then acts on it comes too late. Each one has our parent's place, so that we, who ignore
// SIGCHLD, have the kernel reap them. It ends by itself after some ten seconds. As in bomb,
// nothing here may need the Go runtime.
//
//go:norace
//go:nosplit
func relay() {
	if pid, _, _ := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0); pid != 0 {
		return
	}
	for range 200_000 {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, syscall.CLONE_PARENT|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if errno == 0 && pid != 0 {
			break
		}
	}
	_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
}
