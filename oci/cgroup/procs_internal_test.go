// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A process that is not in the group when the list is read again, because it was given the pid of
// a member that had ended, or because it left, is not signalled.
func TestKillSparesWhoIsNotListedAgain(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "read line; exit 7")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/"+procsFile, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ended := exec.Command("/bin/true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	// One that is no more, nor an error, comes first.
	if err := killSome(dir, []int{ended.Process.Pid, cmd.Process.Pid}); err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("the bystander ended with %v", cmd.ProcessState)
	}
}

func TestKillHoldsFewDescriptors(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "read line")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := syscall.Rlimit{Cur: killBatch + 64, Max: old.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old) }()
	// One process stands for many.
	const many = 3*killBatch + 1
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/"+procsFile, []byte(strings.Repeat(strconv.Itoa(cmd.Process.Pid)+"\n", many)), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := killProcs(dir); n != many || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestParseStat(t *testing.T) {
	for text, want := range map[string]string{
		"12 (sh) S 1 12 12 0":         "sh S",
		"12 (a b) R 1":                "a b R",
		"12 (a) D (b) R) Z 1 12":      "a) D (b) R Z",
		"12 ((sd-pam)) D 1":           "(sd-pam) D",
		"12 () I 1":                   " I",
		"":                            "no",
		"12 (sh":                      "no",
		"12 (sh)":                     "no",
		"12 (sh) ":                    "no",
		")12 (":                       "no",
		"9 (kworker/0:1-events) I 2 ": "kworker/0:1-events I",
	} {
		comm, state, ok := parseStat([]byte(text))
		got := comm + " " + string(rune(state))
		if !ok {
			got = "no"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
