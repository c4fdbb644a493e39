// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The child of an executor that has died is the keeper's: it waits for it and
// writes down how it ended, exactly, before it reaps it.
func TestExitFile(t *testing.T) {
	tests := []struct {
		name   string
		script string // after it has read x
		signal unix.Signal
		want   string
	}{
		{name: "0", script: "exit 0", want: "exited 0"},
		{name: "7", script: "exit 7", want: "exited 7"},
		{name: "255", script: "exit 255", want: "exited 255"},
		{name: "137", script: "exit 137", want: "exited 137"}, // looks like a signal, and is none
		{name: "TERM", script: "kill -TERM $$", want: "killed 15"},
		{name: "KILL", signal: unix.SIGKILL, want: "killed 9"},
		{name: "RT", signal: 64, want: "killed 64"},
	}
	r := running(t)
	children := make([]*process, len(tests))
	pipes := make([]*fifo, len(tests))
	for i, tt := range tests {
		pipes[i] = r.fifo(tt.name)
		children[i] = r.child(fmt.Sprintf("read x <%s; %s", pipes[i].path, tt.script))
		r.put("c/"+tt.name+"/p/"+children[i].key(), pipes[i].path)
	}
	r.kill()
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			if tt.signal != 0 {
				children[i].signal(t, tt.signal)
			} else {
				pipes[i].tell(t, "")
			}
			r.wantExit(children[i], tt.want, began)
		})
	}
	leftOver, err := filepath.Glob(filepath.Join(r.state, "exit", "*.tmp"))
	if err != nil || len(leftOver) > 0 {
		t.Errorf("left in exit: %v, %v", leftOver, err)
	}
}

// A process that ended while the executor still was its parent, unreaped, is a
// zombie that the keeper inherits.
func TestExitFileOfAnInheritedZombie(t *testing.T) {
	r := running(t)
	began := time.Now()
	c := r.child("exit 3")
	c.ended(t)
	if s := c.state(); s != "Z" {
		t.Fatalf("the executor's child is %q, want a zombie", s)
	}
	r.put("x/" + c.key())
	r.kill()
	r.wantExit(c, "exited 3", began)
}

// Files are written for processes that have a name, and for no others.
func TestExitFileOnlyForNames(t *testing.T) {
	r := running(t)
	pipe := r.fifo("pipe")
	script := fmt.Sprintf("read x <%s; exit 1", pipe.path)
	none, wrong, deleted, named := r.child(script), r.child(script), r.child(script), r.child(script)
	for _, name := range []string{
		wrong.key(),                          // no slash
		"c/" + wrong.key() + "0",             // another start
		"c/1" + wrong.key(),                  // another pid
		"c/" + wrong.key() + "/x",            // not at the end
		fmt.Sprintf("c/%d", wrong.pid),       // no start
		fmt.Sprintf("c/%d-%d", wrong.pid, 1), // a process that had its pid before
		"c/" + deleted.key(),
		"c/" + named.key(),
	} {
		r.put(name)
	}
	r.do(order{Do: "delete", Name: "c/" + deleted.key()})
	r.kill()
	began := time.Now()
	for _, c := range []*process{none, wrong, deleted, named} {
		pipe.tell(t, "")
		if c == named {
			r.wantExit(c, "exited 1", began)
		}
	}
	for name, c := range map[string]*process{"unnamed": none, "misnamed": wrong, "deleted": deleted} {
		eventually(t, name+" is reaped", func() bool { return c.state() == "" })
		if text := r.exitFile(c); text != "" {
			t.Errorf("%s: exit file %q", name, text)
		}
	}
	files, err := os.ReadDir(filepath.Join(r.state, "exit"))
	if err != nil || len(files) != 1 {
		t.Errorf("exit has %v, %v; want one file", files, err)
	}
}

// An orphan may be the keeper's child while the executor is alive.
func TestExitFileOfAGrandchild(t *testing.T) {
	r := running(t)
	pipe := r.fifo("pipe")
	c := r.orphan(fmt.Sprintf("read x <%s; exit 9", pipe.path))
	r.put("x/" + c.key())
	began := time.Now()
	pipe.tell(t, "")
	r.wantExit(c, "exited 9", began)
	r.do(order{Do: "names"}) // the executor has lived through it
}

// The zombie is the only copy of its status, so it stays until the file can be
// written; meanwhile all else goes on, the start of the next executor included.
func TestUnwritableExitFolder(t *testing.T) {
	r := running(t)
	pipe := r.fifo("pipe")
	c := r.child(fmt.Sprintf("read x <%s; exit 5", pipe.path))
	r.put("c/" + c.key())
	r.kill()

	exit, away := filepath.Join(r.state, "exit"), filepath.Join(r.state, "away")
	if err := os.Rename(exit, away); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	pipe.tell(t, "")
	c.ended(t)
	eventually(t, "the keeper tells of it", func() bool { return strings.Contains(r.said(), "exit file "+c.key()) })

	unnamed := r.fifo("unnamed")
	later := r.child(fmt.Sprintf("read x <%s; exit 6", unnamed.path))
	r.put("c/" + later.key())
	r.kill() // behind the zombie
	unnamed.tell(t, "")
	r.kill()
	if s := c.state(); s != "Z" {
		t.Errorf("the process is %q, want a zombie", s)
	}
	if n := strings.Count(r.said(), "exit file "+c.key()); n != 1 {
		t.Errorf("it was told %d times, want once:\n%s", n, r.said())
	}
	if err := os.Rename(away, exit); err != nil {
		t.Fatal(err)
	}
	r.wantExit(c, "exited 5", began)
	r.wantExit(later, "exited 6", began)
}

// What an executor has sent before it died counts for the children it leaves, even
// where the keeper did not come to read it, and the executor not to read all of the
// keeper's: the kernel then reports a reset before it hands out what is queued.
func TestLastWords(t *testing.T) {
	t.Setenv(envOf(rawMode))
	r := newRig(t)
	r.start(r.command(self(t)))
	r.next() // "go" is never read
	pipe := r.fifo("pipe")
	c := r.child(fmt.Sprintf("read x <%s; exit 4", pipe.path))
	r.keeper.signal(t, unix.SIGSTOP)
	eventually(t, "the keeper is stopped", func() bool { return r.keeper.state() == "T" })
	r.do(order{Do: "raw", Text: "put c/" + c.key()})
	r.exec.signal(t, unix.SIGKILL)
	r.exec.ended(t)
	began := time.Now()
	pipe.tell(t, "")
	c.ended(t)
	r.keeper.signal(t, unix.SIGCONT)
	r.next()
	r.wantExit(c, "exited 4", began)
}

// An executor that reads nothing fills its socket, and nothing else.
func TestExecutorThatNeverReads(t *testing.T) {
	t.Setenv(envOf(rawMode))
	r := newRig(t)
	r.start(r.command(self(t)))
	r.next()
	p, _ := r.file("f")
	r.do(order{Do: "raw", Text: "put fill/%d", N: 3000, Paths: []string{p}}) // each is answered
	pipe := r.fifo("pipe")
	c := r.orphan(fmt.Sprintf("read x <%s; exit 8", pipe.path))
	r.do(order{Do: "raw", Text: "put c/" + c.key()})
	began := time.Now()
	pipe.tell(t, "")
	r.wantExit(c, "exited 8", began)

	// The next one is not handed all of it, and that is no hindrance either.
	r.kill()
	pipe = r.fifo("second")
	c = r.orphan(fmt.Sprintf("read x <%s; exit 9", pipe.path))
	r.do(order{Do: "raw", Text: "put c/" + c.key()})
	for range 2 {
		r.do(order{Do: "raw", Text: "del fill/%d", N: 3000})
	}
	began = time.Now()
	pipe.tell(t, "")
	r.wantExit(c, "exited 9", began)
	r.idle()
}

// What had no room is sent when there is some, once.
func TestLateAnswers(t *testing.T) {
	t.Setenv(envOf(rawMode))
	r := newRig(t)
	r.start(r.command(self(t)))
	r.next()
	const puts, deletes = 2000, 1000
	r.do(order{Do: "raw", Text: "put fill/%d", N: puts})
	r.do(order{Do: "raw", Text: "put fill/%d", N: puts}) // merged with the first where that is unanswered
	r.do(order{Do: "raw", Text: "del none/%d", N: deletes})
	r.do(order{Do: "raw", Text: "put end"})
	said := r.do(order{Do: "read", Text: "ok end", N: deletes}).Said
	if said["go"] != 1 || said["gone"] != deletes {
		t.Errorf("go came %d times, gone %d times, want 1 and %d", said["go"], said["gone"], deletes)
	}
	oks := 0
	for i := range puts {
		n := said[fmt.Sprint("ok fill/", i)]
		oks += n
		if n < 1 || n > 2 {
			t.Errorf("fill/%d was answered %d times", i, n)
		}
	}
	if oks == 2*puts {
		t.Error("all had room: the test has not filled the socket")
	}
	if len(said) != puts+3 {
		t.Errorf("%d different messages, want %d", len(said), puts+3)
	}
}

// A refusal that had no room is sent when there is some, too.
func TestLateRefusal(t *testing.T) {
	t.Setenv(envOf(rawMode))
	r := newRig(t)
	r.start(r.command(self(t)))
	r.next()
	const puts = 2000
	p, _ := r.file("f")
	r.do(order{Do: "raw", Text: "put fill/%d", N: puts})
	restore := r.keeper.limit(t, 0)
	r.do(order{Do: "raw", Text: "put refused/%d", N: 2, Paths: []string{p}})
	r.do(order{Do: "raw", Text: "put end"})
	r.idle()
	said := r.do(order{Do: "read", Text: "ok end"}).Said
	restore()
	for n := range 2 {
		if got := said[fmt.Sprintf("no refused/%d", n)]; got != 1 {
			t.Errorf("put %d was refused %d times, want once", n, got)
		}
	}
	if got := len(said); got != puts+4 {
		t.Errorf("%d different messages, want %d", got, puts+4)
	}
}

func envOf(assignment string) (name, value string) {
	name, value, _ = strings.Cut(assignment, "=")
	return name, value
}

// idle waits until the keeper sleeps, and checks that it has found no reason not to.
func (r *rig) idle() {
	r.t.Helper()
	eventually(r.t, "the keeper sleeps", func() bool {
		before, state := r.cpu(), r.keeper.state()
		return state == "S" && r.cpu() == before
	})
	before := r.cpu()
	select {
	case <-time.After(300 * time.Millisecond): // the time over which it may spend nothing
	case <-r.t.Context().Done():
	}
	if spent := r.cpu() - before; spent > 5 {
		r.t.Errorf("the keeper spent %d ticks of 10 ms in 300 ms with nothing to do", spent)
	}
}

// cpu is what the keeper has spent, in clock ticks.
func (r *rig) cpu() int {
	r.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.keeper.pid))
	if err != nil {
		r.t.Fatal(err)
	}
	var user, system int
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		r.t.Fatal(err)
	}
	return user + system
}
