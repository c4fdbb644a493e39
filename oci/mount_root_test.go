// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/oci/wire"
)

// propagation names the variable that makes a test process change its "/", which
// is in a mount namespace of its own then.
const propagation = "BERTH_TEST_PROPAGATION"

// ownNamespace is called before any test.
func ownNamespace() error {
	switch mode := os.Getenv(propagation); mode {
	case "":
		return nil
	case "shared":
		return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
	case "private":
		return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
	default:
		return fmt.Errorf("%s=%s: want shared or private", propagation, mode)
	}
}

// TestOtherPropagation runs the tests of this file again in a mount namespace
// whose "/" is what the machine's is not: shared, as systemd makes it, or private.
func TestOtherPropagation(t *testing.T) {
	other := "shared"
	if strings.Contains(mountOf(t, "self", "/"), " shared:") {
		other = "private"
	}
	again(t, other, "TestMountinfo", "TestPodShares", "TestPropagation", "TestLayers")
}

// again runs tests in another process, whose mount namespace is its own.
func again(t *testing.T, mode string, names ...string) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.v", "-test.run=^("+strings.Join(names, "|")+")$")
	cmd.Env = append(os.Environ(), propagation+"="+mode, prebuilt+"="+built.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "\n--- PASS") != len(names) {
		t.Errorf("with a %s \"/\": %v\n%s", mode, err, out)
	}
}

// mounts returns the lines of a process's mountinfo.
func mounts(t testing.TB, pid string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// mountOf returns the line of the topmost mount at path, "" if there is none.
func mountOf(t testing.TB, pid, path string) string {
	t.Helper()
	found := ""
	for _, line := range mounts(t, pid) {
		if strings.Fields(line)[4] == path {
			found = line
		}
	}
	return found
}

// hostMounts returns what the tests of r have in the host's mountinfo: all of it
// where the namespace is the test's own, but for what was there of other rigs, which
// ends when their namespace takes it down.
func (r *rig) hostMounts() []string {
	r.t.Helper()
	lines := mounts(r.t, "self")
	if os.Getenv(propagation) != "" {
		return slices.DeleteFunc(lines, func(line string) bool {
			return strings.Contains(line, "/berth-test-") && !strings.Contains(line, r.name)
		})
	}
	return slices.DeleteFunc(lines, func(line string) bool {
		return !strings.Contains(line, r.name) && !strings.Contains(line, r.base)
	})
}

// podNamespaces makes IPC and UTS namespaces that nobody is in.
func podNamespaces(t testing.TB) []*os.File {
	t.Helper()
	var files []*os.File
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
		for _, kind := range []string{"ipc", "uts"} {
			f, ferr := os.Open("/proc/thread-self/ns/" + kind)
			files, err = append(files, f), errors.Join(err, ferr)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range files {
			f.Close()
		}
	})
	return files
}

func (r *rig) pod(id string) {
	r.t.Helper()
	p := wire.PodCreate{ID: id, ShmSize: 1 << 20, Namespaces: []string{"ipc", "uts"}}
	if err := r.PodCreate(r.t.Context(), p, podNamespaces(r.t)); err != nil {
		r.t.Fatalf("pod %s: %v\n%s", id, err, r.said())
	}
}

// inPod makes a container share what its pod holds.
func inPod(id string) option {
	return func(c *wire.Create) {
		c.Pod = id
		for i, ns := range c.Spec.Linux.Namespaces {
			if ns.Type == specs.IPCNamespace || ns.Type == specs.UTSNamespace {
				c.Spec.Linux.Namespaces[i].Path = wire.FromPod
			}
		}
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: wire.PodShm, Options: []string{"rbind", "rw"}})
	}
}

// withAdmin lets a container mount, and name its pod.
func withAdmin(c *wire.Create) {
	for _, set := range []*[]string{
		&c.Spec.Process.Capabilities.Bounding, &c.Spec.Process.Capabilities.Permitted, &c.Spec.Process.Capabilities.Effective,
	} {
		*set = append(*set, "CAP_SYS_ADMIN")
	}
}

// runs runs a container to its end, which must be with code, and returns the
// first line that it has written.
func (r *rig) runs(id string, code int, args []string, opts ...option) string {
	r.t.Helper()
	r.container(id, args, opts...)
	exit := r.wait(id)
	lines := r.logLines(id, crilog.Stdout)
	if exit.Code != code {
		r.t.Errorf("%s: %q ended with %d, want %d: %q", id, args, exit.Code, code, lines)
	}
	if len(lines) == 0 {
		return ""
	}
	return lines[0]
}

// restart kills the executor, or the keeper, and waits for the next executor.
func (r *rig) restart(v victim) {
	r.t.Helper()
	if v == killKeeper {
		r.killKeeper()
	} else {
		kill(r.t, r.executorPID())
	}
	r.nextExecutor()
}

// TestMountinfo runs 20 containers of 5 pods and goes through the death of each
// process: the host's mountinfo has one line more than without berth, always the
// same, and the executor keeps no root file system mounted.
func TestMountinfo(t *testing.T) {
	before := mounts(t, "self")
	r := newRig(t)
	if os.Getenv(propagation) == "" {
		before = nil // of those that name r
	}
	first := r.hostMounts()
	if len(first) != len(before)+1 || strings.Fields(mountOf(t, "self", filepath.Join(r.state, "m")))[6] != "-" {
		t.Fatalf("mounts for an executor:\n%s\nwant one more than\n%s\nand that one private", strings.Join(first, "\n"), strings.Join(before, "\n"))
	}
	check := func(when string) {
		t.Helper()
		r.checkPlace(strings.Contains(mountOf(t, "self", "/"), " shared:"))
		if now := r.hostMounts(); !slices.Equal(now, first) {
			t.Fatalf("mounts %s:\n%s\nwant\n%s", when, strings.Join(now, "\n"), strings.Join(first, "\n"))
		}
		for _, line := range mounts(t, fmt.Sprint(r.executorPID())) {
			if strings.Contains(line, r.name) && strings.Contains(line, "/rootfs ") {
				t.Errorf("%s the executor still has %s", when, line)
			}
		}
	}
	for p := range 5 {
		pod := fmt.Sprintf("p%d", p)
		r.pod(pod)
		for c := range 4 {
			r.container(fmt.Sprintf("%s-%d", pod, c), nil, inPod(pod))
		}
	}
	check("with 20 containers")
	for n, v := range []victim{killExecutor, killKeeper, killExecutor, killExecutor, killKeeper, killExecutor, killKeeper, killExecutor} {
		r.restart(v)
		check(fmt.Sprintf("after death %d", n))
	}
	r.container("late", nil, inPod("p0"))
	check("with one container more")
}

// checkPlace checks that the executor is in a mount namespace of its own, or in
// the host's.
func (r *rig) checkPlace(own bool) {
	r.t.Helper()
	host, err := os.Readlink("/proc/self/ns/mnt")
	executor, eerr := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", r.executorPID()))
	if err != nil || eerr != nil || (host != executor) != own {
		r.t.Errorf("executor is in %s, host in %s (%v, %v); want it to have its own: %v", executor, host, err, eerr, own)
	}
}

// TestRootBecomesShared makes "/" shared under an executor that has begun with a
// private one, as on a node whose administrator mends it later: a copy of the
// namespace that was made before would not be told of mounts.
func TestRootBecomesShared(t *testing.T) {
	if os.Getenv(propagation) == "" {
		again(t, "private", "TestRootBecomesShared")
		return
	}
	r := newRig(t)
	r.pod("p")
	r.runs("w", 0, []string{"write", "/dev/shm/note", "here"}, inPod("p"))
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	for n, v := range []victim{killExecutor, killKeeper} {
		r.restart(v)
		r.checkPlace(false)
		if got := r.runs(fmt.Sprintf("r%d", n), 0, []string{"show", "/dev/shm/note"}, inPod("p")); got != "here" {
			t.Errorf("/dev/shm has %q", got)
		}
	}
}

// TestPodShares checks that a pod's /dev/shm, IPC and UTS namespaces are its
// containers' own, and outlive executor and keeper.
func TestPodShares(t *testing.T) {
	r := newRig(t)
	r.pod("one")
	r.pod("two")
	r.runs("w1", 0, []string{"write", "/dev/shm/note", "was here"}, inPod("one"))
	r.runs("w2", 0, []string{"ipc", "make", "77"}, inPod("one"))
	r.runs("w3", 0, []string{"hostname", "first"}, inPod("one"), withAdmin)
	for n, v := range []victim{killExecutor, killKeeper, killExecutor} {
		r.restart(v)
		id := func(s string) string { return fmt.Sprintf("%s%d", s, n) }
		if got := r.runs(id("shm"), 0, []string{"show", "/dev/shm/note"}, inPod("one")); got != "was here" {
			t.Errorf("/dev/shm has %q", got)
		}
		r.runs(id("ipc"), 0, []string{"ipc", "find", "77"}, inPod("one"))
		if got := r.runs(id("uts"), 0, []string{"hostname"}, inPod("one")); got != "first" {
			t.Errorf("hostname = %q", got)
		}
		r.runs(id("othershm"), 1, []string{"show", "/dev/shm/note"}, inPod("two"))
		r.runs(id("otheripc"), 1, []string{"ipc", "find", "77"}, inPod("two"))
		if got := r.runs(id("otheruts"), 0, []string{"hostname"}, inPod("two")); got == "first" {
			t.Error("the other pod has the hostname, too")
		}
	}
	// The size is the one that was asked for.
	r.container("size", nil, inPod("one"))
	if line := r.mountIn("size", "/dev/shm"); !strings.Contains(line, "size=1024k") {
		t.Errorf("/dev/shm is %q, want 1024k", line)
	}
}

// mountIn returns the line of a mount in a running container.
func (r *rig) mountIn(id, path string) string {
	r.t.Helper()
	o, err := r.Observe(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range o.Containers {
		if c.ID == id {
			return mountOf(r.t, fmt.Sprint(c.Process.PID), path)
		}
	}
	r.t.Fatalf("no container %s", id)
	return ""
}

// TestPropagation mounts on the host and in containers, and looks on the other
// side: before and after the death of the executor, and of the keeper, in
// containers of the old executor and of the new.
func TestPropagation(t *testing.T) {
	r := newRig(t)
	vol := filepath.Join(r.base, "vol")
	mountAt(t, vol, unix.MS_SHARED)
	modes := []string{"rprivate", "rslave", "rshared"}
	ids := map[string]string{} // → mode
	add := func(suffix string) {
		for _, mode := range modes {
			id := mode + suffix
			ids[id] = mode
			if err := os.MkdirAll(filepath.Join(vol, id), 0o755); err != nil {
				t.Fatal(err)
			}
			r.container(id, []string{"volume", "/vol/" + id}, withAdmin, func(c *wire.Create) {
				c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: vol, Options: []string{"rbind", mode}})
				if mode != "rprivate" {
					c.Spec.Linux.RootfsPropagation = mode
				}
			})
			r.waitLog(id, "ready")
		}
	}
	signals := map[string]int{}
	toggle := func(id string) {
		t.Helper()
		signals[id]++
		if err := r.Signal(t.Context(), id, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		r.waitLog(id, fmt.Sprintf("done %d <nil>", signals[id]))
	}
	fromHost := filepath.Join(vol, "host")
	check := func(when string) {
		t.Helper()
		want := func(id, where string, is, expected bool) {
			t.Helper()
			if is != expected {
				t.Errorf("%s, %s: mounted %s: %v, want %v", when, id, where, is, expected)
			}
		}
		if err := os.MkdirAll(fromHost, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("host", fromHost, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		for id, mode := range ids {
			want(id, "inside", r.mountIn(id, "/vol/host") != "", mode != "rprivate")
		}
		if err := unix.Unmount(fromHost, 0); err != nil {
			t.Fatal(err)
		}
		for id, mode := range ids {
			want(id, "inside after the host's unmount", r.mountIn(id, "/vol/host") != "", false)
			toggle(id)
			want(id, "on the host", mountOf(t, "self", filepath.Join(vol, id)) != "", mode == "rshared")
			toggle(id)
			want(id, "on the host after the container's unmount", mountOf(t, "self", filepath.Join(vol, id)) != "", false)
		}
	}
	add("-1")
	check("at first")
	r.restart(killExecutor)
	add("-2")
	check("after the executor's death")
	r.restart(killKeeper)
	add("-3")
	check("after the keeper's death")
	// Else the host's folder would be busy.
	for id := range ids {
		if err := errors.Join(r.KillAll(t.Context(), id), r.Delete(t.Context(), id)); err != nil {
			t.Error(err)
		}
	}
}

// mountAt makes a folder and mounts a tmpfs there until the end of the test, when
// nobody may still hold it.
func mountAt(t testing.TB, dir string, flags uintptr) {
	t.Helper()
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = unix.Mount("berth-test", dir, "tmpfs", 0, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	if err := unix.Mount("", dir, "", flags, ""); err != nil {
		t.Fatal(err)
	}
}

// unmount fails while anything in any mount namespace uses the file system: a
// dying process is given a moment.
func unmount(t testing.TB, dir string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := unix.Unmount(dir, 0)
		if err == nil || errors.Is(err, unix.EINVAL) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
			return
		}
		time.Sleep(5 * time.Millisecond) //nolint:forbidigo // the end of a mount has no event
	}
}

// TestLayers starts containers on overlays of many layers with paths longer than
// an option may be, and checks that nothing holds the layers when they are deleted.
func TestLayers(t *testing.T) {
	for _, tt := range []struct {
		name           string
		layers         int
		upper, changed bool // a folder to write to; the root may be written
	}{
		{"1", 1, true, true},
		{"60", 60, true, true},
		{"127", 127, true, true},
		{"200", 200, true, true},
		{"read-only", 3, true, false},
		{"no upper folder", 3, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			backing := filepath.Join(r.base, "backing")
			if err := os.MkdirAll(backing, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("berth-test", backing, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			defer unmount(t, backing) // before the rig's end: the container's end must do
			lower := makeLayers(t, backing, filepath.Join(r.base, "root"), tt.layers)
			rootfs := func(c *wire.Create) {
				c.Rootfs = wire.Rootfs{Lower: lower}
				if tt.upper {
					c.Rootfs.Upper, c.Rootfs.Work = filepath.Join(backing, c.ID, "upper"), filepath.Join(backing, c.ID, "work")
					c.Rootfs.Volatile = true
					if err := errors.Join(os.MkdirAll(c.Rootfs.Upper, 0o755), os.MkdirAll(c.Rootfs.Work, 0o755)); err != nil {
						t.Fatal(err)
					}
				}
				if tt.upper && !tt.changed {
					c.Spec.Root = &specs.Root{Readonly: true}
				}
			}
			r.container("run", nil, rootfs)
			r.runs("ls", 0, []string{"ls", "/"}, rootfs)
			for i := range tt.layers {
				if name := fmt.Sprintf("f%d ", i); !slices.Contains(r.logLines("ls", crilog.Stdout), name) {
					t.Errorf("no %q of layer %d", name, i)
				}
			}
			if got := r.runs("show", 0, []string{"show", "/same"}, rootfs); got != "layer 0" {
				t.Errorf("/same is of %q, want the topmost", got)
			}
			code := 1
			if tt.changed {
				code = 0
			}
			if got := r.runs("write", code, []string{"write", "/new", "x"}, rootfs); code == 1 && !strings.Contains(got, "read-only") {
				t.Errorf("write = %q, want a read-only file system", got)
			}
			for _, id := range []string{"ls", "show", "write"} {
				if err := r.Delete(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
			// One goes by Delete alone, in an executor that has not made it.
			r.restart(killExecutor)
			if err := errors.Join(r.KillAll(t.Context(), "run"), r.Delete(t.Context(), "run")); err != nil {
				t.Error(err)
			}
		})
	}
}

// makeLayers makes n layers, the topmost first; the last one has what is in root.
func makeLayers(t testing.TB, dir, root string, n int) []string {
	t.Helper()
	var lower []string
	for i := range n {
		// Longer than fsconfig(2) takes, and with what has a meaning in an option.
		layer := filepath.Join(dir, strings.Repeat("long-", 40), fmt.Sprintf(`%s-%d,a:b\c`, strings.Repeat("layer-", 30), i))
		lower = append(lower, layer)
		err := os.MkdirAll(layer, 0o755)
		for name, text := range map[string]string{fmt.Sprintf("f%d", i): "", "same": fmt.Sprintf("layer %d", i)} {
			err = errors.Join(err, os.WriteFile(filepath.Join(layer, name), []byte(text), 0o644))
		}
		if i == n-1 {
			err = errors.Join(err, os.CopyFS(layer, os.DirFS(root)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return lower
}

// TestWrongRoot checks that what cannot be mounted is named, and leaves nothing.
func TestWrongRoot(t *testing.T) {
	r := newRig(t)
	root := filepath.Join(r.base, "root")
	file := filepath.Join(root, "guest")
	missing := filepath.Join(r.base, "no-such-layer")
	for _, tt := range []struct {
		name, says string
		code       wire.Code
		change     func(*wire.Rootfs)
	}{
		{"missing layer", missing, wire.Failed, func(r *wire.Rootfs) { r.Lower = []string{root, missing} }},
		{"layer is a file", file, wire.Failed, func(r *wire.Rootfs) { r.Lower = []string{file, root} }},
		{"missing upper folder", missing, wire.Failed, func(r *wire.Rootfs) { r.Upper = missing }},
		{"missing work folder", missing, wire.Failed, func(r *wire.Rootfs) { r.Work = missing }},
		{"too many layers", "limit is 500", wire.Failed, func(r *wire.Rootfs) { r.Lower = slices.Repeat(r.Lower, 501) }},
		{"nothing", "root file system", wire.Invalid, func(r *wire.Rootfs) { *r = wire.Rootfs{} }},
		{"one layer and no upper folder", "root file system", wire.Invalid, func(r *wire.Rootfs) { *r = wire.Rootfs{Lower: r.Lower} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := r.request("c", nil)
			tt.change(&req.Rootfs)
			_, err := r.Create(t.Context(), req)
			wantCode(t, err, tt.code)
			if err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error = %v, want it to name %s", err, tt.says)
			}
			r.checkEmpty(t)
		})
	}
	r.container("c", nil) // the id is free
}

// checkEmpty checks that the executor holds no container or pod and has nothing
// left of one.
func (r *rig) checkEmpty(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	defer cancel()
	o, err := r.Observe(ctx)
	if err != nil || len(o.Containers)+len(o.Pods)+len(o.Execs) > 0 {
		t.Errorf("executor still has %+v, %v", o, err)
	}
	for _, dir := range []string{"m", "c", "p", "lc", "exit", "slice"} {
		if names := r.namesIn(dir); len(names) > 0 {
			t.Errorf("left in %s: %q", dir, names)
		}
	}
}

// namesIn lists a folder of the executor's state, as the executor sees it.
func (r *rig) namesIn(dir string) []string {
	r.t.Helper()
	entries, err := os.ReadDir(filepath.Join(fmt.Sprintf("/proc/%d/root", r.executorPID()), r.state, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.t.Error(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
