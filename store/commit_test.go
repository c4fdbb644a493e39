// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/storetest"
)

// gate holds commits up: each waits until it is let through.
type gate struct {
	arrived chan struct{}
	let     chan error
	opened  chan struct{}
}

func newGate() *gate {
	return &gate{make(chan struct{}), make(chan error), make(chan struct{})}
}

func (g *gate) point(name string) error {
	if name != "commit" {
		return nil
	}
	select {
	case g.arrived <- struct{}{}:
	case <-g.opened:
		return nil
	}
	select {
	case err := <-g.let:
		return err
	case <-g.opened:
		return nil
	}
}

// open lets everything through from now on.
func (g *gate) open() { close(g.opened) }

// untilQueued waits until n writes are in the queue behind a commit that is held up.
func untilQueued(t *testing.T, db *store.DB, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); db.Queued() < n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d writes are queued, not %d", db.Queued(), n)
		}
		<-time.After(time.Millisecond)
	}
}

func ids(db *store.DB) []string {
	var out []string
	for p := range db.Pods() {
		out = append(out, string(p.ID))
	}
	slices.Sort(out)
	return out
}

func wantIDs(t *testing.T, db *store.DB, want ...string) {
	t.Helper()
	if got := ids(db); !slices.Equal(got, want) {
		t.Errorf("pods %q, want %q", got, want)
	}
}

// TestReadsDoNotWait holds a commit up for as long as it likes: reads answer, show nothing of it, and
// show what was written asynchronously; the other file is written to; nobody's context is held up.
func TestReadsDoNotWait(t *testing.T) {
	db := storetest.Open(t)
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "a", State: "old"}))
	g := newGate()
	db.FailDurable(t, g.point)
	done := make(chan error)
	go func() { done <- db.PutPod(t.Context(), store.Pod{ID: "a", State: "new"}) }()
	<-g.arrived

	if p, _ := db.Pod("a"); p.State != "old" {
		t.Errorf("what is not durable is visible: %s", p.State)
	}
	ok(t, db.PutPodAsync(store.Pod{ID: "b"}))
	ok(t, db.PutContainerAsync(store.Container{ID: "c", PodID: "b"}))
	wantIDs(t, db, "a", "b")
	if id, err := db.FindPod("b"); err != nil || id != "b" {
		t.Errorf("%s, %v", id, err)
	}
	for range db.ContainersOf("b") {
	}
	ok(t, db.LivePods().Put(t.Context(), "a", store.Live{}))
	ok(t, db.LivePods().Enter(t.Context(), "a", "step", nil))
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { gone <- db.PutPod(ctx, store.Pod{ID: "later"}) }()
	untilQueued(t, db, 3)
	cancel()
	wantErr(t, <-gone, context.Canceled)
	select {
	case err := <-done:
		t.Errorf("the commit was not held up: %v", err)
	default:
	}

	g.open()
	ok(t, <-done)
	if p, _ := db.Pod("a"); p.State != "new" {
		t.Errorf("what is durable is not visible: %s", p.State)
	}
	// The end of the context has ended the waiting, not the write.
	ok(t, db.Flush(t.Context()))
	wantIDs(t, db, "a", "b", "later")
}

// TestGroupCommit holds that all that queues during a commit makes one more.
func TestGroupCommit(t *testing.T) {
	db := storetest.Open(t)
	g := newGate()
	db.FailDurable(t, g.point)
	var wg sync.WaitGroup
	put := func(n int) {
		wg.Go(func() {
			if err := db.PutPod(t.Context(), aPod(n)); err != nil {
				t.Error(err)
			}
		})
	}
	put(0)
	<-g.arrived
	for n := range 31 {
		put(n + 1)
	}
	untilQueued(t, db, 31)
	g.let <- nil
	<-g.arrived
	if n := db.Queued(); n != 0 {
		t.Errorf("%d writes are left for a third commit", n)
	}
	g.let <- nil
	wg.Wait()
	g.open()
}

// TestAsyncOverSync queues both kinds of writes to one record: the last one counts, in memory at once
// and in the file.
func TestAsyncOverSync(t *testing.T) {
	for _, c := range []struct {
		name string
		let  error // what becomes of the commit that is held up
		want string
	}{
		{"the earlier write succeeds", nil, "async 2"},
		{"the earlier write fails", unix.ENOSPC, "async 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := storetest.Folders(t)
			cfg.OnFault = nil
			db := storetest.OpenAt(t, cfg)
			g := newGate()
			db.FailDurable(t, g.point)
			done := make(chan error)
			go func() { done <- db.PutPod(t.Context(), store.Pod{ID: "a", State: "sync 1"}) }()
			<-g.arrived
			ok(t, db.PutPodAsync(store.Pod{ID: "a", State: "async 1"}))
			queued := make(chan error)
			go func() { queued <- db.PutPod(t.Context(), store.Pod{ID: "a", State: "sync 2"}) }()
			untilQueued(t, db, 2)
			ok(t, db.PutPodAsync(store.Pod{ID: "a", State: "async 2"}))
			state := func() string {
				p, _ := db.Pod("a")
				return p.State
			}
			if state() != "async 2" {
				t.Errorf("queued: %s", state())
			}
			g.let <- c.let
			wantErr(t, <-done, c.let)
			if state() != "async 2" {
				t.Errorf("after the first commit: %s", state())
			}
			<-g.arrived
			g.let <- unix.ENOSPC
			wantErr(t, <-queued, unix.ENOSPC)
			// What is in the file is older than what is in memory, and Check knows.
			checkHeldUp(t, db, g)
			<-g.arrived
			ok(t, db.PutPodAsync(store.Pod{ID: "a", State: "async 3"}))
			g.let <- nil
			<-g.arrived
			g.let <- unix.ENOSPC
			checkHeldUp(t, db, g)
			g.open()
			ok(t, db.Flush(t.Context()))
			ok(t, db.PutPod(t.Context(), store.Pod{ID: "a", State: "async 2"}))
			if state() != "async 2" {
				t.Errorf("after all: %s", state())
			}
			db = reopen(t, db, cfg)
			if state() != c.want {
				t.Errorf("reopened: %s", state())
			}
		})
	}
}

// checkHeldUp checks a store whose commits fail.
func checkHeldUp(t *testing.T, db *store.DB, g *gate) {
	t.Helper()
	checked := make(chan error)
	go func() {
		problems, err := db.Check(t.Context())
		if len(problems) > 0 {
			err = fmt.Errorf("problems %v", problems)
		}
		checked <- err
	}()
	for {
		select {
		case <-g.arrived:
			g.let <- unix.ENOSPC
		case err := <-checked:
			ok(t, err)
			return
		}
	}
}

// TestAsyncBesideCommit holds that what is made visible at once is right whatever becomes of the commit
// under way.
func TestAsyncBesideCommit(t *testing.T) {
	for _, let := range []error{nil, unix.ENOSPC} {
		t.Run(fmt.Sprint(let), func(t *testing.T) {
			db := storetest.Open(t)
			ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
			ok(t, db.PutPod(t.Context(), store.Pod{ID: "old"}))
			g := newGate()
			db.FailDurable(t, g.point)
			done := make(chan error)
			go func() {
				done <- db.Update(t.Context(), func(tx *store.Tx) error {
					tx.DeletePod("old")
					return errors.Join(tx.PutContainer(store.Container{ID: "c", PodID: "p"}), tx.PutPod(store.Pod{ID: "new"}))
				})
			}()
			<-g.arrived
			// The pod may be about to have a container, the new one to be there, the old one to be gone.
			wantErr(t, db.DeletePodAsync("p"), store.ErrInUse)
			wantErr(t, db.PutContainerAsync(store.Container{ID: "d", PodID: "new"}), store.ErrDangling)
			wantErr(t, db.PutContainerAsync(store.Container{ID: "d", PodID: "old"}), store.ErrDangling)
			// Put after the commit, it is there either way.
			ok(t, db.PutPodAsync(store.Pod{ID: "old"}))
			ok(t, db.PutContainerAsync(store.Container{ID: "d", PodID: "old"}))
			g.let <- let
			wantErr(t, <-done, let)
			g.open()
		})
	}
}

// TestFailures has commits fail in each way there is. Who waited is told, memory stays as it was, and
// the next write succeeds; after that, and after a crash, the file has what was acknowledged and nothing
// else.
func TestFailures(t *testing.T) {
	broken := errors.New("broken disk")
	for _, c := range []struct {
		name string
		fail func(point string) error
		want error
	}{
		{"disk full", func(p string) error { return at(p, "commit", unix.ENOSPC) }, unix.ENOSPC},
		{"panic", func(p string) error { return panicAt(p, "commit") }, store.ErrPanic},
		// The commit is in the file, but its last sync failed.
		{"in doubt", func(p string) error { return at(p, "committed", broken) }, broken},
		{"panic when it is in the file", func(p string) error { return panicAt(p, "committed") }, store.ErrPanic},
		{"fault", func(p string) error { return faultAt(t, p, "commit") }, store.ErrPanic},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := storetest.Folders(t)
			var told []error // of panics, with the stack, which is not for those who wait
			cfg.OnFault = func(err error) { told = append(told, err) }
			db := storetest.OpenAt(t, cfg)
			ok(t, db.PutPod(t.Context(), store.Pod{ID: "kept"}))
			ok(t, db.PutPod(t.Context(), store.Pod{ID: "changed", State: "old"}))
			for round := range 3 {
				db.FailDurable(t, c.fail)
				err := db.Update(t.Context(), func(tx *store.Tx) error {
					tx.DeletePod("kept")
					return errors.Join(tx.PutPod(store.Pod{ID: "failed"}), tx.PutPod(store.Pod{ID: "changed", State: "new"}))
				})
				wantErr(t, err, c.want)
				if err == nil || !strings.Contains(err.Error(), "berth.db") {
					t.Errorf("the error does not name the file: %v", err)
				}
				if p, _ := db.Pod("changed"); p.State != "old" || len(ids(db)) != 2+round {
					t.Errorf("memory has changed: %s, %q", p.State, ids(db))
				}
				if strings.Contains(err.Error(), "goroutine") {
					t.Errorf("the error has a stack: %v", err)
				}
				db.FailDurable(t, nil)
				ok(t, db.PutPod(t.Context(), store.Pod{ID: store.PodID(fmt.Sprintf("round%d", round))}))
				storetest.Check(t, db)
			}
			storetest.Crash(db)
			for _, err := range told {
				if !errors.Is(err, store.ErrPanic) || !strings.Contains(err.Error(), "goroutine") {
					t.Errorf("told %v", err)
				}
			}
			if want := map[bool]int{true: 3}[errors.Is(c.want, store.ErrPanic)]; len(told) != want {
				t.Errorf("told %d times, not %d", len(told), want)
			}
			db = storetest.OpenAt(t, cfg)
			wantIDs(t, db, "changed", "kept", "round0", "round1", "round2")
			if p, _ := db.Pod("changed"); p.State != "old" {
				t.Errorf("changed is %s", p.State)
			}
		})
	}
}

func at(point, where string, err error) error {
	if point == where {
		return err
	}
	return nil
}

func panicAt(point, where string) error {
	if point == where {
		panic("as bbolt does")
	}
	return nil
}

// faultAt reads memory that cannot be read, as of a mapped file that was cut off.
func faultAt(t *testing.T, point, where string) error {
	if point != where {
		return nil
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	ok(t, err)
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	ok(t, err)
	defer func() { ok(t, unix.Munmap(b)) }()
	return fmt.Errorf("read %d", b[0])
}

// TestRewrite holds that a file that is in doubt is made anew, also if nothing else is to be written, as
// soon as that can be done.
func TestRewrite(t *testing.T) {
	cfg := storetest.Folders(t)
	faults := make(chan error, 100)
	cfg.OnFault = func(err error) { faults <- err }
	db := storetest.OpenAt(t, cfg)
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "kept"}))
	rewritten := make(chan bool, 100)
	db.FailDurable(t, func(p string) error {
		return errors.Join(at(p, "committed", unix.EIO), at(p, "rewrite", unix.ENOSPC))
	})
	wantErr(t, db.PutPod(t.Context(), store.Pod{ID: "a"}), unix.EIO)
	for range 2 {
		wantErr(t, <-faults, unix.ENOSPC) // it tries
		wantErr(t, db.PutPod(t.Context(), store.Pod{ID: "a"}), unix.ENOSPC)
	}
	db.FailDurable(t, func(p string) error {
		if p == "rewrite" {
			rewritten <- true
		}
		return nil
	})
	<-rewritten
	storetest.Check(t, db)
	storetest.Crash(db)
	db = storetest.OpenAt(t, cfg)
	wantIDs(t, db, "kept")
}

// TestCheckInDoubt holds that Check says of a file that it is in doubt.
func TestCheckInDoubt(t *testing.T) {
	cfg := storetest.Folders(t)
	cfg.OnFault = nil
	db := storetest.OpenAt(t, cfg)
	db.FailDurable(t, func(p string) error {
		if p == "commit" {
			panic("as bbolt does")
		}
		return unix.EIO
	})
	wantErr(t, db.PutPod(t.Context(), store.Pod{ID: "a"}), store.ErrPanic)
	problems, err := db.Check(t.Context())
	ok(t, err)
	if len(problems) != 1 || problems[0].File != "berth.db" || !strings.Contains(problems[0].Text, "made anew") {
		t.Errorf("problems %v", problems)
	}
	db.FailDurable(t, nil)
	storetest.Check(t, db)
}

// TestAsyncIsTriedAgain holds that asynchronous writes survive a disk that is full for a while, in their
// order, and that somebody is told.
func TestAsyncIsTriedAgain(t *testing.T) {
	cfg := storetest.Folders(t)
	faults := make(chan error, 100)
	cfg.OnFault = func(err error) { faults <- err }
	db := storetest.OpenAt(t, cfg)
	for _, id := range []store.PodID{"a", "b"} {
		ok(t, db.PutPod(t.Context(), store.Pod{ID: id}))
	}
	db.FailDurable(t, func(p string) error { return at(p, "commit", unix.ENOSPC) })
	ok(t, db.DeletePodAsync("a"))
	ok(t, db.PutPodAsync(store.Pod{ID: "c", State: "first"}))
	ok(t, db.PutPodAsync(store.Pod{ID: "c", State: "second"}))
	for range 3 { // by itself
		wantErr(t, <-faults, unix.ENOSPC)
	}
	wantErr(t, db.PutPod(t.Context(), store.Pod{ID: "d"}), unix.ENOSPC) // with somebody who waits
	wantErr(t, db.Flush(t.Context()), unix.ENOSPC)
	wantIDs(t, db, "b", "c")
	if problems, err := db.Check(t.Context()); err != nil || len(problems) != 0 {
		t.Errorf("in between: %v, %v", problems, err)
	}
	db.FailDurable(t, nil)
	ok(t, db.Flush(t.Context()))
	storetest.Crash(db)
	db = storetest.OpenAt(t, cfg)
	wantIDs(t, db, "b", "c")
	if p, _ := db.Pod("c"); p.State != "second" {
		t.Errorf("c is %s", p.State)
	}
}

// TestCloseFails holds that a run that could not write its last words has not ended cleanly.
func TestCloseFails(t *testing.T) {
	cfg := storetest.Folders(t)
	cfg.OnFault = nil
	db, err := store.Open(t.Context(), cfg)
	ok(t, err)
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "a"}))
	db.FailDurable(t, func(p string) error { return at(p, "commit", unix.EIO) })
	ok(t, db.PutPodAsync(store.Pod{ID: "b"}))
	wantErr(t, db.Close(), unix.EIO)
	wantErr(t, db.Close(), unix.EIO)
	db = storetest.OpenAt(t, cfg)
	wantIDs(t, db, "a")
	if db.CleanShutdown() {
		t.Error("said to have ended cleanly")
	}
}

// TestAsyncDelay holds that an asynchronous write waits for others as long as it may: for the next one
// that somebody waits for, for Flush, and for Close.
func TestAsyncDelay(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*store.DB)
		want []string
	}{
		{"crash", storetest.Crash, nil},
		{"another write", func(db *store.DB) {
			ok(t, db.PutPod(t.Context(), store.Pod{ID: "b"}))
			storetest.Crash(db)
		}, []string{"a", "b"}},
		{"flush", func(db *store.DB) {
			ok(t, db.Flush(t.Context()))
			storetest.Crash(db)
		}, []string{"a"}},
		{"close", func(db *store.DB) { ok(t, db.Close()) }, []string{"a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := storetest.Folders(t)
			cfg.AsyncDelay = time.Hour
			db := storetest.OpenAt(t, cfg)
			ok(t, db.PutPodAsync(store.Pod{ID: "a"}))
			wantIDs(t, db, "a")
			c.do(db)
			wantIDs(t, storetest.OpenAt(t, cfg), c.want...)
		})
	}
	t.Run("its time", func(t *testing.T) {
		cfg := storetest.Folders(t)
		cfg.AsyncDelay = 20 * time.Millisecond
		db := storetest.OpenAt(t, cfg)
		committed := make(chan time.Time, 10)
		db.FailDurable(t, func(p string) error {
			if p == "committed" {
				committed <- time.Now()
			}
			return nil
		})
		begin := time.Now()
		ok(t, db.PutPodAsync(store.Pod{ID: "a"}))
		if waited := (<-committed).Sub(begin); waited < cfg.AsyncDelay {
			t.Errorf("waited %v", waited)
		}
	})
}

// TestPanicWithoutCaller holds that a panic in a function whose caller has gone is told.
func TestPanicWithoutCaller(t *testing.T) {
	cfg := storetest.Folders(t)
	faults := make(chan error, 1)
	cfg.OnFault = func(err error) { faults <- err }
	db := storetest.OpenAt(t, cfg)
	g := newGate()
	db.FailDurable(t, g.point)
	held := make(chan error)
	go func() { held <- db.PutPod(t.Context(), store.Pod{ID: "a"}) }()
	<-g.arrived
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- db.Update(ctx, func(*store.Tx) error { panic("nobody's") }) }()
	untilQueued(t, db, 1)
	cancel()
	wantErr(t, <-done, context.Canceled)
	g.open()
	if err := <-faults; !strings.Contains(err.Error(), "nobody's") {
		t.Errorf("told %v", err)
	}
	ok(t, <-held)
}

// TestLiveFails has the state folder full.
func TestLiveFails(t *testing.T) {
	cfg := storetest.Folders(t)
	cfg.OnFault = nil
	db := storetest.OpenAt(t, cfg)
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
	ok(t, db.LivePods().Put(t.Context(), "p", store.Live{Config: []byte("old")}))
	for _, fail := range []func(string) error{
		func(p string) error { return at(p, "commit", unix.ENOSPC) },
		func(p string) error { return at(p, "committed", unix.ENOSPC) },
		func(p string) error { return panicAt(p, "committed") },
	} {
		db.FailLive(t, fail)
		if err := db.LivePods().Put(t.Context(), "p", store.Live{Config: []byte("new")}); err == nil || !strings.Contains(err.Error(), "live.db") {
			t.Errorf("error is %v", err)
		}
		if err := db.LivePods().Enter(t.Context(), "p", "step", nil); err == nil {
			t.Error("entered")
		}
		if l, _ := db.LivePods().Get("p"); string(l.Config) != "old" || len(l.Steps) != 0 {
			t.Errorf("memory has changed: %s, %v", l.Config, l.Steps)
		}
		db.FailLive(t, nil)
		ok(t, db.LivePods().Enter(t.Context(), "p", "step", nil))
		storetest.Check(t, db)
		ok(t, db.LivePods().Delete(t.Context(), "p"))
		ok(t, db.LivePods().Put(t.Context(), "p", store.Live{Config: []byte("old")}))
	}
}

// TestCutOff cuts the files off under the store: that costs a write an error, and nothing else.
func TestCutOff(t *testing.T) {
	cfg := storetest.Folders(t)
	cfg.OnFault = nil
	db := storetest.OpenAt(t, cfg)
	fill(t, db, 50, 5)
	want := len(collect(db))
	for _, size := range []int64{3 * 4096, 0} {
		ok(t, os.Truncate(durablePath(cfg), size))
		ok(t, os.Truncate(livePath(cfg), size))
		failed := 0
		for n := range 10 {
			if err := db.PutPod(t.Context(), aPod(n)); err != nil {
				failed++
			}
			if err := db.LivePods().Enter(t.Context(), aPod(n).ID, fmt.Sprint("step", size), nil); err != nil {
				failed++
			}
		}
		if failed == 0 || failed > 4 {
			t.Errorf("cut to %d: %d of 20 writes failed", size, failed)
		}
		storetest.Check(t, db)
	}
	db = reopen(t, db, cfg)
	if got := len(collect(db)); got != want {
		t.Errorf("%d records, want %d", got, want)
	}
}
