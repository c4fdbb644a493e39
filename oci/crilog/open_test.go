// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package crilog_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
)

// descriptors returns how many descriptors this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// fcntl returns what a get command of fcntl(2) says of f.
func fcntl(t *testing.T, f *os.File, cmd int) int {
	t.Helper()
	c, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags int
	var ferr error
	if err := c.Control(func(fd uintptr) { flags, ferr = unix.FcntlInt(fd, cmd, 0) }); err != nil || ferr != nil {
		t.Fatal(err, ferr)
	}
	return flags
}

func TestOpenCreates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	f, size, err := crilog.Open(path, 0o600|os.ModeSetuid)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if size != 0 {
		t.Errorf("size %d", size)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	if f.Name() != path {
		t.Errorf("name %q", f.Name())
	}
}

func TestOpenFlags(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	for _, which := range []string{"created", "existing"} {
		f, _, err := crilog.Open(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if flags := fcntl(t, f, unix.F_GETFL); flags&unix.O_ACCMODE != unix.O_WRONLY || flags&(unix.O_APPEND|unix.O_NONBLOCK) != 0 {
			t.Errorf("%s: status flags %#o", which, flags)
		}
		if flags := fcntl(t, f, unix.F_GETFD); flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: no FD_CLOEXEC", which)
		}
	}
}

func TestOpenKeepsContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte("one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, size, err := crilog.Open(path, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if size != 4 {
		t.Errorf("size %d, want 4", size)
	}
	// Twice, as a writer does that has to redo.
	for range 2 {
		if _, err := f.WriteAt([]byte("two\n"), size); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != "one\ntwo\n" {
		t.Errorf("file holds %q", have)
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode %v, error %v; want it left as it was", fi.Mode(), err)
	}
}

// TestReopen goes through a rotation.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	old, at, err := crilog.Open(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if _, err := old.WriteAt([]byte("one\n"), at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".20060102-150405"); err != nil {
		t.Fatal(err)
	}
	// Until it is told to reopen, the writer goes on with the renamed file.
	if _, err := old.WriteAt([]byte("two\n"), at+4); err != nil {
		t.Fatal(err)
	}
	f, at, err := crilog.Open(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if at != 0 {
		t.Errorf("size %d, want a new file", at)
	}
	if _, err := f.WriteAt([]byte("three\n"), at); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{path + ".20060102-150405": "one\ntwo\n", path: "three\n"} {
		if have, err := os.ReadFile(name); err != nil || string(have) != want {
			t.Errorf("%s holds %q, error %v; want %q", filepath.Base(name), have, err, want)
		}
	}
}

func TestOpenFollowsFolders(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	f, _, err := crilog.Open(filepath.Join(dir, "link", "0.log"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// within fails if call takes so long that it must be waiting for something.
func within(t *testing.T, call func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		call()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Open waits")
	}
}

func TestOpenRefuses(t *testing.T) {
	mkfifo := func(t *testing.T, path string) {
		t.Helper()
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	symlink := func(t *testing.T, target, path string) {
		t.Helper()
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		make func(t *testing.T, path string) // at path, in an empty folder of its own
		want error
		says string
	}{
		{"folder", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, crilog.ErrNotRegular, "drwx"},
		{"FIFO", mkfifo, crilog.ErrNotRegular, "prw"},
		{"FIFO with a reader", func(t *testing.T, path string) {
			mkfifo(t, path)
			r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close() })
		}, crilog.ErrNotRegular, "prw"},
		{"socket", func(t *testing.T, path string) {
			// The name of a socket is at most 107 bytes long.
			t.Chdir(filepath.Dir(path))
			l, err := net.Listen("unix", filepath.Base(path))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, crilog.ErrNotRegular, "Srwx"},
		{"link to a file", func(t *testing.T, path string) {
			if err := os.WriteFile(path+".target", []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			symlink(t, filepath.Base(path)+".target", path)
		}, crilog.ErrNotRegular, "Lrwx"},
		{"dangling link", func(t *testing.T, path string) {
			symlink(t, filepath.Base(path)+".target", path)
		}, crilog.ErrNotRegular, "Lrwx"},
		{"link to a device", func(t *testing.T, path string) {
			symlink(t, "/dev/null", path)
		}, crilog.ErrNotRegular, "Lrwx"},
		{"link to itself", func(t *testing.T, path string) {
			symlink(t, filepath.Base(path), path)
		}, crilog.ErrNotRegular, "Lrwx"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "0.log")
			tt.make(t, path)
			checkRefused(t, dir, path, tt.want, tt.says)
		})
	}

	t.Run("device", func(t *testing.T) {
		checkRefused(t, t.TempDir(), "/dev/null", crilog.ErrNotRegular, "Dcrw")
	})
	t.Run("no folder", func(t *testing.T) {
		dir := t.TempDir()
		checkRefused(t, dir, filepath.Join(dir, "none", "0.log"), fs.ErrNotExist, "")
	})
	t.Run("a file for a folder", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		checkRefused(t, dir, filepath.Join(dir, "file", "0.log"), unix.ENOTDIR, "")
	})
	t.Run("a loop of folders", func(t *testing.T) {
		dir := t.TempDir()
		symlink(t, "loop", filepath.Join(dir, "loop"))
		checkRefused(t, dir, filepath.Join(dir, "loop", "0.log"), unix.ELOOP, "")
	})
	t.Run("name too long", func(t *testing.T) {
		dir := t.TempDir()
		checkRefused(t, dir, filepath.Join(dir, strings.Repeat("x", 256)), unix.ENAMETOOLONG, "")
	})
	t.Run("no name", func(t *testing.T) {
		checkRefused(t, t.TempDir(), "", fs.ErrNotExist, "")
	})
}

// checkRefused fails if Open does not refuse path with the error want, saying
// says, at once, naming the path, without a trace in dir and without keeping a
// descriptor.
func checkRefused(t *testing.T, dir, path string, want error, says string) {
	t.Helper()
	before, fds := listing(t, dir), descriptors(t)
	within(t, func() {
		f, _, err := crilog.Open(path, 0o600)
		if f != nil {
			f.Close()
			t.Errorf("opened a file of mode %v", mode(f))
		}
		if !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
			return
		}
		if perr, ok := errors.AsType[*fs.PathError](err); !ok || perr.Path != path {
			t.Errorf("error %v does not name the path", err)
		}
		if !strings.Contains(err.Error(), says) {
			t.Errorf("error %v does not say %q", err, says)
		}
	})
	if after := listing(t, dir); after != before {
		t.Errorf("folder held\n%s\nholds\n%s", before, after)
	}
	if n := descriptors(t); n != fds {
		t.Errorf("%d descriptors open before, %d after", fds, n)
	}
}

func mode(f *os.File) any {
	if fi, err := f.Stat(); err == nil {
		return fi.Mode()
	}
	return "unknown"
}

// listing returns names, modes and sizes of what is in dir.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(fs.FormatFileInfo(fi) + "\n")
	}
	return b.String()
}

// TestOpenWhileRotated renames the file all the time: Open finds it or makes
// it, and knows no third case.
func TestOpenWhileRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Rename(path, path+".1") // not there half of the time
			}
		}
	})
	for range 5000 {
		f, _, err := crilog.Open(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}
