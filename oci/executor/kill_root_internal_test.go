// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package executor

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKillChildInTime: a child that does not end although it was killed is not waited
// for without end.
func TestKillChildInTime(t *testing.T) {
	first := exec.Command("cat")
	in, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	first.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	// The first process of a PID namespace does not end before the last of the others
	// was reaped, and this one is ours to reap.
	second := exec.Command("cat")
	second.Stdin, err = os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/pid", first.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWPID)
			unix.Close(ns)
		}
		if err == nil {
			err = second.Start()
		}
		started <- err
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := killChild(first.Process.Pid, 100*time.Millisecond); err == nil {
		t.Error("it has ended: the test shows nothing")
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it was waited for %v", took)
	}
	_ = second.Wait() // killed with the first
	if err := killChild(first.Process.Pid, 20*time.Second); err != nil {
		t.Errorf("when it can end: %v", err)
	}
}
