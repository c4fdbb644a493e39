// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-cri/berth/hack/leak"
)

// victimEnv makes the test binary play a part instead of testing.
const victimEnv = "BERTH_CGROUP_TEST_VICTIM"

func TestMain(m *testing.M) {
	part, args, _ := strings.Cut(os.Getenv(victimEnv), " ")
	if part == "" {
		os.Exit(leak.Main(m, leak.Cgroups("berth-test-cgroup-*", "berthtestcgroup*"), leak.Descriptors(), leak.Goroutines()))
	}
	// Every part begins at a gate, so that the test can put the process where it wants it first.
	in := bufio.NewReader(os.Stdin)
	gate := func() {
		if _, err := in.ReadString('\n'); err != nil {
			os.Exit(3) // the test is gone
		}
	}
	gate()
	os.Exit(play(part, args, gate))
}

// victim is a process of ours that a test may kill.
type victim struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

// start starts a part, which waits at the gate. attr may be nil.
func start(t testing.TB, attr *syscall.SysProcAttr, part ...string) *victim {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = attr
	return startCommand(t, cmd, part...)
}

// startCommand is start with a command that ends in executing the test binary.
func startCommand(t testing.TB, cmd *exec.Cmd, part ...string) *victim {
	t.Helper()
	cmd.Env = append(os.Environ(), victimEnv+"="+strings.Join(part, " "))
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // for tests that end by a panic
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &victim{t, cmd, stdin, bufio.NewReader(out)}
	t.Cleanup(func() {
		cmd.Process.Kill()
		reaped := make(chan struct{})
		go func() {
			cmd.Wait()
			close(reaped)
		}()
		select {
		case <-reaped:
		case <-time.After(time.Second): // it is frozen, until the lab is swept
		}
	})
	return v
}

func (v *victim) pid() int { return v.cmd.Process.Pid }

// open lets the victim through the gate. A victim that is gone takes no notice.
func (v *victim) open() {
	v.t.Helper()
	if _, err := io.WriteString(v.stdin, "\n"); err != nil && !errors.Is(err, syscall.EPIPE) {
		v.t.Fatal(err)
	}
}

// hears reads the line that the victim says next.
func (v *victim) hears(want string) {
	v.t.Helper()
	got, err := v.out.ReadString('\n')
	if err != nil || strings.TrimSpace(got) != want {
		v.t.Fatalf("victim %d said %q, %v; want %q", v.pid(), got, err, want)
	}
}

// ended waits for the end and says how: "exit 7" or "signal 9".
func (v *victim) ended() string {
	v.t.Helper()
	err := v.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		v.t.Fatal(err)
	} else if ok && exit.Sys().(syscall.WaitStatus).Signaled() {
		return fmt.Sprintf("signal %d", exit.Sys().(syscall.WaitStatus).Signal())
	}
	return fmt.Sprintf("exit %d", v.cmd.ProcessState.ExitCode())
}
