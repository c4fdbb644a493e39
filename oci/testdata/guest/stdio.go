// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"
)

// who: environment, working directory and credentials, one a line.
func who([]string) {
	env := os.Environ()
	sort.Strings(env)
	for _, e := range env {
		fmt.Println("env", e)
	}
	cwd, err := os.Getwd()
	fmt.Println("cwd", cwd, err)
	groups, err := os.Getgroups()
	sort.Ints(groups)
	fmt.Println("id", os.Getuid(), os.Getgid(), groups, err)
}

// flood BYTES: so many bytes to stdout, in lines of 64.
func flood(args []string) {
	line := []byte(strings.Repeat("f", 63) + "\n")
	w := bufio.NewWriterSize(os.Stdout, 64<<10)
	for n := number(args[0]); n > 0; n -= len(line) {
		if _, err := w.Write(line[:min(n, len(line))]); err != nil {
			os.Exit(1)
		}
	}
	w.Flush()
}

// long N...: a line of each length, all of its own letter.
func long(args []string) {
	for i, a := range args {
		if a == "" {
			continue
		}
		line := append([]byte(strings.Repeat(string(rune('a'+i)), number(a))), '\n')
		if _, err := os.Stdout.Write(line); err != nil {
			os.Exit(1)
		}
	}
}

// raw HEX: these bytes to stdout.
func raw(args []string) {
	b, err := hex.DecodeString(args[0])
	if err == nil {
		_, err = os.Stdout.Write(b)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// winch: the terminal's size, now and at each change; ends at the end of input.
func winch([]string) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGWINCH)
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	for {
		size, err := winsize()
		fmt.Println("size", size, err)
		select {
		case <-ch:
		case <-ended:
			return
		}
	}
}

// tree: a child and a grandchild, each in a session of its own and deaf to all
// that can be ignored, the grandchild's parent gone; then it sleeps. Says "up" when
// all are there.
func tree(args []string) {
	level := 0
	if len(args) > 0 {
		level = number(args[0])
	}
	if level > 0 {
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	}
	if level < 3 {
		r, w, err := os.Pipe()
		if err != nil {
			os.Exit(1)
		}
		c := exec.Command("/guest", "tree", fmt.Sprint(level+1))
		c.Stdout, c.Stderr = os.Stdout, os.Stderr // held open, as background processes do
		c.ExtraFiles = []*os.File{w}
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := c.Start(); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		w.Close()
		_, _ = io.Copy(io.Discard, r) // until those below are up
	}
	if level > 0 {
		os.NewFile(3, "up").Close()
	}
	switch level {
	case 0:
		fmt.Println("up")
	case 2:
		return // its child has no parent now
	}
	for {
		time.Sleep(time.Hour)
	}
}

// survivor FILE CODE: leaves a child that writes to stdout for ever, and says in
// FILE how many blocks of 64 KiB it has written; then exits with CODE at SIGTERM.
func survivor(args []string) {
	c := exec.Command("/guest", "blocks", args[0])
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("child", c.Process.Pid)
	sleep(args[1:])
}

// blocks FILE: see survivor.
func blocks(args []string) {
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		os.Exit(1)
	}
	block := []byte(strings.Repeat(strings.Repeat("b", 63)+"\n", 1024))
	for n := 1; ; n++ {
		if _, err := os.Stdout.Write(block); err != nil {
			fmt.Fprintln(f, "error", err)
			os.Exit(1)
		}
		time.Sleep(time.Millisecond) // what is not thrown away is kept on a disk
		if _, err := f.WriteAt([]byte(fmt.Sprintf("%012d\n", n)), 0); err != nil {
			os.Exit(1)
		}
	}
}

// blink: says "." and dies of whatever comes.
func blink([]string) {
	fmt.Println(".")
	for {
		time.Sleep(time.Hour)
	}
}

// fds: the open descriptors and whether they block, before anything here opens one.
func fds([]string) {
	for fd := range 1024 {
		if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0); errno == 0 {
			fmt.Println("fd", fd)
		}
	}
	for fd := range 3 {
		to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
		if err != nil || errno != 0 {
			fmt.Println(err, errno)
		}
		fmt.Printf("%d blocking=%v %s\n", fd, flags&syscall.O_NONBLOCK == 0, to)
	}
}
