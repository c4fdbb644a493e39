// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package overlay_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/image/overlay"
	"github.com/berth-cri/berth/image/seal"
)

// ownMounts runs the test in a process that has a mount namespace of its own, and says whether this is it.
func ownMounts(t *testing.T) bool {
	t.Helper()
	const marker = "BERTH_TEST_OWN_MOUNTS"
	if os.Getenv(marker) == t.Name() {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	leak.Check(t, leak.Mounts("/"))
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("%s", out)
	}
	return false
}

// A disk is an ext4 in a file, mounted where nobody else sees it.
type disk struct {
	t             *testing.T
	image, folder string
	loop          int // which lives as long as it is open or mounted
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t: t, image: filepath.Join(t.TempDir(), "disk"), folder: t.TempDir(), loop: -1}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	d.mount()
	return d
}

func (d *disk) mount() {
	d.t.Helper()
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		d.t.Skip(err)
	}
	defer unix.Close(control)
	file, err := os.OpenFile(d.image, os.O_RDWR, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer file.Close()
	for range 20 { // another may take the free one first
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			d.t.Fatal(err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		if d.loop, err = unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			d.t.Fatal(err)
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(d.loop, &config)
		if errors.Is(err, unix.EBUSY) {
			unix.Close(d.loop)
			continue
		}
		if err != nil {
			d.t.Fatal(err)
		}
		// No write-back by time: what is not synced is lost. 300 s is the most that ext4 takes.
		if err := unix.Mount(name, d.folder, "ext4", 0, "commit=300"); err != nil {
			d.t.Fatal(err)
		}
		return
	}
	d.t.Fatal("no loop device")
}

func (d *disk) unmount() {
	d.t.Helper()
	if err := unix.Unmount(d.folder, 0); err != nil {
		d.t.Fatal(err)
	}
	unix.Close(d.loop)
}

// cut loses all that is not on the disk, the journal in memory included (EXT4_IOC_SHUTDOWN with
// EXT4_GOING_FLAGS_NOLOGFLUSH, fs/ext4/ext4.h), and starts the machine again.
func (d *disk) cut() {
	d.t.Helper()
	const shutdown, noLogFlush = 0x8004587d, 2
	fd, err := unix.Open(d.folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	err = unix.IoctlSetPointerInt(fd, shutdown, noLogFlush)
	unix.Close(fd)
	if err != nil {
		d.t.Fatal(err)
	}
	d.unmount()
	d.mount()
}

// manyFiles is a draft of files that fill some megabytes.
func manyFiles(t *testing.T, s *overlay.Store) overlay.Ready {
	t.Helper()
	r := draft(t, s, "first")
	now := time.Unix(1_700_000_000, 0)
	for i := range 200 {
		b := []byte(fmt.Sprintf("%0*d", 100+i*100, i))
		name := fmt.Sprintf("file-%d", i)
		path := filepath.Join(r.Draft.Root().Name(), name)
		if err := errors.Join(os.WriteFile(path, b, 0o600), os.Chtimes(path, now, now)); err != nil {
			t.Fatal(err)
		}
		if err := r.Draft.Seal().Append(seal.Record{
			Kind: seal.Node, Path: name, Mode: unix.S_IFREG | 0o600, ModTime: now, Size: int64(len(b)), Sum: seal.Sum(0, b),
		}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// TestPowerCut cuts the power before each step of a commit, and after it. Then the layer is whole or not
// there; and when Commit has returned it is there.
func TestPowerCut(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	power := errors.New("power cut")
	for at, name := range []string{"seal", "sync", "rename", "sync folder", "after"} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			defer d.unmount()
			s, err := overlay.Open(d.folder, overlay.Options{})
			if err != nil {
				t.Fatal(err)
			}
			step := 0
			s.OnStep(func(string) error {
				if step++; step > at {
					return power
				}
				return nil
			})
			r := manyFiles(t, s)
			if err := s.Commit(t.Context(), r); (err == nil) != (name == "after") {
				t.Fatal(err)
			}
			s.Close()
			r.Draft.Abandon() // else the disk could not be unmounted
			d.cut()

			if s, err = overlay.Open(d.folder, overlay.Options{}); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, id := range s.Layers() {
				wantErr(t, s.Verify(t.Context(), id), nil)
			}
			if n := len(s.Layers()); name == "after" && n != 1 || n == 1 && at < 3 {
				t.Errorf("%d layers", n)
			}
		})
	}
}

// TestPowerCutUnsynced shows that the cut is real, and that Verify sees it: a layer that was renamed
// without a sync is not whole.
func TestPowerCutUnsynced(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	d := newDisk(t)
	defer d.unmount()
	s, err := overlay.Open(d.folder, overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := manyFiles(t, s)
	s.OnStep(func(name string) error {
		if name == "sync" {
			return overlay.ErrSkip
		}
		return nil
	})
	if err := s.Commit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	s.Close()
	d.cut()
	if s, err = overlay.Open(d.folder, overlay.Options{}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if len(s.Layers()) != 1 {
		t.Fatalf("%d layers: the test's disk has lost the name too", len(s.Layers()))
	}
	wantErr(t, s.Verify(t.Context(), r.Layer.ID), overlay.ErrDamaged)
}
