// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// crashed is what a simulated SIGKILL panics with.
type crashed struct{}

// points counts the moments at which a process could die, and dies at one.
type points struct {
	seen  int
	dieAt int // 0: never
}

func (p *points) pass() {
	p.seen++
	if p.seen == p.dieAt {
		panic(crashed{})
	}
}

// survive runs fn and says whether it came to its end.
func survive(fn func()) (ended bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(crashed); !ok {
				panic(r)
			}
			ended = false
		}
	}()
	fn()
	return true
}

// world is what outlives a process: the kernel's things, and the ledger on disk.
type world struct {
	*points
	things []string // in the order in which they were made; each needs the one before
	book   []string
	broken []string // what should never happen
}

func (w *world) enter(_ context.Context, name string) error {
	w.pass()
	if !slices.Contains(w.book, name) {
		w.book = append(w.book, name)
	}
	w.pass()
	return nil
}

func (w *world) leave(_ context.Context, name string) error {
	w.pass()
	w.book = slices.DeleteFunc(w.book, func(s string) bool { return s == name })
	w.pass()
	return nil
}

func (w *world) entered() []string { return slices.Clone(w.book) }

func (w *world) do(_ context.Context, name string) {
	w.pass()
	w.things = append(w.things, name)
	w.pass()
}

func (w *world) undo(name string) error {
	w.pass()
	if i := slices.Index(w.things, name); i >= 0 {
		if i != len(w.things)-1 {
			w.broken = append(w.broken, fmt.Sprintf("%s taken back under %v", name, w.things[i+1:]))
		}
		w.things = slices.Delete(w.things, i, i+1)
	}
	w.pass()
	return nil
}

var errRefused = errors.New("refused")

// stepsOf makes n steps, of which number failing is refused; -1: none.
func stepsOf(n, failing int) []step[*world] {
	var list []step[*world]
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		list = append(list, step[*world]{
			name: name,
			do: func(w *world, ctx context.Context) error {
				if i == failing {
					return errRefused
				}
				w.do(ctx, name)
				return nil
			},
			undo: func(w *world, _ context.Context) error { return w.undo(name) },
		})
	}
	return list
}

// engine is the code under test, or a mutant of it.
type engine struct {
	climb  func(context.Context, *world, []step[*world]) error
	unwind func(context.Context, *world, []step[*world]) error
}

// crashEverywhere stops a creation and its taking back at every point, and the
// recovery from each at every point, and returns what was wrong afterwards.
func crashEverywhere(t *testing.T, e engine) (faults []string) {
	t.Helper()
	const count = 4
	for failing := -1; failing < count; failing++ {
		steps := stepsOf(count, failing)
		life := func(w *world) {
			if err := e.climb(t.Context(), w, steps); err == nil {
				_ = e.unwind(t.Context(), w, steps) // what it leaves is what we look at
			}
		}
		whole := &world{points: &points{}}
		life(whole)
		faults = append(faults, whole.faults(fmt.Sprintf("step %d fails", failing))...)
		for first := 1; first <= whole.seen; first++ {
			for second := 1; ; second++ {
				w := &world{points: &points{dieAt: first}}
				survive(func() { life(w) })
				w.points = &points{dieAt: second}
				recovered := survive(func() { _ = e.unwind(t.Context(), w, steps) })
				if !recovered {
					w.points = &points{}
					_ = e.unwind(t.Context(), w, steps)
				}
				faults = append(faults, w.faults(fmt.Sprintf("step %d fails, killed at %d and %d", failing, first, second))...)
				if recovered {
					break // there is no such point in this recovery
				}
			}
		}
	}
	return faults
}

func (w *world) faults(when string) (list []string) {
	if len(w.things) > 0 {
		list = append(list, fmt.Sprintf("%s: leaked %v", when, w.things))
	}
	if len(w.book) > 0 {
		list = append(list, fmt.Sprintf("%s: ledger still has %v", when, w.book))
	}
	for _, b := range w.broken {
		list = append(list, when+": "+b)
	}
	return list
}

func TestStepsSurviveEveryCrash(t *testing.T) {
	for _, f := range crashEverywhere(t, engine{climb[*world], unwind[*world]}) {
		t.Error(f)
	}
}

// TestStepsMutants shows that the test above can fail: each mutant has one of the
// mistakes that the engine is there to avoid.
func TestStepsMutants(t *testing.T) {
	mutants := map[string]engine{
		"enter after do": {
			climb: func(ctx context.Context, w *world, steps []step[*world]) error {
				for _, s := range steps {
					if err := s.do(w, ctx); err != nil {
						return withUndo(err, unwind(ctx, w, steps))
					}
					if err := w.enter(ctx, s.name); err != nil {
						return err
					}
				}
				return nil
			},
			unwind: unwind[*world],
		},
		"undo in the order of doing": {
			climb: climb[*world],
			unwind: func(ctx context.Context, w *world, steps []step[*world]) error {
				for _, s := range steps {
					if slices.Contains(w.entered(), s.name) {
						if err := errors.Join(s.undo(w, ctx), w.leave(ctx, s.name)); err != nil {
							return err
						}
					}
				}
				return nil
			},
		},
		"leave before undo": {
			climb: climb[*world],
			unwind: func(ctx context.Context, w *world, steps []step[*world]) error {
				for _, name := range slices.Backward(w.entered()) {
					i := slices.IndexFunc(steps, func(s step[*world]) bool { return s.name == name })
					if err := errors.Join(w.leave(ctx, name), steps[i].undo(w, ctx)); err != nil {
						return err
					}
				}
				return nil
			},
		},
		"no undo after a failure": {
			climb: func(ctx context.Context, w *world, steps []step[*world]) error {
				for _, s := range steps {
					if err := errors.Join(w.enter(ctx, s.name), s.do(w, ctx)); err != nil {
						return err
					}
				}
				return nil
			},
			unwind: unwind[*world],
		},
	}
	for name, mutant := range mutants {
		t.Run(name, func(t *testing.T) {
			if len(crashEverywhere(t, mutant)) == 0 {
				t.Error("not caught")
			}
		})
	}
}

func TestUnwindStopsAtAFailure(t *testing.T) {
	steps := stepsOf(3, -1)
	w := &world{points: &points{}}
	if err := climb(t.Context(), w, steps); err != nil {
		t.Fatal(err)
	}
	steps[1].undo = func(*world, context.Context) error { return errRefused }
	if err := unwind(t.Context(), w, steps); !errors.Is(err, errRefused) {
		t.Errorf("unwind = %v, want refused", err)
	}
	if want := []string{"s0", "s1"}; !slices.Equal(w.entered(), want) {
		t.Errorf("ledger = %v, want %v: what is below a failure stays", w.entered(), want)
	}
	w.book = append(w.book, "of a newer version")
	if err := unwind(t.Context(), w, steps); !errors.Is(err, errUnknownStep) {
		t.Errorf("unwind of a ledger with a step of another version = %v", err)
	}
}
