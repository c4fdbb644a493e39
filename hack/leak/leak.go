// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Leak is one thing that is there now, was not there before, and belongs to the test.
type Leak struct {
	Kind string // process, mount, netns, cgroup, link, rule, file, goroutine or descriptor
	Name string // for a person: path, pid and command line, stack ...
}

// String returns the kind and the name.
func (l Leak) String() string { return l.Kind + " " + l.Name }

// things are the things of one kind: identity → name for a person.
type things map[string]string

// kind is one sort of thing that can be left behind.
type kind struct {
	name string
	// look lists what exists. With all it lists everything of the kind, whoever owns it, which is
	// what a snapshot needs: a process that is moved into the test's cgroup later is still not new.
	// Otherwise it lists what the scope calls the test's own.
	look func(sc *scope, all bool) (things, error)
	// nested says that the things lie in one another, as files do: of a tree that is new only the top
	// is reported.
	nested bool
}

// Snapshot is what existed at one moment.
type Snapshot struct {
	scope  *scope
	kinds  []kind
	before []things // one for each of kinds
}

// Take notes what exists now. It fails if an option is malformed, or if something that it asks for
// cannot be read on this machine: what cannot be seen cannot be checked.
func Take(opts ...Option) (*Snapshot, error) {
	sc, err := newScope(opts)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{scope: sc, kinds: sc.kinds()}
	for _, k := range s.kinds {
		seen, err := k.look(sc, true)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.name, err)
		}
		s.before = append(s.before, seen)
	}
	return s, nil
}

// Leaks looks once and returns what is new and the test's own, sorted by kind and name.
func (s *Snapshot) Leaks() ([]Leak, error) {
	var (
		leaks []Leak
		errs  []error
	)
	for i, k := range s.kinds {
		seen, err := k.look(s.scope, false)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k.name, err))
			continue
		}
		maps.DeleteFunc(seen, func(id, _ string) bool { _, old := s.before[i][id]; return old })
		if k.nested {
			seen = topmost(seen)
		}
		for _, name := range seen {
			leaks = append(leaks, Leak{Kind: k.name, Name: name})
		}
	}
	slices.SortFunc(leaks, func(a, b Leak) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	return leaks, errors.Join(errs...)
}

// Settle looks until nothing is left, the grace period has passed, or ctx has ended, and returns what
// the last look found. The package comment says why it has to look more than once.
func (s *Snapshot) Settle(ctx context.Context) ([]Leak, error) {
	ctx, cancel := context.WithTimeout(ctx, s.scope.grace)
	defer cancel()
	return poll(ctx, s.Leaks)
}

func poll(ctx context.Context, look func() ([]Leak, error)) ([]Leak, error) {
	const longest = 50 * time.Millisecond
	for wait := time.Millisecond; ; wait = min(2*wait, longest) {
		leaks, err := look()
		if err == nil && len(leaks) == 0 {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return leaks, err
		case <-time.After(wait):
		}
	}
}

// Check notes what exists now and, when tb and its other clean-ups have ended, fails tb with the name
// of each thing that is new and the test's own.
//
// Preconditions:
//   - Check is called before the test makes anything, so that its clean-up, which runs in reverse
//     order, is the last one;
//   - the test does not run in parallel with others of its process.
func Check(tb testing.TB, opts ...Option) {
	tb.Helper()
	s, err := Take(opts...)
	if err != nil {
		tb.Fatalf("leak: %v", err)
		return
	}
	tb.Cleanup(func() {
		tb.Helper()
		if text := s.report(); text != "" {
			tb.Errorf("%s", text)
		}
	})
}

// Main runs the tests of a binary and returns the status for os.Exit: that of m.Run, or 1 where the
// binary as a whole has left something behind. It is for TestMain, where resources that several tests
// share are made and removed.
func Main(m interface{ Run() int }, opts ...Option) int {
	return runMain(m, os.Stderr, opts...)
}

func runMain(m interface{ Run() int }, out io.Writer, opts ...Option) int {
	s, err := Take(opts...)
	if err != nil {
		fmt.Fprintf(out, "leak: %v\n", err)
		return 1
	}
	code := m.Run()
	if text := s.report(); text != "" {
		fmt.Fprintln(out, text)
		code = max(code, 1)
	}
	return code
}

// report settles and returns the text of a failure, or nothing. It takes no context: that of a test has
// ended before the clean-ups run.
func (s *Snapshot) report() string {
	leaks, err := s.Settle(context.Background())
	if err == nil && len(leaks) == 0 {
		return ""
	}
	var b strings.Builder
	if len(leaks) > 0 {
		fmt.Fprintf(&b, "leak: %d left behind:", len(leaks))
		for _, l := range leaks {
			fmt.Fprintf(&b, "\n\t%s", strings.ReplaceAll(l.String(), "\n", "\n\t\t"))
		}
	}
	if err != nil {
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "leak: not everything could be looked at: %v", err)
	}
	return b.String()
}
