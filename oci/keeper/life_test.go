// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/keeper"
)

// link gives the test binary one more path.
func (r *rig) link(name string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.Link(self(r.t), path); err == nil {
		return path
	}
	b, err := os.ReadFile(self(r.t)) // on another file system
	if err == nil {
		err = os.WriteFile(path, b, 0o700)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return path
}

// image is the file that a process runs.
func (p *process) image(t testing.TB) string {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// The keeper becomes another binary by execve: it is the same process, with the
// same children and names, and nobody notices.
func TestReplace(t *testing.T) {
	r := running(t)
	pipe := r.fifo("pipe")
	mine := r.child(fmt.Sprintf("read x <%s; exit 2", pipe.path))
	orphan := r.orphan(fmt.Sprintf("read x <%s; exit 3", pipe.path))
	p, f := r.file("f")
	r.put("c/"+mine.key(), p)
	r.put("c/"+orphan.key(), p, p)
	executorPID := r.exec.pid
	for _, name := range []string{"second", "third"} {
		path := r.link(name)
		r.do(order{Do: "replace", Paths: []string{path}})
		eventually(t, "the keeper runs the new binary", func() bool { return r.keeper.image(t) == path })
	}
	r.put("after", p) // the connection is the same
	began := time.Now()
	pipe.tell(t, "")
	pipe.tell(t, "")
	r.wantExit(orphan, "exited 3", began)
	mine.ended(t)
	if s := mine.state(); s != "Z" || r.exitFile(mine) != "" {
		t.Errorf("the executor's own child is %q, exit file %q: want a zombie and none", s, r.exitFile(mine))
	}
	r.kill()
	r.wantExit(mine, "exited 2", began)
	r.wantHeld(
		held{Name: "c/" + mine.key(), Files: []file{f}},
		held{Name: "c/" + orphan.key(), Files: []file{f, f}},
		held{Name: "after", Files: []file{f}},
	)
	if want := []int{0, 1, 2, 3}; !slices.Equal(r.exec.Open, want) {
		t.Errorf("descriptors %v are open in an executor of the third keeper, want %v", r.exec.Open, want)
	}
	if r.exec.pid == executorPID {
		t.Error("the executor that was killed is back")
	}
}

// Puts and deletes that are under way at the moment of a replacement are answered
// by the next image.
func TestReplaceUnderLoad(t *testing.T) {
	r := running(t)
	a, b := r.link("a"), r.link("b")
	p, f := r.file("f")
	r.do(order{Do: "churn", N: 20, Paths: []string{a, b, p, p}})
	if got := r.keeper.image(t); got != b {
		t.Errorf("the keeper runs %s, want %s", got, b)
	}
	r.kill()
	rounds := 0
	for _, h := range r.exec.Held {
		if h.Name == "round" {
			rounds++
		} else if !slices.Equal(h.Files, []file{f, f}) {
			t.Errorf("%s has %v", h.Name, h.Files)
		}
	}
	if rounds != 1 {
		t.Errorf("the name that was put each time is handed over %d times", rounds)
	}
	if got, want := r.do(order{Do: "names"}).N, len(r.exec.Held); got != want || len(r.exec.Held) < 2 {
		t.Errorf("%d names, %d handed over", got, want)
	}
}

func TestReplaceByWhatCannotRun(t *testing.T) {
	r := running(t)
	p, f := r.file("not executable")
	text := filepath.Join(r.dir, "text")
	if err := os.WriteFile(text, []byte("no binary"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.put("before", p)
	r.put("name", p)
	image := r.keeper.image(t)
	open := openIn(t, r.keeper)
	for _, path := range []string{filepath.Join(r.dir, "missing"), p, text, r.dir, ""} {
		r.do(order{Do: "replace", Paths: []string{path}})
		r.put("name", p) // answered after it
		if got := r.keeper.image(t); got != image {
			t.Fatalf("after %q the keeper runs %s", path, got)
		}
	}
	if now := openIn(t, r.keeper); now != open {
		t.Errorf("%d descriptors are open in the keeper, %d before", now, open)
	}
	r.kill()
	r.wantHeld(held{Name: "before", Files: []file{f}}, held{Name: "name", Files: []file{f}})
	if want := []int{0, 1, 2, 3}; !slices.Equal(r.exec.Open, want) {
		t.Errorf("descriptors %v are open, want %v", r.exec.Open, want)
	}
}

func openIn(t testing.TB, p *process) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// When the keeper dies the executor takes its place, by execve: it stays the parent
// of its children, and what it had put is held on.
func TestBecome(t *testing.T) {
	r := running(t)
	p, f := r.file("f")
	log := r.fifo("stdout")
	pipe := r.fifo("pipe")
	ended := r.child("exit 6") // a zombie by then
	killed := r.child(fmt.Sprintf("read x <%s", pipe.path))
	exits := r.child(fmt.Sprintf("read x <%s; exit 7", pipe.path))
	r.put("c/"+ended.key(), p)
	r.put("c/"+killed.key(), p, p)
	r.put("c/"+exits.key(), "w:"+log.path)
	r.put("deleted", p)
	r.do(order{Do: "delete", Name: "deleted"})
	began := time.Now().Add(-time.Minute) // one of them has ended before
	ended.ended(t)

	old := r.exec
	r.keeper.signal(t, unix.SIGKILL)
	r.next()
	if r.exec.Parent != old.pid {
		t.Fatalf("the new executor is a child of %d, want %d, the old one", r.exec.Parent, old.pid)
	}
	want := []held{
		{Name: "c/" + killed.key(), Files: []file{f, f}},
		{Name: "c/" + exits.key(), Files: []file{identify(int(log.r.Fd()))}},
		{Name: "c/" + ended.key(), Files: []file{f}},
	}
	r.wantHeld(want...)
	r.wantExit(ended, "exited 6", began)
	killed.signal(t, unix.SIGKILL)
	r.wantExit(killed, "killed 9", began)

	// And again, now that it is a keeper like any other.
	old = r.exec
	r.keeper.signal(t, unix.SIGKILL)
	r.next()
	if r.exec.Parent != old.pid {
		t.Fatalf("the new executor is a child of %d, want %d, the old one", r.exec.Parent, old.pid)
	}
	r.wantHeld(want...)
	r.kill()
	r.wantHeld(want...)
	if want := []int{0, 1, 2, 3}; !slices.Equal(r.exec.Open, want) {
		t.Errorf("descriptors %v are open, want %v", r.exec.Open, want)
	}
	// The child of the first executor, which has become the keeper and was killed, is
	// ours now: no keeper can tell how it ends. It lives, which is what counts.
	if s := exits.state(); s != "S" {
		t.Errorf("the child is %q", s)
	}
	pid, err := os.ReadFile(filepath.Join(r.state, "keeper.pid"))
	if want := fmt.Sprintf("%d %d\n", r.keeper.pid, r.keeper.start); err != nil || string(pid) != want {
		t.Errorf("keeper.pid is %q, %v, want %q", pid, err, want)
	}
	// What was handed on twice is closed everywhere when the last holder lets go.
	r.do(order{Do: "delete", Name: "c/" + exits.key()})
	r.do(order{Do: "close", Name: "c/" + exits.key()})
	if !log.hungUp(t) {
		t.Error("a deleted descriptor is still open somewhere")
	}
}

// What the executor had started without wishing for a SIGCHLD is reaped, too, when it
// has become the keeper.
func TestBecomeWithSilentChild(t *testing.T) {
	r := running(t)
	child := r.process(r.do(order{Do: "clone"}).PID)
	child.ended(t)
	r.keeper.signal(t, unix.SIGKILL)
	r.next()
	eventually(t, "it is reaped", func() bool { return child.state() == "" })
}

// A keeper that does not answer is as good as dead: the client kills it, and the
// executor takes its place. What was being put then is not held.
func TestStoppedKeeper(t *testing.T) {
	r := running(t)
	p, f := r.file("f")
	q, _ := r.file("q")
	r.put("name", p)
	r.keeper.signal(t, unix.SIGSTOP)
	old, keeperBefore := r.exec, r.keeper
	rep, ok := r.try(order{Do: "put", Name: "name", Paths: []string{q}})
	if ok && !strings.Contains(rep.Err, keeper.ErrLost.Error()) {
		t.Errorf("put to a stopped keeper: %q", rep.Err)
	}
	r.next()
	keeperBefore.ended(t)
	if r.exec.Parent != old.pid {
		t.Errorf("the new executor is a child of %d, want %d", r.exec.Parent, old.pid)
	}
	r.wantHeld(held{Name: "name", Files: []file{f}})
}

// There is one keeper for a state folder.
func TestSecondKeeper(t *testing.T) {
	r := running(t)
	second := r.command(self(t))
	var stderr bytes.Buffer
	second.Stderr = &stderr
	err := second.Run()
	exit, isExit := errors.AsType[*exec.ExitError](err)
	if !isExit || exit.ExitCode() != 1 || !strings.Contains(stderr.String(), fmt.Sprintf("another keeper holds keeper.lock: process %d", r.keeper.pid)) {
		t.Errorf("a second keeper: %v, %q", err, stderr.String())
	}
	pid, err := os.ReadFile(filepath.Join(r.state, "keeper.pid"))
	if want := fmt.Sprintf("%d %d\n", r.keeper.pid, r.keeper.start); err != nil || string(pid) != want {
		t.Errorf("keeper.pid is %q, %v, want %q", pid, err, want)
	}
	// A keeper's place is free when it has gone, and not before: by execve it stays.
	path := r.link("replacement")
	r.do(order{Do: "replace", Paths: []string{path}})
	eventually(t, "the keeper runs the new binary", func() bool { return r.keeper.image(t) == path })
	if err := r.command(self(t)).Run(); err == nil {
		t.Error("a second keeper came up beside one that replaced itself")
	}
	r.try(order{Do: "quit"}) // which may leave it no time to answer
	r.keeper.ended(t)
	r.start(r.command(self(t)))
	r.next()
}

// An orderly end takes executor and keeper, and leaves the containers alone.
func TestQuit(t *testing.T) {
	tests := []struct {
		name string
		how  func(r *rig)
	}{
		{name: "message", how: func(r *rig) { r.try(order{Do: "quit"}) }},
		{name: "SIGTERM", how: func(r *rig) { r.keeper.signal(r.t, unix.SIGTERM) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := running(t)
			pipe := r.fifo("pipe")
			c := r.child(fmt.Sprintf("read x <%s; exit 1", pipe.path))
			r.put("c/" + c.key())
			orphan := r.orphan(fmt.Sprintf("read x <%s; exit 1", pipe.path))
			e := r.exec.process
			tt.how(r)
			r.keeper.ended(t)
			e.ended(t)
			if err := r.cmds[0].Wait(); err != nil {
				t.Errorf("the keeper ended with %v", err)
			}
			for _, p := range []*process{c, orphan} {
				if s := p.state(); s != "S" {
					t.Errorf("a container's process is %q", s)
				}
			}
			if err := r.listen.SetDeadline(time.Now()); err != nil {
				t.Fatal(err)
			}
			if conn, err := r.listen.Accept(); err == nil {
				conn.Close()
				t.Error("another executor was started")
			}
		})
	}
}

// Signals that a terminal or a session sends are no reason to go.
func TestIgnoredSignals(t *testing.T) {
	r := running(t)
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGHUP, unix.SIGPIPE, unix.SIGCHLD} {
		r.keeper.signal(t, sig)
		r.put(fmt.Sprint("after ", sig)) // answered by the same keeper
	}
	if got := len(r.kill().Held); got != 4 {
		t.Errorf("%d names, want 4", got)
	}
}

// Some parents ignore SIGCHLD, which a child inherits, and by which the kernel
// reaps on its own and forgets the status.
func TestIgnoredSIGCHLD(t *testing.T) {
	r := newRig(t)
	r.start(exec.Command(self(t), "ignoring", r.state, self(t)))
	r.next()
	pipe := r.fifo("pipe")
	c := r.child(fmt.Sprintf("read x <%s; exit 4", pipe.path))
	r.put("c/" + c.key())
	r.kill()
	began := time.Now()
	pipe.tell(t, "")
	r.wantExit(c, "exited 4", began)
}

// credit is keeper.h's KEEPER_CREDIT: so many starts need no waiting, then there is
// one a second.
const credit = 100

// An executor that dies at once is started again at once as long as that is rare,
// and once a second when it is not.
func TestCrashLoop(t *testing.T) {
	r := newRig(t)
	count, script := filepath.Join(r.dir, "count"), filepath.Join(r.dir, "script")
	writeScript(t, script, "printf x >>"+count)
	starts := func() int {
		fi, err := os.Stat(count)
		if err != nil {
			return 0
		}
		return int(fi.Size())
	}
	began := time.Now()
	r.start(r.command(script))
	// The first, one for each credit, and three that have to wait.
	eventually(t, "the keeper goes on starting it", func() bool { return starts() >= 1+credit+3 })
	n := starts()
	if allowed := 1 + credit + int(time.Since(began).Seconds()); n > allowed {
		t.Errorf("%d starts in %v, want at most %d", n, time.Since(began), allowed)
	}
	// While it waits it sleeps, and is at hand.
	r.keeper.signal(t, unix.SIGTERM)
	r.keeper.ended(t)
}

// The binary of the executor may go at any time; there is always one to start.
func TestExecutorBinaryIsGone(t *testing.T) {
	r := running(t)
	path := r.link("executor")
	r.do(order{Do: "exe", Paths: []string{path}})
	r.kill()
	if r.exec.Exe != path {
		t.Fatalf("%s was started, want %s", r.exec.Exe, path)
	}
	if want := []string{"berth-executor", "executor", r.state, path}; !slices.Equal(r.exec.Args, want) {
		t.Errorf("arguments %q, want %q", r.exec.Args, want)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.kill()
	if r.exec.Exe != self(t) {
		t.Errorf("%s was started, want the keeper's own binary", r.exec.Exe)
	}
}

// An executor that serves has put its own binary: the next is that one, whatever
// has become of the file, unless another was asked for. If that one dies before it
// serves, the one before it is started again.
func TestExecutableThatWasPut(t *testing.T) {
	r := running(t)
	first := r.link("first")
	r.do(order{Do: "exe", Paths: []string{first}})
	r.kill()
	r.put(keeper.Executable, first)
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	writeScript(t, first, "exit 1")
	r.kill()
	if r.exec.Exe != first+" (deleted)" {
		t.Errorf("%s was started, want the binary that was put", r.exec.Exe)
	}

	// A bad upgrade.
	count, script := filepath.Join(r.dir, "count"), filepath.Join(r.dir, "script")
	writeScript(t, script, "printf x >>"+count)
	r.do(order{Do: "exe", Paths: []string{script}})
	r.kill()
	if r.exec.Exe != first+" (deleted)" {
		t.Errorf("%s was started, want the binary that was put", r.exec.Exe)
	}
	if b, err := os.ReadFile(count); err != nil || string(b) != "x" {
		t.Errorf("the new binary was started as often as %q, %v; want once", b, err)
	}

	// A good one.
	r.do(order{Do: "exe", Paths: []string{r.link("good")}})
	r.kill()
	if r.exec.Exe != filepath.Join(r.dir, "good") {
		t.Errorf("%s was started, want the one that was asked for", r.exec.Exe)
	}
}

// What nobody reads is not written, at the price of nothing else.
func TestStderrThatNobodyReads(t *testing.T) {
	r := newRig(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		_, err = unix.Write(pipe[1], make([]byte, 4096))
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(pipe[1], false); err != nil {
		t.Fatal(err)
	}
	stuck, w := os.NewFile(uintptr(pipe[0]), "stuck"), os.NewFile(uintptr(pipe[1]), "stderr")
	t.Cleanup(func() { stuck.Close(); w.Close() })
	cmd := r.command(self(t))
	cmd.Stderr = w
	r.start(cmd)
	r.next()
	p, f := r.file("f")
	r.put("name", p)
	r.kill() // which is told
	r.wantHeld(held{Name: "name", Files: []file{f}})
}

// Whatever an executor sends, the keeper lives, and keeps what it holds.
func TestHostileExecutor(t *testing.T) {
	t.Setenv(envOf(rawMode))
	r := newRig(t)
	r.start(r.command(self(t)))
	r.next()
	p, _ := r.file("f")
	pipe := r.fifo("pipe")
	c := r.orphan(fmt.Sprintf("read x <%s; exit 1", pipe.path))
	open := openIn(t, r.keeper) + 1
	r.do(order{Do: "raw", Text: "put c/" + c.key(), Paths: []string{p}})
	many := func(n int) []string { return slices.Repeat([]string{p}, n) }
	for _, o := range []order{
		{Text: " "},
		{Text: "put"},
		{Text: "del"},
		{Text: "exe"},
		{Text: "unknown thing", Paths: many(3)},
		{Text: "put c/" + c.key(), Paths: many(keeper.MaxFDs + 1)}, // one too many: refused
		{Text: "put \x00hidden", Paths: many(1)},
		{Text: "del \x00"},
		{Text: "del"},
		{Text: "put " + strings.Repeat("n", 300), Paths: many(2)},
		{Text: "del " + strings.Repeat("n", 300)},
		{Text: "put " + strings.Repeat("n", 10000)},
		{Text: "del " + strings.Repeat("n", 4107)},
		{Text: strings.Repeat("v", 10000), Paths: many(1)},
		{Text: "have c/" + c.key(), Paths: many(1)},
		{Text: "go"},
		{Text: "ok x"},
		{Text: "del c/%d-%d", N: 100},
		{Text: "replace " + strings.Repeat("/x", 5000)},
		{Text: "exe " + strings.Repeat("/x", 5000)},
		{Text: "exe " + self(t)},
	} {
		o.Do = "raw"
		r.do(o)
	}
	began := time.Now()
	pipe.tell(t, "")
	r.wantExit(c, "exited 1", began)
	if now := openIn(t, r.keeper); now != open {
		t.Errorf("%d descriptors are open in the keeper, want %d", now, open)
	}
	keeperPID := r.keeper.pid
	if r.kill().Parent != keeperPID {
		t.Error("the keeper did not survive it")
	}
}

// limit lowers what a process may open so that free numbers are left, until the
// returned function is called.
func (p *process) limit(t testing.TB, free int) (restore func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Max: before.Max}
	for n := 0; n < free || free == 0 && n < 1; low.Cur++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", p.pid, low.Cur)); err != nil {
			n++
		}
	}
	if free == 0 {
		low.Cur--
	}
	return p.setLimit(t, low, before)
}

func (p *process) setLimit(t testing.TB, now, before unix.Rlimit) (restore func()) {
	t.Helper()
	if err := unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, &now, nil); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// What a replacement needs and cannot have is not lost to it, either.
func TestReplaceWithoutRoom(t *testing.T) {
	r := running(t)
	open := openIn(t, r.keeper)
	restore := r.keeper.limit(t, 1)
	for range 3 {
		r.do(order{Do: "replace", Paths: []string{r.link(fmt.Sprint("n", open))}})
		open++
		r.do(order{Do: "delete", Name: "none"}) // answered after it
	}
	open -= 3
	if now := openIn(t, r.keeper); now != open {
		t.Errorf("%d descriptors are open in the keeper, %d before", now, open)
	}
	restore()
	path := r.link("at last")
	r.do(order{Do: "replace", Paths: []string{path}})
	eventually(t, "the keeper runs the new binary", func() bool { return r.keeper.image(t) == path })
}

// An executor does not start without the mount namespace that is held for it: it
// would make another.
func TestNoMountNamespaceNoExecutor(t *testing.T) {
	r := running(t)
	p, f := r.file("ns")
	r.put(keeper.MountNamespace, p)
	var before unix.Rlimit
	if err := unix.Prlimit(r.keeper.pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	// Room for the socket, which goes to 10, and for nothing above.
	restore := r.keeper.setLimit(t, unix.Rlimit{Cur: 11, Max: before.Max}, before)
	r.exec.signal(t, unix.SIGKILL)
	eventually(t, "the keeper tells of it", func() bool { return strings.Contains(r.said(), "mount namespace for the executor") })
	restore()
	r.next()
	if r.exec.Four != f {
		t.Errorf("descriptor 4 is %v, want %v", r.exec.Four, f)
	}
}

// A new executor that hangs before it serves is given up.
func TestExecutorThatHangs(t *testing.T) {
	r := running(t)
	good := r.link("good")
	r.put(keeper.Executable, good)
	script := filepath.Join(r.dir, "script")
	writeScript(t, script, "exec sleep 3600")
	r.do(order{Do: "exe", Paths: []string{script}})
	r.kill()
	if r.exec.Exe != good {
		t.Errorf("%s was started, want the one before", r.exec.Exe)
	}
	if !strings.Contains(r.said(), script+" does not serve") {
		t.Errorf("the keeper does not say so:\n%s", r.said())
	}
	r.put("name") // it goes on
	r.kill()
}

// Who cannot have the lock says who has it, and does not wait for ever.
func TestLockIsHeld(t *testing.T) {
	for name, released := range map[string]bool{"for a moment": true, "for ever": false} {
		t.Run(name, func(t *testing.T) {
			r := running(t)
			f, err := os.OpenFile(filepath.Join(r.state, "keeper.lock"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got := make(chan error, 1)
			go func() { got <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
			eventually(t, "the test waits for the lock", func() bool {
				b, err := os.ReadFile("/proc/locks")
				return err == nil && strings.Contains(string(b), fmt.Sprintf("-> FLOCK  ADVISORY  WRITE %d ", os.Getpid()))
			})
			executor := r.exec.process
			r.keeper.signal(t, unix.SIGKILL)
			if err := <-got; err != nil {
				t.Fatal(err)
			}
			eventually(t, "the next keeper says that it waits", func() bool {
				return strings.Contains(r.said(), "waiting for keeper.lock: ")
			})
			if released {
				if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
					t.Fatal(err)
				}
				r.next()
				return
			}
			executor.ended(t)
			if !strings.Contains(r.said(), fmt.Sprintf("another keeper holds keeper.lock: not process %d", r.keeper.pid)) {
				t.Errorf("it does not say why it ends:\n%s", r.said())
			}
		})
	}
}
