// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package ns_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/ns"
)

// partEnv says what the test binary is to be: "" the outermost process, "tests", or a part that a
// test has started.
const partEnv = "BERTH_NS_TEST_PART"

// TestMain runs the tests in a mount namespace of their own with an empty /run, so that the real
// /run/netns is neither seen nor changed.
func TestMain(m *testing.M) {
	part, args, _ := strings.Cut(os.Getenv(partEnv), " ")
	var err error
	switch part {
	case "":
		err = runInside()
	case "tests":
		if err = unix.Mount("run", "/run", "tmpfs", 0, "mode=755"); err == nil {
			os.Exit(m.Run())
		}
	case "make":
		err = playMake(args)
	case "main-thread":
		err = playMainThread()
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
	cmd.Env = append(os.Environ(), partEnv+"=tests")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// Unshareflags with CLONE_NEWNS make "/" private, so that nothing of ours appears outside.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	return cmd.Run()
}

// playMake makes namespaces for "ID STEP", and dies by SIGKILL after that step.
func playMake(args string) error {
	id, at, _ := strings.Cut(args, " ")
	_, err := ns.MakeSteps(context.Background(), fullRequest(id), func(step string) {
		if step == at {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // until it arrives
		}
	})
	return err
}

// playMainThread has the main goroutine wait for others, whose turn on the main thread it then is.
func playMainThread() error {
	for range 100 {
		err := ns.OnThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("on the main thread")
			}
			return unix.Unshare(unix.CLONE_NEWUTS)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func fullRequest(id string) ns.Request {
	return ns.Request{
		ID: id, Net: true, IPC: true, UTS: true, Hostname: "berth-test",
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shmmax": "8192"},
	}
}

// play runs a part in another process and returns how it ended.
func play(t testing.TB, part ...string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), partEnv+"="+strings.Join(part, " "))
	out, err := cmd.CombinedOutput()
	if len(out) > 0 {
		t.Logf("%s", out)
	}
	return err
}
