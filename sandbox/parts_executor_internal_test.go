// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// executorPart is an executor under test.
type executorPart struct {
	Executor
	Exits
	// request returns what makes a container that runs until a signal ends it, whichever
	// that is. It shares what its pod has.
	request func(t *testing.T, pod, id string) wire.Create
	// shared returns what a pod is made with. The files are the caller's.
	shared func(t *testing.T, pod string) (wire.PodCreate, []*os.File)
}

// executorCase is one test of the suite: it names its pod and containers after itself.
type executorCase struct {
	executorPart
	t    *testing.T
	name string
}

func (c *executorCase) id(of string) string { return c.name + "-" + of }

func (c *executorCase) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *executorCase) wantCode(err error, code wire.Code) {
	c.t.Helper()
	if !errors.Is(err, &wire.Error{Code: code}) {
		c.t.Errorf("error = %v, want code %q", err, code)
	}
}

// pod makes the pod.
func (c *executorCase) pod() {
	c.t.Helper()
	p, files := c.shared(c.t, c.id("pod"))
	defer closeAll(files)
	c.must(c.PodCreate(c.t.Context(), p, files))
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// create makes a container in the pod.
func (c *executorCase) create(of string) (id string, made wire.Created) {
	c.t.Helper()
	made, err := c.Create(c.t.Context(), c.request(c.t, c.id("pod"), c.id(of)))
	c.must(err)
	return c.id(of), made
}

// start makes a container and lets it run.
func (c *executorCase) start(of string) (id string, made wire.Created) {
	c.t.Helper()
	id, made = c.create(of)
	c.must(c.Start(c.t.Context(), id))
	return id, made
}

// see returns what the executor has of a container; state absent if it has none.
func (c *executorCase) see(id string) wire.Container {
	c.t.Helper()
	o, err := c.Observe(c.t.Context())
	c.must(err)
	for _, has := range o.Containers {
		if has.ID == id {
			return has
		}
	}
	return wire.Container{State: absent}
}

func (c *executorCase) wantState(id string, want wire.State) {
	c.t.Helper()
	if has := c.see(id); has.State != want {
		c.t.Errorf("%s is %s, want %s", id, has.State, want)
	}
}

func (c *executorCase) hasPod() bool {
	c.t.Helper()
	o, err := c.Observe(c.t.Context())
	c.must(err)
	return slices.Contains(o.Pods, c.id("pod"))
}

// listener is one who is told of exits.
type listener struct {
	t    *testing.T
	exit chan error // what Events returned
	end  context.CancelCauseFunc

	mu   sync.Mutex
	told map[string][]wire.Exit
	more chan struct{} // closed and made anew with each
}

func (c *executorCase) listen() *listener {
	ctx, cancel := context.WithCancelCause(c.t.Context())
	l := &listener{t: c.t, exit: make(chan error, 1), end: cancel, told: make(map[string][]wire.Exit), more: make(chan struct{})}
	go func() {
		l.exit <- c.Events(ctx, func(x wire.Exit) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.told[x.ID] = append(l.told[x.ID], x)
			close(l.more)
			l.more = make(chan struct{})
			return nil
		})
	}()
	c.t.Cleanup(func() { l.end(errEnded) })
	return l
}

// wait returns the first exit that is told of a container.
func (l *listener) wait(id string) wire.Exit {
	l.t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		l.mu.Lock()
		told, more := l.told[id], l.more
		l.mu.Unlock()
		if len(told) > 0 {
			return told[0]
		}
		select {
		case <-more:
		case <-late.C:
			l.t.Fatalf("no exit of %s was told", id)
		}
	}
}

// silent holds that nothing was told of a container. What could have been told has been
// once l has heard of ends that came later: what is told again comes in any order, but
// before what is new.
func (l *listener) silent(id string, c *executorCase, of string) {
	l.t.Helper()
	for _, n := range []string{"1", "2"} {
		marker, _ := c.start(of + n)
		c.must(c.KillAll(c.t.Context(), marker))
		l.wait(marker)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if told := l.told[id]; len(told) > 0 {
		l.t.Errorf("told of %s: %+v", id, told)
	}
}

func (l *listener) returned() error {
	l.t.Helper()
	select {
	case err := <-l.exit:
		return err
	case <-time.After(patience):
		l.t.Fatal("Events does not return")
		return nil
	}
}

// testExecutor is the suite of Executor and Exits.
func testExecutor(t *testing.T, part executorPart) {
	for name, fn := range map[string]func(*executorCase){
		"pod": executorPod, "pod-with-containers": executorPodInUse, "create": executorCreate, "start": executorStart,
		"signal": executorSignal, "kill": executorKill, "delete": executorDelete, "observe": executorObserve,
		"exits": executorExits, "listeners": executorListeners, "contexts": executorContexts,
	} {
		t.Run(name, func(t *testing.T) { fn(&executorCase{executorPart: part, t: t, name: name}) })
	}
}

func executorPod(c *executorCase) {
	ctx := c.t.Context()
	c.must(c.PodDelete(ctx, c.id("unknown")))
	c.pod()
	c.pod() // again
	if !c.hasPod() {
		c.t.Error("the pod is not seen")
	}
	c.must(c.PodDelete(ctx, c.id("pod")))
	if c.hasPod() {
		c.t.Error("the pod is seen after its end")
	}
	c.must(c.PodDelete(ctx, c.id("pod")))
	c.pod() // anew
	c.create("box")
	c.must(c.Delete(ctx, c.id("box")))
	c.must(c.PodDelete(ctx, c.id("pod")))

	p, files := c.shared(c.t, c.id("odd"))
	defer closeAll(files)
	c.wantCode(c.PodCreate(ctx, p, files[1:]), wire.Invalid)
}

// executorPodInUse: a pod stays as long as the executor has a container of it, dead or alive.
func executorPodInUse(c *executorCase) {
	ctx := c.t.Context()
	c.pod()
	for _, step := range []struct {
		is wire.State
		do func(ctx context.Context, id string) error
	}{
		{wire.IsCreated, c.Start},
		{wire.Running, c.KillAll},
		{wire.Exited, c.Delete},
	} {
		if step.is == wire.IsCreated {
			c.create("box")
		}
		c.wantState(c.id("box"), step.is)
		c.wantCode(c.PodDelete(ctx, c.id("pod")), wire.BadState)
		if !c.hasPod() {
			c.t.Errorf("the pod is gone, and a container of it is %s", step.is)
		}
		c.must(step.do(ctx, c.id("box")))
	}
	c.must(c.PodDelete(ctx, c.id("pod")))
}

func executorCreate(c *executorCase) {
	ctx := c.t.Context()
	_, err := c.Create(ctx, c.request(c.t, c.id("pod"), c.id("box")))
	c.wantCode(err, wire.NotFound)
	c.wantState(c.id("box"), absent)
	c.must(c.Delete(ctx, c.id("box")))
	c.pod()
	id, made := c.create("box") // the one that failed has left nothing in the way
	if made.PID == 0 || made.Start == 0 {
		c.t.Errorf("created %+v, want a process", made)
	}
	for _, next := range []func(context.Context, string) error{c.Start, c.KillAll, c.Delete} {
		_, err := c.Create(ctx, c.request(c.t, c.id("pod"), id))
		c.wantCode(err, wire.Exists)
		if has := c.see(id); has.Process != made {
			c.t.Errorf("%s has the process %+v, want still %+v", id, has.Process, made)
		}
		c.must(next(ctx, id))
	}
	c.create("box") // an id may be used again
	c.must(c.Delete(ctx, id))
}

func executorStart(c *executorCase) {
	ctx := c.t.Context()
	c.wantCode(c.Start(ctx, c.id("unknown")), wire.NotFound)
	c.pod()
	id, _ := c.create("box")
	c.wantState(id, wire.IsCreated)
	c.must(c.Start(ctx, id))
	c.wantState(id, wire.Running)
	c.wantCode(c.Start(ctx, id), wire.BadState)
	c.wantState(id, wire.Running)
	c.must(c.KillAll(ctx, id))
	c.wantCode(c.Start(ctx, id), wire.BadState)

	never, _ := c.create("never")
	c.must(c.KillAll(ctx, never))
	c.wantCode(c.Start(ctx, never), wire.BadState)
}

func executorSignal(c *executorCase) {
	ctx := c.t.Context()
	c.wantCode(c.Signal(ctx, c.id("unknown"), unix.SIGTERM), wire.NotFound)
	c.pod()
	l := c.listen()
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGKILL, unix.SIGHUP} {
		id, made := c.start(fmt.Sprintf("by%d", s))
		c.must(c.Signal(ctx, id, s))
		c.wantExit(l.wait(id), id, made, s)
		c.must(c.Signal(ctx, id, unix.SIGTERM)) // it has ended
		if has := c.see(id); has.State != wire.Exited || has.Exit == nil || has.Exit.Signal != int(s) {
			c.t.Errorf("after one more signal %s is %+v, %+v", id, has, has.Exit)
		}
	}
	id, made := c.create("created")
	c.must(c.Signal(ctx, id, unix.SIGKILL))
	c.wantExit(l.wait(id), id, made, unix.SIGKILL)
}

func (c *executorCase) wantExit(x wire.Exit, id string, of wire.Created, by unix.Signal) {
	c.t.Helper()
	age := time.Since(x.At)
	if x.ID != id || x.Exec != "" || x.PID != of.PID || x.Start != of.Start || x.Code != 128+int(by) || x.Signal != int(by) ||
		x.OOMKilled || x.Lost || age < 0 || age > 2*patience {
		c.t.Errorf("exit %+v, %v ago: want that of %s, %+v, by signal %d", x, age, id, of, by)
	}
}

func executorKill(c *executorCase) {
	ctx := c.t.Context()
	c.wantCode(c.KillAll(ctx, c.id("unknown")), wire.NotFound)
	c.pod()
	l := c.listen()
	created, made := c.create("created")
	running, ran := c.start("running")
	for id, of := range map[string]wire.Created{created: made, running: ran} {
		c.must(c.KillAll(ctx, id))
		c.wantState(id, wire.Exited) // when it returns, and not later
		c.wantExit(l.wait(id), id, of, unix.SIGKILL)
		c.must(c.KillAll(ctx, id))
	}
	term, was := c.start("term")
	c.must(c.Signal(ctx, term, unix.SIGTERM))
	l.wait(term)
	c.must(c.KillAll(ctx, term)) // does not change how it ended
	if has := c.see(term); has.Exit == nil {
		c.t.Errorf("%+v has no exit", has)
	} else {
		c.wantExit(*has.Exit, term, was, unix.SIGTERM)
	}
}

func executorDelete(c *executorCase) {
	ctx := c.t.Context()
	c.must(c.Delete(ctx, c.id("unknown")))
	c.pod()
	l := c.listen()
	first, _ := c.start("first")
	c.must(c.KillAll(ctx, first))
	l.wait(first) // l is told from here on
	running, _ := c.start("running")
	c.wantCode(c.Delete(ctx, running), wire.BadState)
	c.wantState(running, wire.Running)

	created, made := c.create("created")
	c.must(c.Delete(ctx, created))
	c.wantState(created, absent)
	c.wantExit(l.wait(created), created, made, unix.SIGKILL) // it had a process

	c.must(c.KillAll(ctx, running))
	c.must(c.Delete(ctx, running))
	c.wantState(running, absent)
	l.wait(running) // whether it was deleted at once, or later
	c.must(c.Delete(ctx, running))
	c.wantCode(c.KillAll(ctx, running), wire.NotFound)
	c.wantCode(c.Signal(ctx, running, unix.SIGKILL), wire.NotFound)
	c.wantCode(c.Start(ctx, running), wire.NotFound)

	c.listen().silent(running, c, "later") // nobody has acknowledged it, but it is gone
}

func executorObserve(c *executorCase) {
	ctx := c.t.Context()
	c.pod()
	l := c.listen()
	id, made := c.create("box")
	check := func(state wire.State) {
		c.t.Helper()
		has := c.see(id)
		if has.State != state || has.Pod != c.id("pod") || has.Process != made || (has.Exit != nil) != (state == wire.Exited) {
			c.t.Errorf("seen %+v: want %s, pod %s, process %+v, and an exit only at the end", has, state, c.id("pod"), made)
		}
	}
	check(wire.IsCreated)
	c.must(c.Start(ctx, id))
	check(wire.Running)
	c.must(c.Signal(ctx, id, unix.SIGTERM))
	told := l.wait(id)
	check(wire.Exited)
	if x := *c.see(id).Exit; !x.At.Equal(told.At) || x.Code != told.Code || x.Signal != told.Signal {
		c.t.Errorf("seen %+v, told %+v", x, told)
	}
	c.must(c.Ack(ctx, id, ""))
	check(wire.Exited) // what was acknowledged can still be looked up
}

func executorExits(c *executorCase) {
	ctx := c.t.Context()
	c.must(c.Ack(ctx, c.id("unknown"), ""))
	c.pod()
	id, made := c.start("box")
	c.must(c.Ack(ctx, id, "")) // nothing to acknowledge yet
	c.must(c.KillAll(ctx, id))
	for range 2 { // to everybody who comes, until it is acknowledged
		l := c.listen()
		c.wantExit(l.wait(id), id, made, unix.SIGKILL)
		l.end(errEnded)
		if err := l.returned(); !errors.Is(err, errEnded) {
			c.t.Errorf("Events returned %v, want the context's cause", err)
		}
	}
	// Who fails with one is told of it again.
	errFull := errors.New("disk full")
	if err := c.Events(ctx, func(wire.Exit) error { return errFull }); !errors.Is(err, errFull) {
		c.t.Errorf("Events returned %v, want what the function returned", err)
	}
	c.listen().wait(id)
	c.must(c.Ack(ctx, id, ""))
	c.must(c.Ack(ctx, id, ""))
	c.listen().silent(id, c, "later")
}

func executorListeners(c *executorCase) {
	ctx := c.t.Context()
	c.pod()
	one, two := c.listen(), c.listen()
	before, _ := c.start("before")
	c.must(c.KillAll(ctx, before))
	one.wait(before)
	two.wait(before)
	// That one acknowledges takes nothing away from the other, and neither does its end.
	c.must(c.Ack(ctx, before, ""))
	one.end(errEnded)
	if err := one.returned(); !errors.Is(err, errEnded) {
		c.t.Errorf("Events returned %v, want the context's cause", err)
	}
	after, _ := c.start("after")
	c.must(c.KillAll(ctx, after))
	two.wait(after)
}

// executorContexts: who has gone gets the reason, and whether it was done is open; to
// take it back works in either case.
func executorContexts(c *executorCase) {
	ctx, gone := c.t.Context(), ended(c.t)
	c.pod()
	id, _ := c.start("box")
	open := func(what string, err error) {
		c.t.Helper()
		if err != nil && !errors.Is(err, errEnded) {
			c.t.Errorf("%s: %v, want the context's cause, or nothing", what, err)
		}
	}
	_, err := c.Observe(gone)
	open("observe", err)
	if err := c.Events(gone, func(wire.Exit) error { return nil }); !errors.Is(err, errEnded) {
		c.t.Errorf("events: %v, want the context's cause", err)
	}
	open("kill all", c.KillAll(gone, id))
	open("signal", c.Signal(gone, id, unix.SIGKILL))
	c.must(c.KillAll(ctx, id))
	open("delete", c.Delete(gone, id))
	c.must(c.Delete(ctx, id))
	open("pod delete", c.PodDelete(gone, c.id("pod")))
	c.must(c.PodDelete(ctx, c.id("pod")))
}
