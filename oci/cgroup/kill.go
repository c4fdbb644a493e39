// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of one round of a kill: how long the group may take to freeze, and how long it may take
// to empty before the next round, which doubles from the first to the last.
const (
	freezeWithin = 20 * time.Millisecond
	firstRound   = 20 * time.Millisecond
	lastRound    = time.Second
)

// Kill sends SIGKILL to every process in the group and below it, and returns when there is none
// left. It signals no process of another group. A group that is gone, or empty, is a success and
// is not written to; one that was frozen is thawed if it must be. When ctx ends first the error
// is a *RemainError that wraps ctx's error and names who is left; one round is made even if ctx
// has already ended. ErrRoot and ErrSelf as in the package's invariants; ErrThreaded for a v2 group
// that is itself threaded, whose processes belong to the group above.
//
//   - v2 from Linux 5.14: cgroup.kill, which covers the subtree, catches forks under way in the
//     kernel, and acts on frozen groups.
//   - v2 before: cgroup.freeze, then SIGKILL to all, then thaw, until empty.
//   - v1: the same with the freezer hierarchy. A frozen fork bomb cannot outrun the reading of
//     its pids, and dies when thawed before it returns to user mode. Then what is in the group's
//     folders of other hierarchies only: an exec whose starter died half way through joining.
//
// Whoever can still add processes to the group must have stopped before. From Linux 5.3 (pidfd).
func (g Group) Kill(ctx context.Context) error {
	members, err := g.guard(1)
	if err != nil || len(members) == 0 {
		return err
	}
	round := g.killV1
	if g.version == V2 {
		round = g.killV2
	}
	return g.killRounds(ctx, round)
}

// killRounds repeats a round until the group is empty.
func (g Group) killRounds(ctx context.Context, round func() error) error {
	for wait := firstRound; ; wait = min(2*wait, lastRound) {
		if err := round(); err != nil {
			return fmt.Errorf("kill cgroup: %w", err)
		}
		empty, err := g.emptyWithin(ctx, wait)
		switch {
		case err != nil:
			return err
		case empty:
			return nil
		case ctx.Err() != nil:
			return g.remain(ctx.Err())
		}
	}
}

func (g Group) killV2() error {
	dir := g.members[0].path
	err := writeFile(dir+"/cgroup.kill", "1")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		// An older kernel, or a group that is gone, which is empty for the other way as well.
		return g.killFrozenV2()
	case isGone(err):
		return nil
	}
	return err
}

func (g Group) killFrozenV2() error {
	dir := g.members[0].path
	freeze := dir + "/cgroup.freeze"
	// Before Linux 5.2 there is no freezer: then only the rounds catch up with forks.
	if err := writeFile(freeze, "1"); err == nil {
		// An error means that the group is gone: it could be frozen.
		defer func() { _ = writeFile(freeze, "0") }()
		ctx, cancel := context.WithTimeout(context.Background(), freezeWithin)
		defer cancel()
		if err := waitEvents(ctx, usual(), dir, "frozen", true); err != nil && ctx.Err() == nil {
			return err
		}
	} else if !isGone(err) {
		return err
	}
	_, err := killTree(dir)
	return err
}

func (g Group) killV1() error {
	fz, ok := g.path("freezer")
	if ok {
		n, err := killFrozenV1(fz)
		if err != nil || n > 0 {
			return err // what is in the other folders as well is dying by now
		}
	}
	for _, dir := range g.dirs() {
		if dir == fz {
			continue
		}
		if _, err := killTree(dir); err != nil {
			return err
		}
	}
	return nil
}

// killFrozenV1 freezes, kills and thaws one freezer folder and all below it, and says how many
// processes it saw.
func killFrozenV1(dir string) (int, error) {
	pids, err := treeProcs(dir, 1)
	if err != nil || len(pids) == 0 {
		return 0, err
	}
	// Also when the freezing fails half way: nothing may be left frozen.
	defer thawV1(dir)
	// One that cannot be frozen because it is going away is killed all the same.
	if err := freezeV1(dir); err != nil && !isGone(err) {
		return 0, err
	}
	return killTree(dir)
}

// freezeV1 freezes a folder and all below it. It gives up without an error after freezeWithin:
// one process in the state D keeps the group FREEZING, while all the others are stopped.
//
// The state is written again each time it is not FROZEN yet, as the kernel's documentation asked
// until 5.0: a process that appears while the group freezes can leave it in FREEZING for ever.
func freezeV1(dir string) error {
	path := dir + "/freezer.state"
	deadline := time.Now().Add(freezeWithin)
	for {
		if err := writeFile(path, "FROZEN"); err != nil {
			return err
		}
		var buf [16]byte
		state, err := readFile(path, buf[:])
		if err != nil {
			return err
		}
		if string(state) == "FROZEN\n" || time.Now().After(deadline) {
			return nil
		}
		// There is no event. Mostly it is a matter of some 10 µs; the runtime's own sleep would
		// make a millisecond of that. A signal that ends it early does no harm.
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 50_000}, nil)
	}
}

// thawV1 thaws a folder and all below it: one below may have been frozen on its own. An error
// has no consequence but that the group does not empty, which is what the caller waits for.
func thawV1(dir string) {
	dirs, _ := walk(dir)
	for _, d := range dirs {
		_ = writeFile(d+"/freezer.state", "THAWED")
	}
}
