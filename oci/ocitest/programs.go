// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ocitest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

const module = "github.com/berth-cri/berth/"

// Programs is a folder of the programs that tests run. What is in it already is not built again.
type Programs string

// Executor builds berth-executor with a version of its own, and returns its path.
func (p Programs) Executor(version string) (string, error) {
	return p.build("berth-executor-"+version, "cmd/berth-executor", "CGO_ENABLED=1",
		"-tags", "seccomp", "-ldflags", "-s -w -X main.version="+version)
}

// Guest builds the program that runs in the containers of tests, and returns its path.
func (p Programs) Guest() (string, error) {
	return p.build("guest", "oci/testdata/guest", "CGO_ENABLED=0", "-ldflags", "-s -w")
}

func (p Programs) build(name, pkg, env string, args ...string) (string, error) {
	out := filepath.Join(string(p), name)
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	cmd := exec.Command("go", append(append([]string{"build", "-o", out}, args...), module+pkg)...)
	cmd.Env = append(os.Environ(), env)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return out, nil
}

// insideEnv marks a process that is in a mount namespace of its own.
const insideEnv = "BERTH_TEST_INSIDE"

// OwnMounts runs the calling program again in a mount namespace of its own, where "/" is shared, as
// on a node with systemd, and nothing that is mounted appears outside. In the program that was run
// again inside is true; in the caller code is what is left to exit with. It is for a TestMain.
func OwnMounts() (inside bool, code int, err error) {
	if os.Getenv(insideEnv) != "" {
		return true, 0, unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
	}
	runtime.LockOSThread() // the signal at our death is at that of this thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// Unshareflags with CLONE_NEWNS make "/" private, until the program makes it shared again: with
	// itself and its children, and not with the host.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return false, exit.ExitCode(), nil
	}
	return false, 0, err
}
