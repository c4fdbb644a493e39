// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errResult says that a call answered, but not with what it should.
var errResult = errors.New("unexpected answer")

// timer calls a function and keeps under a name how long it took, if it did not fail.
type timer func(name string, call func() error) error

// untimed is a timer that keeps nothing.
func untimed(name string, call func() error) error {
	if err := call(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// session is a round of some phases on one endpoint.
type session struct {
	*endpoint
	cfg  *config
	run  string // names the run, in labels and uids
	logs string // folder, absolute
	next *atomic.Int64

	standing []*pod // idle pods, for the phases that need them
	idle     usage  // before these were made
}

// sheet collects the samples of one phase. Safe for concurrent use.
type sheet struct {
	mu      sync.Mutex
	order   []string
	samples map[string][]float64 // +checklocks:mu
	units   map[string]unit      // +checklocks:mu
}

func newSheet() *sheet {
	return &sheet{samples: make(map[string][]float64), units: make(map[string]unit)}
}

func (t *sheet) add(name string, u unit, value float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.units[name]; !known {
		t.order = append(t.order, name)
		t.units[name] = u
	}
	t.samples[name] = append(t.samples[name], value)
}

func (t *sheet) addTime(name string, took time.Duration) {
	t.add(name, milliseconds, took.Seconds()*1e3)
}

// timed is a timer that keeps samples.
func (t *sheet) timed(name string, call func() error) error {
	began := time.Now()
	err := call()
	took := time.Since(began)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	t.addTime(name, took)
	return nil
}

// parallel calls do n times, at most width at a time, until one fails; it waits for all.
func parallel(ctx context.Context, n, width int, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		left    atomic.Int64
		workers sync.WaitGroup
	)
	left.Store(int64(n))
	for range min(n, width) {
		workers.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				if err := do(ctx); err != nil {
					cancel(err) // the first cause stays
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// lives measures whole lives of pods.
func lives(n network, width int) func(context.Context, *session, *sheet) error {
	return func(ctx context.Context, s *session, t *sheet) error {
		began := time.Now()
		if err := parallel(ctx, s.cfg.lives, width, func(ctx context.Context) error { return s.life(ctx, n, t) }); err != nil {
			return err
		}
		t.add("pods per second", perSecond, float64(s.cfg.lives)/time.Since(began).Seconds())
		return nil
	}
}

// life is one pod's life.
func (s *session) life(ctx context.Context, n network, t *sheet) error {
	var whole time.Duration // without what is no call
	timed := func(name string, call func() error) error {
		return t.timed(name, func() error {
			began := time.Now()
			err := call()
			whole += time.Since(began)
			return err
		})
	}
	p, err := s.runPod(ctx, n, timed)
	if err != nil {
		return err
	}
	if err := s.startContainer(ctx, p, obeys(), timed); err != nil {
		return err
	}
	if err := timed("ExecSync true", func() error { return s.exec(ctx, p, "true") }); err != nil {
		return err
	}
	// A SIGTERM that comes before the trap is set would be lost.
	if err := s.ready(ctx, p); err != nil {
		return err
	}
	if err := timed("StopContainer", func() error {
		_, err := s.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container, Timeout: grace})
		return err
	}); err != nil {
		return err
	}
	if err := timed("RemoveContainer", func() error {
		_, err := s.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container})
		return err
	}); err != nil {
		return err
	}
	if err := s.removePod(ctx, p, timed); err != nil {
		return err
	}
	t.addTime("whole pod life", whole)
	return nil
}

// execs measures ExecSync in one container.
func execs(ctx context.Context, s *session, t *sheet) error {
	p, err := s.runPod(ctx, hostNetwork, untimed)
	if err != nil {
		return err
	}
	if err := s.startContainer(ctx, p, obeys(), untimed); err != nil {
		return err
	}
	if err := s.ready(ctx, p); err != nil {
		return err
	}
	before, err := s.usage(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := parallel(ctx, s.cfg.execs, 8, func(ctx context.Context) error {
		return t.timed("ExecSync true", func() error { return s.exec(ctx, p, "true") })
	}); err != nil {
		return err
	}
	t.add("execs per second", perSecond, float64(s.cfg.execs)/time.Since(began).Seconds())
	after, err := s.usage(ctx)
	if err != nil {
		return err
	}
	t.add("CPU per exec", cpuMillis, (after.cpu-before.cpu).Seconds()*1e3/float64(s.cfg.execs))
	return s.removePod(ctx, p, untimed)
}
