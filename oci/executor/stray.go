// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/oci/wire"
)

// strayTime is how long a start that has failed waits for others that are under way,
// to know whose children are whose.
const strayTime = 2 * time.Second

// starts are those of libcontainer that are under way, until what they have started
// is registered.
type starts struct {
	mu sync.Mutex
	// closed at the end of each
	under map[chan struct{}]bool // +checklocks:mu
}

// begin notes one more, until the returned function is called.
func (s *starts) begin() (end func()) {
	done := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.under == nil {
		s.under = make(map[chan struct{}]bool)
	}
	s.under[done] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.under, done)
		close(done)
	}
}

// wait waits for the end of those that are under way now.
func (s *starts) wait() {
	s.mu.Lock()
	list := slices.Collect(maps.Keys(s.under))
	s.mu.Unlock()
	for _, done := range list {
		<-done
	}
}

// reapStrays reaps what a start that was killed half-way has left. libcontainer's init
// becomes the container's first process by two steps of clone, each of which is a child
// of ours, and libcontainer waits for the second and third only once it was told of
// them. As a zombie such a one would hold its pid for as long as we live, and where it
// is in a pod's PID namespace the pause process could not end.
//
// A child that another start has made looks the same. So they are looked for now, and
// reaped when all starts that are under way now have come to their end: who is still
// there then, and was not registered, is nobody's. Where that takes long, which is
// where a start hangs, nobody waits for it.
//
// Preconditions: the start itself has come to its end.
func (x *Executor) reapStrays() error {
	list, err := strays(os.Getpid())
	if err != nil || len(list) == 0 {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.starts.wait()
		x.reapNobodys(list)
	}()
	waitAtMost(done, strayTime)
	return nil
}

// reapNobodys reaps those of list that are still there and not registered.
func (x *Executor) reapNobodys(list []wire.Created) {
	ours := make(map[wire.Created]bool)
	for _, c := range x.all() {
		c.mu.Lock()
		ours[c.rec.Process] = true
		for _, e := range c.execs {
			e.mu.Lock()
			ours[e.rec.Process] = true
			e.mu.Unlock()
		}
		c.mu.Unlock()
	}
	for _, p := range list {
		if ours[p] {
			continue
		}
		if pidfd, err := sameProcess(p.PID, p.Start); err == nil {
			_ = reap(pidfd) // ECHILD: somebody has
			unix.Close(pidfd)
		}
	}
}

// strays lists the children of parent that have ended and were at libcontainer's init.
func strays(parent int) ([]wire.Created, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []wire.Created
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // reaped
		}
		text := string(b)
		stat, err := parseStat(text)
		if err != nil || stat.state != 'Z' || stat.parent != parent || !strings.Contains(text, " (runc:[") {
			continue
		}
		list = append(list, wire.Created{PID: pid, Start: stat.start})
	}
	return list, nil
}
