// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// ipc make|find KEY: makes or finds a System V message queue.
func ipc(args []string) {
	const create, exclusive = 0o1000, 0o2000 // IPC_CREAT, IPC_EXCL
	flags := 0o600
	if args[0] == "make" {
		flags |= create | exclusive
	}
	_, _, errno := syscall.Syscall(syscall.SYS_MSGGET, uintptr(number(args[1])), uintptr(flags), 0)
	if errno != 0 {
		fmt.Println("error", errno)
		os.Exit(1)
	}
}

// hostname [NAME]: says it, or sets it.
func hostname(args []string) {
	var err error
	name := ""
	if len(args) > 0 {
		name = args[0]
		err = syscall.Sethostname([]byte(name))
	} else {
		name, err = os.Hostname()
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println(name)
}

// show FILE: its content.
func show(args []string) {
	b, err := os.ReadFile(args[0])
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println(string(b))
}

// volume DIR: mounts a tmpfs there at each odd SIGUSR1 and unmounts it at each
// even one; ends with SIGTERM.
func volume(args []string) {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGUSR1, syscall.SIGTERM)
	fmt.Println("ready")
	for n := 1; ; n++ {
		if <-ch == syscall.SIGTERM {
			return
		}
		var err error
		if n%2 == 1 {
			err = syscall.Mount("volume", args[0], "tmpfs", 0, "")
		} else {
			err = syscall.Unmount(args[0], 0)
		}
		fmt.Println("done", n, err)
	}
}

// hog MEGABYTES: eats them when SIGUSR1 comes.
func hog(args []string) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGUSR1)
	fmt.Println("ready")
	<-ch
	eat(args)
}
