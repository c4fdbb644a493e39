// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package leak_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
)

// recorder is a test that notes what it is told instead of failing.
type recorder struct {
	testing.TB // for the private method; a call of any other one panics
	cleanups   []func()
	errors     []string
	fatal      []string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Cleanup(f func())          { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(f string, a ...any) { r.errors = append(r.errors, fmt.Sprintf(f, a...)) }
func (r *recorder) Fatalf(f string, a ...any) { r.fatal = append(r.fatal, fmt.Sprintf(f, a...)) }

// end runs the clean-ups in the order in which package testing does.
func (r *recorder) end() {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
}

// once is a grace period that ends after the first look.
func once() leak.Option { return leak.Grace(0) }

// checked runs body under a checker and returns what it reports. body's own clean-ups run before the
// checker looks only if they are registered on the recorder; those on t run afterwards.
func checked(t *testing.T, body func(r *recorder), opts ...leak.Option) string {
	t.Helper()
	r := &recorder{}
	leak.Check(r, opts...)
	if len(r.fatal) > 0 {
		t.Fatalf("no snapshot: %s", r.fatal)
	}
	body(r)
	r.end()
	return strings.Join(r.errors, "\n")
}

func mustMention(t *testing.T, report string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(report, w) {
			t.Errorf("the report does not mention %q: %q", w, report)
		}
	}
}

func mustBeClean(t *testing.T, report string) {
	t.Helper()
	if report != "" {
		t.Errorf("reported without reason: %s", report)
	}
}

// start runs a child until the test ends.
func start(t *testing.T, name string, arg ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, arg...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Both fail where the test itself has ended and awaited the child.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// orphan starts a process that is no descendant of this one and returns its pid. It is a shell that
// asks no one for anything and waits for a line that never comes; so it ends with the test even
// where the test is killed.
func orphan(t *testing.T, shell string, arg ...string) int {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// The shell in between ends at once: what it started belongs to pid 1 or a subreaper.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `"$@" <&3 >/dev/null 2>&1 & echo $!`, "sh", shell, "-c", "read line", "sh"}, arg...)...)
	cmd.ExtraFiles = []*os.File{r}
	out, err := cmd.Output()
	r.Close()
	if err != nil {
		w.Close()
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		w.Close()
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		w.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Close()
		awaitEnd(t, fd)
		unix.Close(fd)
	})
	return pid
}

// awaitEnd waits until a pidfd says that its process has ended.
func awaitEnd(t *testing.T, pidfd int) {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Errorf("the process has not ended: %d, %v", n, err)
		}
		return
	}
}

// copyShell puts a copy of the shell into a folder, so that processes run from there.
func copyShell(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "shell")
	if err := os.WriteFile(name, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestProcesses(t *testing.T) {
	t.Run("child", func(t *testing.T) {
		var cmd *exec.Cmd
		report := checked(t, func(*recorder) { cmd = start(t, "sleep", "1000") }, once())
		mustMention(t, report, fmt.Sprintf("process pid %d (sleep), child of the test: sleep 1000", cmd.Process.Pid))
	})
	t.Run("grandchild", func(t *testing.T) {
		report := checked(t, func(*recorder) {
			cmd := exec.Command("/bin/sh", "-c", "cat & echo started; wait")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			// A background job reads from /dev/null unless told: hand the pipe on by number.
			cmd.Args[2] = "exec 3<&0; cat <&3 & echo started; wait"
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, len("started\n"))); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				in.Close()
				_ = cmd.Wait()
			})
		}, once())
		mustMention(t, report, "2 left behind", "(sh), child of the test")
	})
	t.Run("zombie", func(t *testing.T) {
		var cmd *exec.Cmd
		report := checked(t, func(*recorder) {
			cmd = exec.Command("true")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Wait() })
			// Wait for the end, but leave the reaping.
			var info unix.Siginfo
			if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
				t.Fatal(err)
			}
		}, once())
		mustMention(t, report, fmt.Sprintf("pid %d (true, zombie)", cmd.Process.Pid))
	})
	t.Run("orphan that runs from a folder of the test", func(t *testing.T) {
		dir := t.TempDir()
		var pid int
		report := checked(t, func(*recorder) { pid = orphan(t, copyShell(t, dir)) }, leak.Under(dir), once())
		mustMention(t, report, fmt.Sprintf("pid %d ", pid), "runs "+dir+"/shell")
	})
	t.Run("folder named by a link", func(t *testing.T) {
		dir := t.TempDir()
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		report := checked(t, func(*recorder) { orphan(t, copyShell(t, dir)) }, leak.Under(link), once())
		mustMention(t, report, "leak: 1 left behind", "runs "+dir+"/shell")
	})
	t.Run("orphan whose argument names a folder of the test", func(t *testing.T) {
		dir := t.TempDir()
		var pid int
		report := checked(t, func(*recorder) { pid = orphan(t, "/bin/sh", "--root="+dir+"/state") }, leak.Under(dir), once())
		mustMention(t, report, fmt.Sprintf("pid %d ", pid), "names "+dir)
	})
	t.Run("child of a named process that was there before", func(t *testing.T) {
		dir := t.TempDir()
		in, feed, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		back, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { back.Close() })
		// It waits to be told to start a child, and stands for an executor.
		cmd := exec.Command(copyShell(t, dir), "-c", "read line; cat <&0 >/dev/null & echo $!; wait")
		cmd.Args[2] = "exec 3<&0; read line <&3; cat <&3 >/dev/null & echo $!; wait"
		cmd.Stdin, cmd.Stdout = in, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in.Close()
		out.Close()
		t.Cleanup(func() {
			feed.Close()
			_ = cmd.Wait()
		})
		var child string
		report := checked(t, func(*recorder) {
			fmt.Fprintln(feed, "go")
			buf := make([]byte, 32)
			n, err := back.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			child = strings.TrimSpace(string(buf[:n]))
		}, leak.Under(dir), once())
		mustMention(t, report, "leak: 1 left behind", "process pid "+child+" ")
	})
	t.Run("not the test's own", func(t *testing.T) {
		mine, other := t.TempDir(), t.TempDir()
		start(t, "sleep", "1000") // was there before
		mustBeClean(t, checked(t, func(*recorder) { orphan(t, copyShell(t, other), other) }, leak.Under(mine), once()))
	})
	t.Run("waits for one that is ending", func(t *testing.T) {
		var feed io.WriteCloser
		mustBeClean(t, checked(t, func(*recorder) {
			cmd := exec.Command("cat")
			var err error
			if feed, err = cmd.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// The end begins when the checker has been looking for a while.
			time.AfterFunc(20*time.Millisecond, func() {
				feed.Close()
				_ = cmd.Wait()
			})
		}))
	})
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	write("before/a")
	report := checked(t, func(r *recorder) {
		write("before/a") // written again: not new
		write("before/b")
		write("tree/x/y")
		gone := write("gone")
		r.Cleanup(func() { remove(t, gone) })
	}, leak.Files(dir, filepath.Join(dir, "absent")), once())
	mustMention(t, report, "leak: 2 left behind", "file "+dir+"/before/b", "file "+dir+"/tree and 2 below")
}

func TestGoroutines(t *testing.T) {
	before := make(chan struct{})
	go func() { <-before }()
	t.Cleanup(func() { close(before) })
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	report := checked(t, func(*recorder) { stayUntil(stop) }, leak.Goroutines(), once())
	mustMention(t, report, "leak: 1 left behind", "goroutine ", "leak_test.stay(", "created by")

	mustBeClean(t, checked(t, func(r *recorder) {
		stop := make(chan struct{})
		stayUntil(stop)
		r.Cleanup(func() { close(stop) })
	}, leak.Goroutines()))

	t.Run("looked at from another goroutine", func(t *testing.T) {
		s, err := leak.Take(leak.Goroutines(), once())
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan []leak.Leak)
		go func() {
			leaks, err := s.Settle(t.Context())
			if err != nil {
				t.Error(err)
			}
			done <- leaks
		}()
		if leaks := <-done; len(leaks) != 0 {
			t.Errorf("the one that took the snapshot is no leak: %v", leaks)
		}
	})
}

// stayUntil starts a goroutine that ends with stop. It is on its own line when this
// returns: one that has not run yet is shown by the runtime without its function.
func stayUntil(stop <-chan struct{}) {
	there := make(chan struct{})
	go stay(there, stop)
	<-there
}

func stay(there chan<- struct{}, stop <-chan struct{}) {
	close(there)
	<-stop
}

func TestDescriptors(t *testing.T) {
	name := filepath.Join(t.TempDir(), "open")
	report := checked(t, func(*recorder) {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
	}, leak.Descriptors(), once())
	mustMention(t, report, "leak: 1 left behind", "descriptor ", " → "+name)

	mustBeClean(t, checked(t, func(r *recorder) {
		a, b, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Cleanup(func() { a.Close() })
		r.Cleanup(func() { b.Close() })
	}, leak.Descriptors(), once()))
}

func TestOptions(t *testing.T) {
	for name, opt := range map[string]leak.Option{
		"relative folder":     leak.Under("state"),
		"relative files":      leak.Files("state"),
		"relative mounts":     leak.Mounts("state"),
		"bad cgroup pattern":  leak.Cgroups("berth-["),
		"bad link pattern":    leak.Links("["),
		"bad netns pattern":   leak.NetNS("["),
		"the root cgroup":     leak.Cgroups("/"),
		"an empty cgroup":     leak.Cgroups(""),
		"an unmatched escape": leak.Links(`veth\`),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := leak.Take(opt); !errors.Is(err, leak.ErrOption) {
				t.Errorf("Take: %v, want %v", err, leak.ErrOption)
			}
			r := &recorder{}
			leak.Check(r, opt)
			if len(r.fatal) != 1 || len(r.cleanups) != 0 {
				t.Errorf("Check must refuse: %+v", r)
			}
		})
	}
}

// tests stands for testing.M.
type tests func() int

func (f tests) Run() int { return f() }

func TestMainReports(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name       string
		run        tests
		opts       []leak.Option
		code       int
		wantOutput string
	}{
		{"clean", func() int { return 0 }, nil, 0, ""},
		{"failed, clean", func() int { return 3 }, nil, 3, ""},
		{"leak", func() int { mkdir(t, dir+"/a"); return 0 }, nil, 1, "file " + dir + "/a"},
		{"failed, leak", func() int { mkdir(t, dir+"/b"); return 3 }, nil, 3, "file " + dir + "/b"},
		{"bad option", func() int { t.Error("the tests must not run"); return 0 }, []leak.Option{leak.Under("x")}, 1, "not absolute"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			code := leak.RunMain(c.run, &out, append(c.opts, leak.Files(dir), once())...)
			if code != c.code {
				t.Errorf("code %d, want %d", code, c.code)
			}
			if c.wantOutput == "" {
				mustBeClean(t, out.String())
			} else {
				mustMention(t, out.String(), c.wantOutput)
			}
		})
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Error(err)
	}
}
