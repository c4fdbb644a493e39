// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/oci/wire"
)

// built is where TestMain puts the executor and the guest.
var built struct{ dir, executor, guest string }

// prebuilt names the variable of a folder with the programs that the tests run,
// for a machine that has no Go: what is not in it is built into it. To fill it,
//
//	BERTH_TEST_BINARIES=DIR go test -tags root -run '^TestPrograms$' ./oci
//	go test -c -tags root -o DIR/oci.test ./oci
const prebuilt = "BERTH_TEST_BINARIES"

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if err := ownNamespace(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	built.dir = os.Getenv(prebuilt)
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "berth-oci")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		built.dir = dir
	}
	var err error
	if built.executor, err = buildExecutor("one"); err == nil {
		built.guest, err = build("guest", "./testdata/guest", "CGO_ENABLED=0", "-ldflags", "-s -w")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// buildExecutor builds the executor, unless it is there, with a version of its own.
func buildExecutor(version string) (string, error) {
	return build("berth-executor-"+version, "../cmd/berth-executor", "CGO_ENABLED=1",
		"-tags", "seccomp", "-ldflags", "-s -w -X main.version="+version)
}

func build(name, pkg, env string, args ...string) (string, error) {
	out := filepath.Join(built.dir, name)
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	cmd := exec.Command("go", append(append([]string{"build", "-o", out}, args...), pkg)...)
	cmd.Env = append(os.Environ(), env)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return out, nil
}

// TestPrograms builds what the tests run that is not needed by all of them.
func TestPrograms(t *testing.T) {
	if _, err := buildExecutor("two"); err != nil {
		t.Fatal(err)
	}
}

// rig is a keeper and an executor of their own, with what a test's containers
// need. All of it is gone when the test ends, and leak.Check sees to that.
type rig struct {
	*oci.Executor

	t      testing.TB
	name   string // unique: cgroup folder, and part of every path
	state  string // on a tmpfs
	base   string // on disk: root file system, logs
	log    string
	config oci.StartConfig
	exits  *exits
	always option // nil: none; applied to each request before its own
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigOf(t, built.executor)
}

// newRigOf is newRig with another executor.
func newRigOf(t testing.TB, binary string) *rig {
	t.Helper()
	name := "berth-test-" + strings.ToLower(rand.Text()[:8])
	r := &rig{t: t, name: name, base: t.TempDir()}
	// A tmpfs, as /run is on a node; not every machine's /run is one.
	r.state = filepath.Join("/dev/shm", name, "executor")
	r.log = filepath.Join("/dev/shm", name, "log")
	leak.Check(t, leak.Under("/dev/shm/"+name), leak.Cgroups(name))
	if err := os.MkdirAll(r.state, 0o711); err != nil {
		t.Fatal(err)
	}
	r.config = oci.StartConfig{State: r.state, Binary: binary, Log: r.log, Cgroup: "/" + name + "/keeper"}
	t.Cleanup(r.close)
	r.makeRoot()
	var err error
	if r.Executor, err = oci.Start(t.Context(), r.config); err != nil {
		t.Fatalf("%v\n%s", err, r.said())
	}
	r.exits = watchExits(r.Executor)
	return r
}

func (r *rig) said() string {
	b, _ := os.ReadFile(r.log)
	return string(b)
}

// makeRoot makes a root file system that has nothing but the guest.
func (r *rig) makeRoot() {
	root := filepath.Join(r.base, "root")
	for _, d := range []string{"proc", "dev", "sys", "tmp", "vol", "run"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := os.Link(built.guest, filepath.Join(root, "guest")); err != nil {
		b, err := os.ReadFile(built.guest)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, "guest"), b, 0o755)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	for _, d := range []string{"logs", "upper"} {
		if err := os.MkdirAll(filepath.Join(r.base, d), 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
}

// close ends every container, then executor and keeper, and takes away what the
// first start of an executor leaves for the next.
func (r *rig) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if r.t.Failed() {
		r.t.Logf("executor said:\n%s", r.said())
	}
	if r.exits != nil {
		r.exits.stop()
	}
	e, err := oci.Start(ctx, r.config) // whatever the test has killed
	if err != nil {
		r.t.Errorf("clean up: %v\n%s", err, r.said())
		return
	}
	if r.Executor != nil {
		r.Executor.Close()
	}
	defer e.Close()
	o, err := e.Observe(ctx)
	if err != nil {
		r.t.Errorf("clean up: %v", err)
	}
	var wg sync.WaitGroup
	for _, c := range o.Containers {
		wg.Go(func() {
			if err := errors.Join(e.KillAll(ctx, c.ID), e.Delete(ctx, c.ID)); err != nil {
				r.t.Errorf("clean up %s: %v", c.ID, err)
			}
		})
	}
	wg.Wait()
	for _, id := range o.Pods {
		if err := e.PodDelete(ctx, id); err != nil {
			r.t.Errorf("clean up pod %s: %v", id, err)
		}
	}
	keeper := r.keeperPID()
	if err := e.Quit(ctx); err != nil {
		r.t.Errorf("clean up: %v", err)
	}
	waitGone(r.t, keeper)
	if err := unix.Unmount(filepath.Join(r.state, "m"), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		r.t.Errorf("clean up: %v", err)
	}
	if err := os.RemoveAll(filepath.Dir(r.state)); err != nil {
		r.t.Errorf("clean up: %v", err)
	}
	removeCgroups(r.t, r.name)
}

// removeCgroups removes the empty folders that libcontainer makes as parents.
func removeCgroups(t testing.TB, name string) {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	dirs = append(dirs, "/sys/fs/cgroup/"+name)
	for _, d := range slices.Clone(dirs) {
		dirs = slices.Insert(dirs, 0, filepath.Join(d, "keeper"))
	}
	for _, d := range dirs {
		if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("clean up: %v", err)
		}
	}
}

func (r *rig) keeperPID() int {
	b, err := os.ReadFile(filepath.Join(r.state, "keeper.pid"))
	if err != nil {
		r.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil {
		r.t.Fatal(err)
	}
	return pid
}

func (r *rig) executorPID() int {
	r.t.Helper()
	p, err := r.Peer(context.Background())
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.said())
	}
	return p.PID
}

// kill sends SIGKILL to one of our own processes and waits until it is gone.
func kill(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
	waitGone(t, pid)
}

// waitGone waits until a process has ended; a zombie that nobody reaps has.
func waitGone(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := unix.Poll(poll, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		if n > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not end", pid)
		}
	}
}

// option changes a request.
type option func(*wire.Create)

// container creates and starts a container that runs the guest with args.
func (r *rig) container(id string, args []string, opts ...option) wire.Created {
	r.t.Helper()
	created := r.create(id, args, opts...)
	if err := r.Start(r.t.Context(), id); err != nil {
		r.t.Fatalf("start %s: %v\n%s", id, err, r.said())
	}
	return created
}

func (r *rig) create(id string, args []string, opts ...option) wire.Created {
	r.t.Helper()
	created, err := r.Create(r.t.Context(), r.request(id, args, opts...))
	if err != nil {
		r.t.Fatalf("create %s: %v\n%s", id, err, r.said())
	}
	return created
}

func (r *rig) request(id string, args []string, opts ...option) wire.Create {
	upper, work := filepath.Join(r.base, "upper", id), filepath.Join(r.base, "upper", id+".work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	req := wire.Create{
		ID:      id,
		Spec:    testSpec(args, "/"+r.name+"/"+id),
		Rootfs:  wire.Rootfs{Lower: []string{filepath.Join(r.base, "root")}, Upper: upper, Work: work, Volatile: true},
		LogPath: r.logPath(id),
	}
	if r.always != nil {
		r.always(&req)
	}
	for _, o := range opts {
		o(&req)
	}
	return req
}

func (r *rig) logPath(id string) string { return filepath.Join(r.base, "logs", id) }

func testSpec(args []string, cgroup string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args: append([]string{"/guest"}, args...), Cwd: "/", Env: []string{"PATH=/"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
}

// exits collects what the executor tells, and acknowledges it.
type exits struct {
	stop func()

	mu   sync.Mutex
	seen map[string]wire.Exit // by container, or container/exec
	more chan struct{}        // closed and renewed with each
}

func watchExits(e *oci.Executor) *exits {
	ctx, cancel := context.WithCancel(context.Background())
	x := &exits{seen: make(map[string]wire.Exit), more: make(chan struct{})}
	done := make(chan struct{})
	x.stop = func() { cancel(); <-done }
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			// It ends when both executor and keeper are killed, too; a test that does so
			// starts them again.
			_ = e.Events(ctx, func(exit wire.Exit) error {
				x.add(exit)
				return e.Ack(ctx, exit.ID, exit.Exec)
			})
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond): // do not spin while nobody is there
			}
		}
	}()
	return x
}

func (x *exits) add(e wire.Exit) {
	x.mu.Lock()
	defer x.mu.Unlock()
	name := e.ID
	if e.Exec != "" {
		name += "/" + e.Exec
	}
	x.seen[name] = e
	close(x.more)
	x.more = make(chan struct{})
}

// wait returns the exit of a container, or of "container/exec".
func (r *rig) wait(name string) wire.Exit {
	r.t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	for {
		r.exits.mu.Lock()
		e, ok := r.exits.seen[name]
		more := r.exits.more
		r.exits.mu.Unlock()
		if ok {
			return e
		}
		select {
		case <-more:
		case <-deadline.C:
			r.t.Fatalf("no exit of %s was told\n%s", name, r.said())
		}
	}
}

// logLines returns a container's log as lines of one stream, "" for both.
func (r *rig) logLines(id string, stream crilog.Stream) []string {
	r.t.Helper()
	b, err := os.ReadFile(r.logPath(id))
	if err != nil {
		r.t.Fatal(err)
	}
	var list []string
	for line, err := range crilog.Lines(bytes.NewReader(b), 1<<20) {
		if err != nil {
			r.t.Fatalf("log of %s: %v", id, err)
		}
		if stream == "" || line.Stream == stream {
			list = append(list, string(line.Content))
		}
	}
	return list
}

// waitLog waits until the log has a line with text in it.
func (r *rig) waitLog(id, text string) {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		b, _ := os.ReadFile(r.logPath(id))
		if bytes.Contains(b, []byte(text)) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("log of %s has no %q:\n%.2000s\n%s", id, text, b, r.said())
		}
		time.Sleep(2 * time.Millisecond) //nolint:forbidigo // a file that grows has no event that works everywhere
	}
}
