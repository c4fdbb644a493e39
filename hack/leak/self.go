// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"os"
	"runtime"
	"strings"
)

// goroutines lists the goroutines of this process. The one that looks is no leak, but belongs into a
// snapshot, since another may do the comparing.
func goroutines(_ *scope, all bool) (things, error) {
	seen, self := parseStacks(stacks())
	if !all {
		delete(seen, self)
	}
	return seen, nil
}

// stacks returns the stacks of all goroutines, the calling one first.
func stacks() string {
	for size := 1 << 16; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return string(buf[:n])
		}
	}
}

// parseStacks splits what runtime.Stack writes, paragraphs that begin with "goroutine N [state]:", by
// N. It also returns the N of the first one, which is the caller.
func parseStacks(text string) (seen things, self string) {
	seen = make(things)
	for i, stack := range strings.Split(strings.TrimSpace(text), "\n\n") {
		stack = strings.TrimPrefix(stack, "goroutine ")
		id, _, _ := strings.Cut(stack, " ")
		if i == 0 {
			self = id
		}
		// The loop that hands signals out is started by the first signal.Notify of a process and
		// never ends: os/signal is made so.
		if !strings.Contains(stack, "os/signal.loop") {
			seen[id] = stack
		}
	}
	return seen, self
}

// descriptors lists the open files of this process.
func descriptors(_ *scope, all bool) (things, error) {
	if all {
		// The runtime opens its epoll and event descriptors with the first file that can be polled and
		// keeps them: let it do so before the snapshot.
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		r.Close()
		w.Close()
	}
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	seen := make(things)
	for _, e := range entries {
		// The descriptor that listed the folder is closed by now and falls out here.
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			name := e.Name() + " → " + target
			seen[name] = name
		}
	}
	return seen, nil
}
