// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ns_test

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/ns"
)

// What is done to a thread of OnThread is done to no other. CLONE_FS takes no privileges to unshare:
// the working folder of the thread is then its own.
func TestThreadsEnd(t *testing.T) {
	before, err := unix.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if err := ns.OnThread(func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			return unix.Chdir("/")
		}); err != nil {
			t.Fatal(err)
		}
		if wd, err := unix.Getwd(); err != nil || wd != before {
			t.Fatalf("working folder of this thread: %q, %v; want %q", wd, err, before)
		}
	}
}

func TestThreadErrors(t *testing.T) {
	boom := errors.New("boom")
	if err := ns.OnThread(func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error = %v; want boom", err)
	}
	if err := ns.OnThread(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Goexit gives no error")
	}
	defer func() {
		p, _ := recover().(error)
		if p == nil || !strings.Contains(p.Error(), "boom") || !strings.Contains(p.Error(), "thread_test.go") {
			t.Errorf("panicked with %v; want boom and the stack of this file", p)
		}
	}()
	_ = ns.OnThread(func() error { panic(boom) })
}

func TestDoClosed(t *testing.T) {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := ns.Do(f, func() error { t.Error("ran"); return nil }); err == nil {
		t.Error("Do in a closed namespace is no error")
	}
}
