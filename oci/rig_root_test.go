// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/oci/ocitest"
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
		built.guest, err = ocitest.Programs(built.dir).Guest()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// buildExecutor builds the executor, unless it is there, with a version of its own.
func buildExecutor(version string) (string, error) {
	return ocitest.Programs(built.dir).Executor(version)
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
	*ocitest.Node

	t      testing.TB
	name   string // unique: cgroup folder, and part of every path
	state  string // on a tmpfs
	base   string // on disk: root file system, logs
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
	return newRigOn(t, binary, func(*rig) {})
}

// newRigOn is newRigOf with a state folder that prepare has done something to.
func newRigOn(t testing.TB, binary string, prepare func(*rig)) *rig {
	t.Helper()
	r := &rig{t: t, base: t.TempDir()}
	ocitest.NewOn(t, binary, func(n *ocitest.Node) {
		r.Node, r.name, r.state = n, n.Name, n.Config.State
		prepare(r)
	})
	r.makeRoot()
	r.exits = watchExits(r.Executor)
	t.Cleanup(func() { r.exits.stop() }) // the last one
	return r
}

func (r *rig) said() string { return r.Said() }

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

func (r *rig) keeperPID() int {
	pid, err := r.KeeperPID()
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
	if err := ocitest.WaitGone(pid); err != nil {
		t.Fatal(err)
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
