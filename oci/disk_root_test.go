// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/oci/wire"
)

// bounded is what an operation may take that does not wait for a dead disk, on a
// machine that does much else.
const bounded = 8 * time.Second

// disk is a file system of its own that can be made to answer nothing.
type disk struct {
	t   testing.TB
	dir string
}

// newDisk makes an ext4 in a file and mounts it. It needs e2fsprogs and a loop device.
func newDisk(t testing.TB) *disk {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.OpenFile(image, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(256 << 20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4, of Debian's e2fsprogs, is needed for a disk that can be frozen: %v\n%s", err, out)
	}
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("a loop device is needed for a disk that can be frozen: %v", err)
	}
	defer unix.Close(control)
	d := &disk{t: t, dir: t.TempDir()}
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatalf("a loop device is needed for a disk that can be frozen: %v", err)
		}
		err = d.mountLoop(fmt.Sprintf("/dev/loop%d", n), f)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EBUSY) || try == 10 { // another took it
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return d
}

func (d *disk) mountLoop(device string, image *os.File) error {
	loop, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close() // autoclear: the mount keeps it until its end
	config := &unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), config); err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	if err := unix.Mount(device, d.dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	return nil
}

// freeze makes the disk dead: who writes to it waits, and cannot be killed. thaw
// makes it answer again, when the test ends at the latest.
func (d *disk) freeze() (thaw func()) {
	d.t.Helper()
	fd, err := unix.Open(d.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	const fiFreeze, fiThaw = 0xc0045877, 0xc0045878
	if err := unix.IoctlSetInt(fd, fiFreeze, 0); err != nil {
		d.t.Fatalf("freeze: %v", err)
	}
	thaw = sync.OnceFunc(func() {
		if err := unix.IoctlSetInt(fd, fiThaw, 0); err != nil {
			d.t.Errorf("thaw: %v", err)
		}
		unix.Close(fd)
	})
	d.t.Cleanup(thaw)
	return thaw
}

// logTo puts a container's log somewhere else, where the test's helpers find it.
func (r *rig) logTo(dir string) option {
	return func(req *wire.Create) {
		req.LogPath = filepath.Join(dir, req.ID)
		if err := os.Symlink(req.LogPath, r.logPath(req.ID)); err != nil && !errors.Is(err, os.ErrExist) {
			r.t.Error(err)
		}
	}
}

// soon fails where fn takes too long.
func (r *rig) soon(what string, fn func()) {
	r.t.Helper()
	began := time.Now()
	fn()
	took := time.Since(began)
	if took > bounded {
		r.t.Errorf("%s took %v\n%s", what, took, r.said())
	}
	r.t.Logf("%s: %v", what, took.Round(time.Millisecond))
}

// saidOf returns how often the executor has said text of a container that of names;
// on a busy machine it may have reason to say it of others.
func (r *rig) saidOf(text string, of *regexp.Regexp) (times int) {
	for line := range strings.Lines(r.said()) {
		if strings.Contains(line, text) && of.MatchString(line) {
			times++
		}
	}
	return times
}

// waitSaid waits until saidOf is so much.
func (r *rig) waitSaid(text string, of *regexp.Regexp, times int) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); r.saidOf(text, of) < times; {
		if time.Now().After(deadline) {
			r.t.Fatalf("executor does not say %q %d times:\n%s", text, times, r.said())
		}
		time.Sleep(5 * time.Millisecond) //nolint:forbidigo // it tells by a file
	}
}

// numbered makes a container say what fits into a pipe, so that it ends whether or
// not somebody reads it.
func numbered(n int) (args, want []string) {
	for i := range 500 {
		want = append(want, fmt.Sprintf("short %d line %06d ..........................", n, i))
	}
	return []string{"raw", hex.EncodeToString([]byte(strings.Join(want, "\n") + "\n"))}, want
}

// TestDeadLogDisk: logs on a disk that does not answer stop no other log and no
// other operation, and delay neither the exit nor the delete of their own
// containers. When it answers again, all that those have written is in their logs.
func TestDeadLogDisk(t *testing.T) {
	const dead, live, short = 24, 6, 6
	const hang = 12 // so many visits may, in one file system
	disk := newDisk(t)
	r := newRig(t)
	held := r.held()
	deadLog := r.logTo(disk.dir)
	writers := make(map[string]wire.Created)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range dead + live {
		wg.Go(func() {
			id, opts := fmt.Sprintf("w%d", i), []option{deadLog}
			if i >= dead {
				opts = nil
			}
			c := r.container(id, []string{"lines", "500", strconv.Itoa(i + 1)}, opts...)
			mu.Lock()
			writers[id] = c
			mu.Unlock()
		})
		if i%4 == 3 {
			wg.Wait()
		}
	}
	wg.Wait()
	shorts := make(map[string][]string)
	for i := range short {
		args, want := numbered(i)
		id := fmt.Sprintf("short%d", i)
		shorts[id] = want
		r.create(id, args, deadLog)
	}

	thaw := disk.freeze()
	created := make(chan error)
	go func() {
		_, err := r.Create(t.Context(), r.request("late", nil, deadLog))
		created <- err
	}()
	onDead := regexp.MustCompile(`container (w([0-9]|1[0-9]|2[0-3])|short[0-9]):`)
	r.waitSaid("its file system does not answer", onDead, hang)
	for i := range 3 {
		r.soonGoesOn(fmt.Sprintf("w%d", dead+i))
	}
	r.soon("a container's life", func() { r.wholeLife("fresh") })
	for id := range shorts {
		r.soon("start, exit and delete of "+id, func() {
			if err := r.Start(t.Context(), id); err != nil {
				t.Error(err)
			}
			if e := r.wait(id); e.Code != 0 || e.Lost {
				t.Errorf("%s: exit %+v", id, e)
			}
			if err := r.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	r.soon("kill and delete of one that writes", func() {
		if err := errors.Join(r.KillAll(t.Context(), "w0"), func() error { r.wait("w0"); return r.Delete(t.Context(), "w0") }()); err != nil {
			t.Error(err)
		}
	})
	delete(writers, "w0")
	r.soon("reopen", func() {
		if err := r.ReopenLog(t.Context(), "w1"); err == nil {
			t.Error("a log was reopened while it hangs")
		}
	})
	ended := regexp.MustCompile(`container="(w0|short[0-9])"`)
	if n := r.saidOf("does not take what was written", ended); n != short+1 {
		t.Errorf("of %d ends that are not waited for it says %d:\n%s", short+1, n, r.said())
	}
	if n := r.saidOf("its file system does not answer", onDead); n != hang {
		t.Errorf("%d visits hang, want %d", n, hang)
	}
	for i := range live {
		r.soonGoesOn(fmt.Sprintf("w%d", dead+i))
	}
	if err := <-created; err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("create with a log on a dead disk: %v", err)
	}

	thaw()
	r.endWriters(writers, false)
	r.waitSaid("its file system answers again", onDead, hang)
	for id, want := range shorts {
		r.waitLog(id, want[len(want)-1])
		if got := r.logLines(id, crilog.Stdout); !slices.Equal(got, want) {
			t.Errorf("%s: %d lines, want %d; last %q", id, len(got), len(want), got[len(got)-1])
		}
	}
	for i, line := range r.logLines("w0", crilog.Stdout) {
		// Its last one may be a part of a line, as it was killed.
		if want := fmt.Sprintf("line %012d ", i+1); !strings.HasPrefix(line+strings.Repeat(" ", len(want)), want[:min(len(line), len(want))]) {
			t.Fatalf("w0: line %d is %q", i+1, line)
		}
	}
	r.soon("a container's life", func() { r.wholeLife("last") })
	for id := range writers {
		if err := r.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if n := r.report().LogDropped; n != 0 {
		t.Errorf("%d bytes were dropped", n)
	}
	// Those that replaced the ones that hung are given up.
	r.awaitReport("journals", func(rep wire.Report) bool { return rep.Held == held })
}

// TestDeadLogDiskKill kills executor and keeper while logs hang. The kernel ends no
// process that waits for a disk, so the next executor may come only when that
// answers again; then nothing is lost.
func TestDeadLogDiskKill(t *testing.T) {
	for _, victim := range []string{"executor", "keeper"} {
		t.Run(victim, func(t *testing.T) {
			disk := newDisk(t)
			r := newRig(t)
			writers := make(map[string]wire.Created)
			for i := range 6 {
				id := fmt.Sprintf("w%d", i)
				writers[id] = r.container(id, []string{"lines", "500", strconv.Itoa(i + 1)}, r.logTo(disk.dir))
			}
			thaw := disk.freeze()
			r.waitSaid("its file system does not answer", regexp.MustCompile(`container w`), 4)
			pid := r.executorPID()
			if victim == "keeper" {
				pid = r.keeperPID()
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, err := r.Report(ctx)
			t.Logf("while the disk is dead: %v", err)
			thaw()
			r.nextExecutor()
			r.checkUntouched(writers)
			r.endWriters(writers, false)
		})
	}
}

// soonGoesOn waits until a writer's log has grown.
func (r *rig) soonGoesOn(id string) {
	r.t.Helper()
	was := len(r.logLines(id, ""))
	r.soon("log of "+id, func() {
		for deadline := time.Now().Add(30 * time.Second); len(r.logLines(id, "")) < was+300; {
			if time.Now().After(deadline) {
				r.t.Fatalf("log of %s stands still\n%s", id, r.said())
			}
			time.Sleep(5 * time.Millisecond) //nolint:forbidigo // a file that grows has no event that works everywhere
		}
	})
}

// wholeLife is all that may happen to a container.
func (r *rig) wholeLife(id string) {
	r.t.Helper()
	r.container(id, []string{"sleep", "9", "up"})
	r.waitLog(id, "up")
	r.exec(id, "x", execArgs("exit", "5"), wire.Exec{})
	if e := r.wait(id + "/x"); e.Code != 5 {
		r.t.Errorf("%s: exit of exec %+v", id, e)
	}
	if err := r.Signal(r.t.Context(), id, unix.SIGTERM); err != nil {
		r.t.Error(err)
	}
	if e := r.wait(id); e.Code != 9 {
		r.t.Errorf("%s: exit %+v", id, e)
	}
	if err := r.Delete(r.t.Context(), id); err != nil {
		r.t.Error(err)
	}
}

// full fills a small file system, but for nothing, and makes room again.
func full(t testing.TB, dir string) (room func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 64<<10); ; {
		if _, err := f.Write(b); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

func smallDisk(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("berth-test", dir, "tmpfs", 0, "size=32m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// TestFullLogDisk: a container waits for a log on a full disk, and loses nothing
// if there is room again in time, even where executors die meanwhile. A disk that
// stays full does not stop it: whole lines are dropped, and it is said how many.
func TestFullLogDisk(t *testing.T) {
	w4 := regexp.MustCompile(`container w4`)
	t.Run("for a moment", func(t *testing.T) {
		dir := smallDisk(t)
		r := newRig(t)
		r.container("w4", []string{"lines", "2000", "5"}, r.logTo(dir))
		r.waitLog("w4", "line 000000000100")
		const waits = "cannot be written; its output waits"
		for n := range 3 {
			before := r.saidOf(waits, w4)
			room := full(t, dir)
			r.waitSaid(waits, w4, before+1)
			kill(t, r.executorPID())
			r.nextExecutor()
			kill(t, r.executorPID())
			r.nextExecutor()
			r.soon("a container's life", func() { r.wholeLife(fmt.Sprintf("other%d", n)) })
			room()
			r.soonGoesOn("w4")
		}
		if err := r.Signal(t.Context(), "w4", unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if e := r.wait("w4"); e.Code != 5 {
			t.Errorf("exit = %+v", e)
		}
		r.waitLog("w4", "END")
		r.checkLines("w4", false)
	})
	t.Run("for long", func(t *testing.T) {
		dir := smallDisk(t)
		r := newRig(t)
		r.container("w4", []string{"lines", "2000", "5"}, r.logTo(dir))
		r.waitLog("w4", "line 000000000100")
		room := full(t, dir)
		r.waitSaid("what it writes is dropped until", w4, 1)
		r.awaitReport("much is dropped", func(rep wire.Report) bool { return rep.LogDropped > 1<<20 })
		room()
		r.waitSaid("can be written again", w4, 1)
		r.soonGoesOn("w4")
		dropped := r.report().LogDropped
		if err := r.Signal(t.Context(), "w4", unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if e := r.wait("w4"); e.Code != 5 {
			t.Errorf("exit = %+v", e)
		}
		r.waitLog("w4", "END")
		if _, lost := r.checkLines("w4", true); lost*92 != int(dropped) {
			t.Errorf("%d lines of 92 bytes are missing, and %d bytes were said to be dropped:\n%s", lost, dropped, r.said())
		}
	})
	t.Run("at its end", func(t *testing.T) {
		dir := smallDisk(t)
		r := newRig(t)
		args, want := numbered(0)
		r.create("c", args, r.logTo(dir))
		room := full(t, dir)
		r.soon("start, exit and delete", func() {
			if err := r.Start(t.Context(), "c"); err != nil {
				t.Error(err)
			}
			if e := r.wait("c"); e.Code != 0 {
				t.Errorf("exit = %+v", e)
			}
			if err := r.Delete(t.Context(), "c"); err != nil {
				t.Error(err)
			}
		})
		room()
		r.waitLog("c", want[len(want)-1])
		if got := r.logLines("c", crilog.Stdout); !slices.Equal(got, want) {
			t.Errorf("%d lines, want %d", len(got), len(want))
		}
	})
}
