// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/berth-cri/berth/store"
)

// TestCrashAnywhereFindsMutants plants the mistakes that this design is there to
// prevent, and holds that a crash somewhere shows each of them.
func TestCrashAnywhereFindsMutants(t *testing.T) {
	nothing := func(*pod, context.Context) error { return nil }
	podStep := func(rt *Runtime, name string) *step[*pod] {
		return &rt.podSteps[slices.IndexFunc(rt.podSteps, func(s step[*pod]) bool { return s.name == name })]
	}
	mutants := map[string]func(*Runtime){
		"done before it is entered": func(rt *Runtime) {
			first, second := podStep(rt, stepNamespaces), podStep(rt, stepNetwork)
			do, then := first.do, second.do
			first.do = func(p *pod, ctx context.Context) error { return errors.Join(do(p, ctx), then(p, ctx)) }
			second.do = nothing
		},
		"undone in the order of doing": func(rt *Runtime) {
			first, second := podStep(rt, stepNamespaces), podStep(rt, stepNetwork)
			first.undo, second.undo = second.undo, first.undo
		},
		"left before it is undone": func(rt *Runtime) {
			s := podStep(rt, stepNetwork)
			undo := s.undo
			s.undo = func(p *pod, ctx context.Context) error {
				return errors.Join(p.leave(ctx, stepNetwork), undo(p, ctx))
			}
		},
		"not undone where it was not done": func(rt *Runtime) {
			s := podStep(rt, stepNetwork)
			undo := s.undo
			s.undo = func(p *pod, ctx context.Context) error {
				if r, ok := rt.cfg.Store.Pod(p.id); ok && PodState(r.State) == PodCreating {
					return nil
				}
				return undo(p, ctx)
			}
		},
		"the record goes first": func(rt *Runtime) {
			s := podStep(rt, stepFiles)
			undo := s.undo
			s.undo = func(p *pod, ctx context.Context) error {
				return errors.Join(undo(p, ctx), rt.cfg.Store.DeletePodAsync(p.id), p.live.Delete(ctx, p.id))
			}
		},
		"a process is not taken back": func(rt *Runtime) {
			rt.containerSteps[2].undo = func(*container, context.Context) error { return nil }
		},
		"a container is told of before it is on the disk": func(rt *Runtime) {
			do := rt.containerSteps[0].do
			rt.containerSteps[0].do = func(c *container, ctx context.Context) error {
				err := do(c, ctx)
				r := store.Container{ID: c.id, PodID: c.pod.id, Name: c.name.name, State: string(ContainerCreating)}
				err = errors.Join(err, c.durable.wait(ctx), rt.cfg.Store.DeleteContainer(ctx, c.id), rt.cfg.Store.PutContainerAsync(r))
				c.durable = nil
				return err
			}
		},
	}
	pod := podConfig("mutant", 0)
	for name, plant := range mutants {
		t.Run(name, func(t *testing.T) {
			points, _, faults := trial{pod: pod, plant: plant, deaths: []int{-1}}.run(t)
			for at := 0; at < len(points) && len(faults) == 0; at++ {
				_, _, faults = trial{pod: pod, plant: plant, deaths: []int{at}}.run(t)
			}
			if len(faults) == 0 {
				t.Errorf("no crash at any of %d points shows it", len(points))
			} else {
				t.Logf("shown by: %s", faults[0])
			}
		})
	}
}
