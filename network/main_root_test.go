// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package network_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideEnv says that the process has a network and mounts of its own.
const insideEnv = "BERTH_NETWORK_TEST_INSIDE"

// TestMain runs the tests on a node of their own: a network namespace, in which plugins make bridges
// and rules, and a mount namespace with an empty /run.
func TestMain(m *testing.M) {
	playPlugin()
	playBerth()
	setUp()
	var err error
	if os.Getenv(insideEnv) == "" {
		err = runInside()
	} else if err = unix.Mount("run", "/run", "tmpfs", 0, "mode=755"); err == nil {
		os.Exit(m.Run())
	}
	if err == nil {
		return
	}
	exit := &exec.ExitError{}
	if errors.As(err, &exit) && exit.Exited() {
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func runInside() error {
	runtime.LockOSThread() // the signal at our death is at that of this thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// Unshareflags with CLONE_NEWNS make "/" private, so that nothing of ours appears outside.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	return cmd.Run()
}
