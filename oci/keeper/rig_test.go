// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
)

// patience is far above what any of this takes: only a test that fails waits so long.
const patience = 60 * time.Second

// rig is a keeper with an executor that does as it is told. Nothing of it is left
// when the test ends.
type rig struct {
	t      testing.TB
	dir    string // of the test
	state  string
	log    string
	listen *net.UnixListener

	keeper *process
	exec   *executor
	all    []*process
	cmds   []*exec.Cmd
}

// process is known by a pidfd, so that nothing hits another that has its number.
type process struct {
	pid   int
	start uint64
	fd    int
}

type executor struct {
	*process
	greeting
	conn net.Conn
	enc  *json.Encoder
	dec  *json.Decoder
}

// newRig makes the folders; start starts the keeper.
func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	leak.Check(t, leak.Under(r.dir))
	r.state, r.log = filepath.Join(r.dir, "s"), filepath.Join(r.dir, "log")
	if err := os.Mkdir(r.state, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	r.listenAt(filepath.Join(r.state, "control"))
	return r
}

func (r *rig) listenAt(path string) {
	r.t.Helper()
	if r.listen != nil {
		r.listen.Close()
	}
	var err error
	if r.listen, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		r.t.Fatal(err)
	}
}

// running returns a keeper whose first executor has said hello.
func running(t testing.TB) *rig {
	t.Helper()
	r := newRig(t)
	r.start(r.command(self(t)))
	r.next()
	return r
}

func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// command is that of a keeper which is to start exe.
func (r *rig) command(exe string) *exec.Cmd {
	return exec.Command(self(r.t), "keeper", r.state, exe)
}

func (r *rig) start(cmd *exec.Cmd) {
	r.t.Helper()
	if cmd.Stderr == nil {
		log, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			r.t.Fatal(err)
		}
		defer log.Close()
		cmd.Stderr = log
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.cmds = append(r.cmds, cmd)
	r.keeper = r.process(cmd.Process.Pid)
}

// process opens a pidfd.
//
// Preconditions: the process is a child of ours, or of one that does not reap it now.
func (r *rig) process(pid int) *process {
	r.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		r.t.Fatalf("pidfd of %d: %v", pid, err)
	}
	p := &process{pid: pid, fd: fd}
	if _, p.start, err = procStat(pid); err != nil {
		r.t.Fatal(err)
	}
	r.all = append(r.all, p)
	return p
}

func (p *process) signal(t testing.TB, sig unix.Signal) {
	t.Helper()
	if err := unix.PidfdSendSignal(p.fd, sig, nil, 0); err != nil {
		t.Fatalf("signal %d to %d: %v", sig, p.pid, err)
	}
}

// key names the process as the keeper does.
func (p *process) key() string { return fmt.Sprintf("%d-%d", p.pid, p.start) }

// ended waits until the process has ended, reaped or not.
func (p *process) ended(t testing.TB) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(patience); ; {
		n, err := unix.Poll(fds, 1000)
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		if n > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not end", p.pid)
		}
	}
}

// state returns the letter of /proc/PID/stat, "" once the process is reaped.
func (p *process) state() string {
	state, start, err := procStat(p.pid)
	if err != nil || start != p.start {
		return ""
	}
	return state
}

// eventually waits until what is asked for is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("in vain: %s", what)
		}
	}
}

// next waits for an executor to say hello.
func (r *rig) next() *executor {
	r.t.Helper()
	if err := r.listen.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	conn, err := r.listen.Accept()
	if err != nil {
		r.t.Fatalf("no executor: %v\n%s", err, r.said())
	}
	r.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	e := &executor{conn: conn, enc: json.NewEncoder(conn), dec: json.NewDecoder(conn)}
	if err := e.dec.Decode(&e.greeting); err != nil {
		r.t.Fatalf("hello: %v\n%s", err, r.said())
	}
	e.process = r.process(e.greeting.PID)
	r.exec = e
	if r.keeper.pid != e.Parent {
		r.keeper = r.process(e.Parent)
	}
	return e
}

// try has the executor do something; false means that it ended over it.
func (r *rig) try(o order) (report, bool) {
	r.t.Helper()
	var rep report
	if err := r.exec.enc.Encode(o); err != nil {
		return rep, false
	}
	err := r.exec.dec.Decode(&rep)
	return rep, err == nil
}

// do has the executor do something that must succeed.
func (r *rig) do(o order) report {
	r.t.Helper()
	rep, ok := r.try(o)
	if !ok || rep.Err != "" {
		r.t.Fatalf("%s %s: %q, alive: %t\n%s", o.Do, o.Name, rep.Err, ok, r.said())
	}
	return rep
}

func (r *rig) put(name string, paths ...string) {
	r.t.Helper()
	r.do(order{Do: "put", Name: name, Paths: paths})
}

// kill ends the executor as a crash does, and returns the next.
func (r *rig) kill() *executor {
	r.t.Helper()
	r.exec.signal(r.t, unix.SIGKILL)
	return r.next()
}

// child has the executor start a script. What is written to the fifo comes to it
// as the shell's variable x.
func (r *rig) child(script string) *process {
	r.t.Helper()
	return r.process(r.do(order{Do: "child", Script: script}).PID)
}

// orphan is a child of the keeper, while the executor is alive.
func (r *rig) orphan(script string) *process {
	r.t.Helper()
	p := r.process(r.do(order{Do: "child", Script: script, N: 2}).PID)
	return p
}

// said is what keeper and executors have written.
func (r *rig) said() string {
	b, _ := os.ReadFile(r.log)
	return string(b)
}

// file makes a file and returns its path and identity.
func (r *rig) file(name string) (string, file) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	return path, identify(int(f.Fd()))
}

// fifo is a pipe with a name, of which the test has the read end.
type fifo struct {
	path string
	r    *os.File
}

// fifo makes one. w is for what is to be told to a script.
func (r *rig) fifo(name string) *fifo {
	r.t.Helper()
	f := &fifo{path: filepath.Join(r.dir, name)}
	if err := unix.Mkfifo(f.path, 0o600); err != nil {
		r.t.Fatal(err)
	}
	fd, err := unix.Open(f.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	f.r = os.NewFile(uintptr(fd), f.path)
	r.t.Cleanup(func() { f.r.Close() })
	return f
}

// tell opens the fifo for writing, for a reader in a script, and writes a line.
func (f *fifo) tell(t testing.TB, text string) {
	t.Helper()
	w, err := os.OpenFile(f.path, os.O_RDWR, 0) // RDWR: waits for nobody
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	if _, err := fmt.Fprintln(w, text); err != nil {
		t.Fatal(err)
	}
}

// hungUp says whether the last writer has closed.
func (f *fifo) hungUp(t testing.TB) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(f.r.Fd())}}
	if _, err := unix.Poll(fds, 0); err != nil && !errors.Is(err, unix.EINTR) {
		t.Fatal(err)
	}
	return fds[0].Revents&unix.POLLHUP != 0
}

// exitFile returns the keeper's exit file of a process, "" if there is none.
func (r *rig) exitFile(p *process) string {
	b, err := os.ReadFile(filepath.Join(r.state, "exit", p.key()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.t.Error(err)
	}
	return string(b)
}

// wantExit waits until a process is reaped and checks its exit file, which must
// be there by then.
func (r *rig) wantExit(p *process, want string, since time.Time) {
	r.t.Helper()
	eventually(r.t, "process is reaped", func() bool { return p.state() == "" })
	text := r.exitFile(p)
	m := regexp.MustCompile(`^((?:exited|killed) \d+) (\d+)\n$`).FindStringSubmatch(text)
	if m == nil || m[1] != want {
		r.t.Fatalf("exit file of %s is %q, want %q and a time\n%s", p.key(), text, want, r.said())
	}
	ns, err := strconv.ParseInt(m[2], 10, 64)
	if at := time.Unix(0, ns); err != nil || at.Before(since) || at.After(time.Now()) {
		r.t.Errorf("time in %q is not between %v and now", text, since)
	}
}

// wantHeld compares what an executor was handed with what there should be.
func (r *rig) wantHeld(want ...held) {
	r.t.Helper()
	byName := func(a, b held) int { return strings.Compare(a.Name, b.Name) }
	got := slices.SortedFunc(slices.Values(r.exec.Held), byName)
	slices.SortFunc(want, byName)
	if !slices.EqualFunc(got, want, func(a, b held) bool { return a.Name == b.Name && slices.Equal(a.Files, b.Files) }) {
		r.t.Errorf("handed over: %v\nwant: %v\n%s", got, want, r.said())
	}
}

// close ends all that the rig has seen, and what came of it.
func (r *rig) close() {
	if r.t.Failed() {
		r.t.Logf("keeper and executors said:\n%s", r.said())
	}
	r.listen.Close() // an executor that starts now has nobody to obey, and quits
	// The executor must not take the keeper's place, nor the keeper start another.
	if r.exec != nil {
		_ = unix.PidfdSendSignal(r.exec.fd, unix.SIGSTOP, nil, 0)
	}
	if r.keeper != nil {
		_ = unix.PidfdSendSignal(r.keeper.fd, unix.SIGKILL, nil, 0)
	}
	for _, p := range r.all {
		_ = unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0) // or it has ended
	}
	for _, cmd := range r.cmds {
		_ = cmd.Wait()
	}
	for _, p := range r.all {
		// Ours, now that their parents have gone.
		for errors.Is(unix.Waitid(unix.P_PIDFD, p.fd, nil, unix.WEXITED, nil), unix.EINTR) {
		}
		unix.Close(p.fd)
	}
	eventually(r.t, "nothing of the keeper's is left", reapStrays)
}

// reapStrays reaps what ended without our having been told of it, and says whether
// no child is left.
func reapStrays() bool {
	left := false
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if b, err := os.ReadFile(dir + "/stat"); err == nil {
			fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
			if fields[1] == strconv.Itoa(os.Getpid()) {
				n, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
				left = left || n == 0 && err == nil
			}
		}
	}
	return !left
}
