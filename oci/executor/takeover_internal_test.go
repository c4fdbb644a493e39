// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/keeper"
	"github.com/berth-cri/berth/oci/wire"
)

// fakeKeeper answers as the keeper does, and refuses what it is told to.
type fakeKeeper struct {
	t    *testing.T
	sock int

	mu sync.Mutex
	// so many puts
	refuse int // +checklocks:mu
	// puts
	asked int             // +checklocks:mu
	held  map[string]bool // +checklocks:mu
}

func newFakeKeeper(t *testing.T) (*fakeKeeper, *keeper.Client) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k := &fakeKeeper{t: t, sock: pair[0], held: make(map[string]bool)}
	k.say("go")
	client, _, err := keeper.Open(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); k.run() }()
	t.Cleanup(func() {
		_ = unix.Shutdown(k.sock, unix.SHUT_RDWR)
		<-done
		unix.Close(k.sock)
	})
	return k, client
}

func (k *fakeKeeper) say(text string) { _ = unix.Send(k.sock, []byte(text), unix.MSG_NOSIGNAL) }

func (k *fakeKeeper) run() {
	for {
		var b [512]byte
		n, _, _, _, err := unix.Recvmsg(k.sock, b[:], make([]byte, 256), 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		verb, name, _ := strings.Cut(string(b[:n]), " ")
		k.mu.Lock()
		switch verb {
		case "put":
			k.asked++
			if k.refuse > 0 {
				k.refuse--
				k.say("no " + name)
				break
			}
			k.held[name] = true
			k.say("ok " + name)
		case "del":
			if k.refuse > 0 {
				break // it does not answer
			}
			delete(k.held, name)
			k.say("gone")
		}
		k.mu.Unlock()
	}
}

func (k *fakeKeeper) refuseNext(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refuse = n
}

func (k *fakeKeeper) holds(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held[name]
}

// half is as much of an executor as an end needs.
func half(t *testing.T, client *keeper.Client) *Executor {
	t.Helper()
	x := &Executor{
		files: files{state: memory(t)}, containers: make(map[string]*container),
		pods: make(map[string]*pod), watchers: make(map[*watcher]bool),
	}
	x.keeper = holder{Client: client, alone: &alone{is: make(chan struct{})}}
	if err := x.files.makeFolders(); err != nil {
		t.Fatal(err)
	}
	var err error
	if x.poller, err = newPoller(); err != nil {
		t.Fatal(err)
	}
	x.pump = newPump(x.poller, -1, func(string, ...any) {}) // it may be heard of after the test
	x.pump.more, x.pump.less = x.newJournal, x.dropJournal
	if err := x.openJournals(nil); err != nil {
		t.Fatal(err)
	}
	go func() { _ = x.poller.run() }() // ends with the test's process
	return x
}

// child is a process that ends when end is called, and a container whose it is.
func (x *Executor) child(t *testing.T, id string) (c *container, end func()) {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { in.Close() })
	t.Cleanup(func() { end(); _ = cmd.Process.Release() })
	stat, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	c = newContainer(id)
	c.rec = record{ID: id, Process: wire.Created{PID: cmd.Process.Pid, Start: stat.start}}
	c.tail = newTail(x.pump, id, x.files.in(id, "tail"), 0)
	c.state = wire.Running
	if c.pidfd, err = unix.PidfdOpen(cmd.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(x.files.container(id), 0o700); err != nil {
		t.Fatal(err)
	}
	x.containers[id] = c
	return c, end
}

// TestTakeoverThatFails: what fails for a container is tried again, and until then
// its end is seen all the same.
func TestTakeoverThatFails(t *testing.T) {
	k, client := newFakeKeeper(t)
	x := half(t, client)
	stays, _ := x.child(t, "stays")
	ends, end := x.child(t, "ends")
	k.refuseNext(5)
	x.settleAll([]*takeover{x.takeOver(stays), x.takeOver(ends)})
	end()
	select {
	case <-ends.exited:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody saw its end")
	}
	<-stays.settled
	waitUntil(t, "the keeper holds what it had refused", func() bool {
		return k.holds(fmt.Sprintf("c/stays/p/%s", key(stays.rec.Process)))
	})
	<-ends.over
	waitUntil(t, "the keeper has let go of the one that has ended", func() bool { // its log may have ended later
		k.mu.Lock()
		defer k.mu.Unlock()
		for name := range k.held {
			if strings.Contains(name, "ends") {
				return false
			}
		}
		return true
	})
}

func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !is() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("in vain: %s", what)
		}
	}
}

// TestUnsettled: who asks for a container that is not settled waits, as long as he
// likes to, and nobody else does.
func TestUnsettled(t *testing.T) {
	_, client := newFakeKeeper(t)
	x := half(t, client)
	slow, _ := x.child(t, "slow")
	quick, _ := x.child(t, "quick")
	goOn := make(chan struct{})
	var list []*takeover
	for n := range settlers {
		c := newContainer(fmt.Sprint("slow", n))
		x.containers[c.id] = c
		list = append(list, &takeover{what: "container", id: c.id, slow: true, settled: c.settled, steps: []func() error{func() error {
			<-goOn
			return nil
		}}})
	}
	list = append(list, &takeover{what: "container", id: slow.id, slow: true, settled: slow.settled, steps: []func() error{func() error {
		x.mu.Lock()
		delete(x.containers, slow.id)
		x.mu.Unlock()
		return nil
	}}})
	x.settleAll(append(list, x.takeOver(quick)))

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := x.find(ctx, "quick"); err != nil {
		t.Errorf("one that has nothing to wait for: %v", err)
	}
	if o := x.observe(); len(o.Containers) != 2 {
		t.Errorf("observed: %+v; want the two that are there, and not what is being taken back", o.Containers)
	}
	short, cancelShort := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancelShort()
	if _, err := x.find(short, "slow"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who does not wait any more is told %v", err)
	}
	found := make(chan error, 1)
	go func() {
		_, err := x.find(ctx, "slow")
		found <- err
	}()
	close(goOn)
	if err := <-found; !errors.Is(err, &wire.Error{Code: wire.NotFound}) {
		t.Errorf("one that was taken back is %v", err)
	}
}

// TestReleaseRefused: what the keeper has not let go of is still held.
func TestReleaseRefused(t *testing.T) {
	k, client := newFakeKeeper(t)
	x := half(t, client)
	c, _ := x.child(t, "c")
	k.refuseNext(1)
	if err := x.hold(c, -1); !errors.Is(err, keeper.ErrRefused) || c.held != "" {
		t.Fatalf("hold = %v, held as %q", err, c.held)
	}
	if err := x.hold(c, -1); err != nil {
		t.Fatal(err)
	}
	name := c.held
	if err := x.release(c); err != nil || c.held != "" || k.holds(name) {
		t.Errorf("release = %v, held as %q, in the keeper: %t", err, c.held, k.holds(name))
	}
	if err := x.hold(c, -1); err != nil || c.held != "" || k.holds(name) {
		t.Errorf("hold after release = %v, held as %q, in the keeper: %t", err, c.held, k.holds(name))
	}
}

// TestOfAnother: a request that has waited for a container's lock does nothing to
// another that has its id by then.
func TestOfAnother(t *testing.T) {
	for name, request := range map[string]func(x *Executor, id string) error{
		"delete": func(x *Executor, id string) error { return x.delete(t.Context(), id) },
		"start":  func(x *Executor, id string) error { return x.start(t.Context(), id) },
		"update": func(x *Executor, id string) error {
			return x.update(t.Context(), &wire.Update{ID: id, Resources: &specs.LinuxResources{}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, client := newFakeKeeper(t)
			x := half(t, client)
			before, _ := x.child(t, "c")
			close(before.settled)
			before.state = wire.Exited
			before.op.Lock()
			done := make(chan error, 1)
			go func() { done <- request(x, "c") }()
			waitUntil(t, "the request waits for the lock", func() bool {
				stacks := make([]byte, 1<<20)
				stacks = stacks[:runtime.Stack(stacks, true)]
				for one := range strings.SplitSeq(string(stacks), "\n\n") {
					if strings.Contains(one, "[sync.Mutex.Lock") && strings.Contains(one, "(*Executor)."+name) {
						return true
					}
				}
				return false
			})
			x.mu.Lock()
			delete(x.containers, "c")
			x.mu.Unlock()
			after, _ := x.child(t, "c")
			close(after.settled)
			after.state = wire.IsCreated
			before.op.Unlock()
			err := <-done
			if name == "delete" && err != nil || name != "delete" && !errors.Is(err, &wire.Error{Code: wire.NotFound}) {
				t.Errorf("%s = %v", name, err)
			}
			if !x.isKnown(after) || !exists(x.files.container("c")) {
				t.Errorf("%s was done to the other", name)
			}
		})
	}
}

// TestNamespaceOfAnother: the number of a process that has ended may be another's,
// whose namespace is not joined.
func TestNamespaceOfAnother(t *testing.T) {
	_, client := newFakeKeeper(t)
	x := half(t, client)
	c, end := x.child(t, "c")
	fd, err := c.openNamespace("ipc")
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	end()
	if err := reapWithin(t.Context(), c.pidfd); err != nil {
		t.Fatal(err)
	}
	c.rec.Process.PID = os.Getpid() // who has its number now
	if fd, err := c.openNamespace("ipc"); !errors.Is(err, &wire.Error{Code: wire.BadState}) {
		t.Errorf("openNamespace = %d, %v", fd, err)
	}
}

// TestCallerGone: what nobody waits for any more is not begun: who has given up may
// have deleted it already.
func TestCallerGone(t *testing.T) {
	_, client := newFakeKeeper(t)
	x := half(t, client)
	x.gate = newGate()
	runs, _ := x.child(t, "runs")
	close(runs.settled)
	spec := &specs.Spec{Process: &specs.Process{Args: []string{"x"}}, Linux: &specs.Linux{}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, begin := range map[string]func() error{
		"create": func() error {
			_, err := x.create(ctx, &wire.Create{ID: "c", Spec: spec, Rootfs: wire.Rootfs{Bind: t.TempDir()}})
			return err
		},
		"pod": func() error {
			return x.podCreate(ctx, &wire.PodCreate{ID: "p"}, &wire.Message{})
		},
		"exec": func() error {
			_, err := x.exec(ctx, &wire.Exec{ID: "runs", Exec: "e", Process: spec.Process}, &wire.Message{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 100 { // a context that has ended does not always win
				if err := begin(); !errors.Is(err, context.Canceled) {
					t.Fatalf("begun, and then %v", err)
				}
			}
			if x.containers["c"] != nil || x.pods["p"] != nil || len(runs.execs) > 0 || exists(x.files.container("c")) || exists(x.files.pod("p")) {
				t.Error("it is there")
			}
		})
	}
}
