// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/storetest"
)

// With these in its environment the test binary is a process that writes until it is killed, and says
// what it was told is written.
const (
	writerRoot  = "BERTH_TEST_WRITER_ROOT"
	writerState = "BERTH_TEST_WRITER_STATE"
)

// writeUntilKilled has four goroutines write pods, containers and ledger entries. A line "pod 7 3" says
// that the third write to pod 7 was acknowledged; "gone" that its removal was.
func writeUntilKilled() {
	ctx := context.Background()
	db, err := store.Open(ctx, store.Config{Root: os.Getenv(writerRoot), State: os.Getenv(writerState)})
	if err != nil {
		fmt.Println("open", err)
		os.Exit(1)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := g; ; n += 4 {
				writeOne(ctx, db, n)
			}
		})
	}
	wg.Wait()
}

func writeOne(ctx context.Context, db *store.DB, n int) {
	p := aPod(n)
	c := aContainer(n, p.ID)
	say := func(err error, format string, args ...any) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Printf(format+"\n", args...)
	}
	// As sandbox does it: what is to be undone is in the ledger first.
	say(db.LivePods().Put(ctx, p.ID, store.Live{Config: []byte(p.Name)}, "cgroup"), "live %d", n)
	say(db.LivePods().Enter(ctx, p.ID, "network", nil), "step %d", n)
	p.Attempt = 1
	say(db.PutPod(ctx, p), "pod %d 1", n)
	c.Attempt = 1
	say(db.PutContainer(ctx, c), "container %d 1", n)
	p.Attempt = 2
	if err := db.PutPodAsync(p); err != nil {
		say(err, "")
	}
	p.Attempt = 3
	say(db.PutPod(ctx, p), "pod %d 3", n)
	if n%3 == 0 {
		say(db.Update(ctx, func(tx *store.Tx) error {
			tx.DeleteContainer(c.ID)
			tx.DeletePod(p.ID)
			return nil
		}), "gone %d", n)
	}
}

// TestKill kills a process that writes, 50 times, each time after another number of acknowledged
// writes. The next one finds all of them, in both files, and nothing torn. All 50 have the same files.
func TestKill(t *testing.T) {
	rounds := 50
	if testing.Short() {
		rounds = 10
	}
	cfg := storetest.Folders(t)
	for round := range rounds {
		said := killedWriter(t, cfg, 1+rand.IntN(120))
		db, err := store.Open(t.Context(), cfg)
		ok(t, err)
		if db.CleanShutdown() || db.Run() != uint64(2*round+2) || db.Rebooted() {
			t.Errorf("round %d: clean %v, run %d, rebooted %v", round, db.CleanShutdown(), db.Run(), db.Rebooted())
		}
		storetest.Check(t, db)
		for _, line := range said {
			acknowledged(t, db, line, said)
		}
		// The next writer begins with the same ids.
		ok(t, db.Update(t.Context(), func(tx *store.Tx) error {
			for c := range db.Containers() {
				tx.DeleteContainer(c.ID)
			}
			for p := range db.Pods() {
				tx.DeletePod(p.ID)
			}
			return nil
		}))
		for id := range db.LivePods().All() {
			ok(t, db.LivePods().Delete(t.Context(), id))
		}
		ok(t, db.Close())
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

// killedWriter returns the lines that a writer said; it is killed when it has said n, and may say more
// before it is dead.
func killedWriter(t *testing.T, cfg store.Config, n int) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), writerRoot+"="+cfg.Root, writerState+"="+cfg.State)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if said = append(said, lines.Text()); len(said) == n {
			ok(t, cmd.Process.Signal(unix.SIGKILL))
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Success() || exit.ExitCode() >= 0 || len(said) < n {
		t.Fatalf("the writer was to be killed: %v; it said %d lines, the last %q", err, len(said), said[max(0, len(said)-3):])
	}
	return said
}

// acknowledged holds that what a line says is there, or what the writer did next to the same pod.
func acknowledged(t *testing.T, db *store.DB, line string, said []string) {
	t.Helper()
	var (
		what       string
		n, attempt int
	)
	_, _ = fmt.Sscan(line, &what, &n, &attempt)
	p, podFound := db.Pod(aPod(n).ID)
	_, containerFound := db.Container(aContainer(n, "").ID)
	// The removal of every third pod is the one write that takes back earlier ones; after "pod N 3" it
	// may have been made without having been acknowledged.
	mayBeGone := n%3 == 0 && strings.Contains("\n"+strings.Join(said, "\n")+"\n", fmt.Sprintf("\npod %d 3\n", n))
	good := true
	switch what {
	case "live", "step":
		live, found := db.LivePods().Get(aPod(n).ID)
		good = found && string(live.Config) == aPod(n).Name && (what == "live" || len(live.Steps) == 2 && live.Steps[1].Open())
	case "pod":
		good = podFound && int(p.Attempt) >= attempt || !podFound && mayBeGone
	case "container":
		good = containerFound || mayBeGone
	case "gone":
		good = !podFound && !containerFound
	default:
		t.Fatalf("the writer said %q", line)
	}
	if !good {
		t.Errorf("%q was acknowledged; found pod %v, attempt %d, container %v", line, podFound, p.Attempt, containerFound)
	}
}
