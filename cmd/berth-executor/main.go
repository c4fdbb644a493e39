// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the C part of "init"

	"github.com/berth-cri/berth/oci/executor"
)

// version is set by the linker.
var version = "unknown"

func init() { //nolint:gochecknoinits // both must come before main
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init() // does not return
	}
	// libcontainer moves a locked thread into a container's mount namespace and lets
	// it end with its goroutine. The main thread cannot end: Go would park it there
	// for ever, /proc/self would be the container's, and its root file system would
	// stay mounted. Locked to the main goroutine, it is never used for that.
	runtime.LockOSThread()
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("berth-executor", version)
		return
	}
	if len(os.Args) != 4 || os.Args[1] != "executor" {
		fmt.Fprintln(os.Stderr, "berth-executor is started by berth or by the service manager: berth-executor keeper STATE BINARY")
		os.Exit(2)
	}
	err := executor.Run(executor.Config{State: os.Args[2], Binary: os.Args[3], Build: version})
	fmt.Fprintln(os.Stderr, "berth-executor:", err)
	os.Exit(1) // the keeper starts the next
}
