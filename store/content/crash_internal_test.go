// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// crashAt, in the environment, makes the test binary a process that writes a blob into the folder
// crashIn and kills itself before the step of that number.
const (
	crashAt = "BERTH_TEST_CRASH_AT"
	crashIn = "BERTH_TEST_CRASH_IN"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashAt) != "" {
		if err := crash(os.Getenv(crashAt), os.Getenv(crashIn)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var (
	blob  = bytes.Repeat([]byte("0123456789"), 1000)
	parts = [][]byte{blob[:3000], blob[3000:7000], blob[7000:]}
)

func write(ctx context.Context, s *Store) error {
	w, err := s.open(ctx, &Writer{
		store: s, want: FromBytes(blob), size: int64(len(blob)), draft: draftName(sha256Name, FromBytes(blob).String()),
	}, "")
	if err != nil {
		return err
	}
	defer w.Close()
	for _, part := range parts {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	_, err = w.Commit()
	return err
}

func crash(at, folder string) error {
	s, err := Open(folder)
	if err != nil {
		return err
	}
	step := 0
	s.step = func(string) error {
		if step++; fmt.Sprint(step) == at {
			return unix.Kill(unix.Getpid(), unix.SIGKILL)
		}
		return nil
	}
	return write(context.Background(), s)
}

// steps returns the names of the steps of write, in their order.
func steps(t *testing.T) []string {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var names []string
	s.step = func(name string) error {
		names = append(names, name)
		return nil
	}
	if err := write(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return names
}

// TestOrder holds the order that makes a blob outlive a power cut: no name before its bytes are on the
// disk, no answer before the name is.
func TestOrder(t *testing.T) {
	want := []string{"open", "write", "write", "write", "chmod", "sync", "rename", "sync folder", "done"}
	if got := steps(t); !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
}

// TestCrashAnywhere kills a process before each step of writing a blob.
func TestCrashAnywhere(t *testing.T) {
	digest := FromBytes(blob)
	for i, name := range steps(t) {
		t.Run(fmt.Sprintf("%d %s", i+1, name), func(t *testing.T) {
			folder := t.TempDir()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", crashAt, i+1), crashIn+"="+folder)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
				t.Fatalf("the process was to be killed: %v: %s", err, out)
			}

			s, err := Open(folder)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			renamed := name == "sync folder" || name == "done"
			switch err := s.Check(t.Context(), digest); {
			case renamed && err != nil:
				t.Errorf("after the rename: %v", err)
			case !renamed && !errors.Is(err, ErrNotFound):
				t.Errorf("before the rename: %v", err)
			}

			w, err := s.Writer(t.Context(), digest, int64(len(blob)))
			if renamed {
				if !errors.Is(err, ErrExists) {
					t.Fatalf("Writer: %v", err)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				if written := i - slices.Index(steps(t), "write"); written > 0 && w.Offset() == 0 {
					t.Errorf("nothing to resume after %d writes", written)
				}
				if _, err := w.Write(blob[w.Offset():]); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Commit(); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Check(t.Context(), digest); err != nil {
				t.Error(err)
			}
			if freed, err := s.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil || freed != 0 {
				t.Errorf("Sweep: %d, %v", freed, err)
			}
		})
	}
}

// TestFailAnywhere has each step fail as on a full disk, and on a broken one: nothing is left behind,
// nobody is told that the blob is there, and it can be written afterwards.
func TestFailAnywhere(t *testing.T) {
	for _, errno := range []error{unix.ENOSPC, unix.EIO} {
		for i, name := range steps(t) {
			t.Run(fmt.Sprintf("%d %s %s", i+1, name, errno), func(t *testing.T) {
				folder := t.TempDir()
				s, err := Open(folder)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				step := 0
				s.step = func(string) error {
					if step++; step == i+1 {
						return &fs.PathError{Op: "test", Path: "blob", Err: errno}
					}
					return nil
				}
				if err := write(t.Context(), s); !errors.Is(err, errno) {
					t.Fatalf("error is %v", err)
				}
				entries, err := os.ReadDir(filepath.Join(folder, sha256Name))
				if err != nil || len(entries) != 0 {
					t.Errorf("left %v, %v", entries, err)
				}
				release, busy := s.tryAcquire(draftName(sha256Name, FromBytes(blob).String()))
				if busy != nil {
					t.Fatal("still held")
				}
				release()
				if err := write(t.Context(), s); err != nil {
					t.Errorf("then: %v", err)
				}
				if err := s.Check(t.Context(), FromBytes(blob)); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestRefNames holds that drafts of refs and of digests cannot meet, and that no ref leaves the folder.
func TestRefNames(t *testing.T) {
	d := FromBytes(nil)
	seen := make(map[string]string)
	for _, ref := range []string{"", "../../etc/passwd", "/", d.String(), strings.Repeat("x", 1<<16), "a\x00b"} {
		name := draftName(sha256Name, "ref "+ref)
		if other, ok := seen[name]; ok || name == draftName(sha256Name, d.String()) {
			t.Errorf("%q has the name of %q", ref, other)
		}
		seen[name] = ref
		if !filepath.IsLocal(name) || !isDraft(filepath.Base(name)) {
			t.Errorf("%q becomes %q", ref, name)
		}
	}
}
