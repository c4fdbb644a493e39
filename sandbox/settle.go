// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
)

// verdict says what becomes of an object after a crash.
type verdict string

const (
	keep         verdict = "keep"
	takeBack     verdict = "take back"     // it was never finished: nothing is left of it
	startFails   verdict = "start fails"   // its start was under way, and nothing runs
	startHolds   verdict = "start holds"   // its start was under way, and it runs
	noteEnd      verdict = "note end"      // the executor knows how it ended
	isLost       verdict = "is lost"       // nobody knows how it ended
	resumeStop   verdict = "resume stop"   // go on with what was under way
	resumeRemove verdict = "resume remove" // likewise
	release      verdict = "release"       // it has ended: its process is taken back
)

// absent is what is seen of a container that the executor does not have.
const absent wire.State = "absent"

// containerVerdicts says for every recorded state, and what the executor has, what
// becomes of a container.
var containerVerdicts = map[ContainerState]map[wire.State]verdict{ //nolint:gochecknoglobals // a table
	"":                {absent: takeBack, wire.Creating: takeBack, wire.IsCreated: takeBack, wire.Running: takeBack, wire.Exited: takeBack},
	ContainerCreating: {absent: takeBack, wire.Creating: takeBack, wire.IsCreated: takeBack, wire.Running: takeBack, wire.Exited: takeBack},
	ContainerCreated:  {absent: keep, wire.Creating: release, wire.IsCreated: release, wire.Running: release, wire.Exited: release},
	ContainerStarting: {absent: startFails, wire.Creating: startFails, wire.IsCreated: startFails, wire.Running: startHolds, wire.Exited: noteEnd},
	ContainerRunning:  {absent: isLost, wire.Creating: isLost, wire.IsCreated: isLost, wire.Running: keep, wire.Exited: noteEnd},
	ContainerStopping: {absent: isLost, wire.Creating: isLost, wire.IsCreated: isLost, wire.Running: resumeStop, wire.Exited: noteEnd},
	ContainerExited:   {absent: release, wire.Creating: release, wire.IsCreated: release, wire.Running: release, wire.Exited: release},
	ContainerRemoving: {absent: resumeRemove, wire.Creating: resumeRemove, wire.IsCreated: resumeRemove, wire.Running: resumeRemove, wire.Exited: resumeRemove},
	ContainerFailed:   {absent: takeBack, wire.Creating: takeBack, wire.IsCreated: takeBack, wire.Running: takeBack, wire.Exited: takeBack},
}

// podVerdicts is the same for a pod; whole says whether its namespaces are there.
var podVerdicts = map[PodState]map[bool]verdict{ //nolint:gochecknoglobals // a table
	"":          {true: takeBack, false: takeBack},
	PodCreating: {true: takeBack, false: takeBack},
	PodReady:    {true: keep, false: resumeStop},
	PodStopping: {true: resumeStop, false: resumeStop},
	PodNotReady: {true: resumeStop, false: resumeStop}, // where nothing is left to do it is nothing
	PodRemoving: {true: resumeRemove, false: resumeRemove},
	PodFailed:   {true: takeBack, false: takeBack},
}

// seen is what the executor and the kernel have.
type seen struct {
	pods       map[string]bool
	containers map[string]wire.Container
	execs      []wire.ExecState
}

func (rt *Runtime) observe(ctx context.Context) (*seen, error) {
	o, err := rt.cfg.Executor.Observe(ctx)
	if err != nil {
		return nil, err
	}
	s := &seen{pods: make(map[string]bool), containers: make(map[string]wire.Container), execs: o.Execs}
	for _, id := range o.Pods {
		s.pods[id] = true
	}
	for _, x := range o.PausesEnded {
		s.pods[x.ID] = false // its PID namespace is gone, and with it all that ran there
	}
	for _, c := range o.Containers {
		s.containers[c.ID] = c
	}
	for _, u := range o.Unreadable {
		// It may run; but nobody can log what it writes, stop it in order, or say how it
		// ends. It counts as lost, and is taken back.
		s.containers[u.ID] = wire.Container{ID: u.ID, State: wire.Exited}
	}
	return s, nil
}

// settle brings a pod into a legal state, whatever was under way when it was left.
func (p *pod) settle(ctx context.Context) error {
	s, err := p.rt.observe(ctx)
	if err != nil {
		return err
	}
	return p.settleAs(ctx, s)
}

func (p *pod) settleAs(ctx context.Context, s *seen) error {
	if p.isGone() {
		return nil
	}
	whole, err := p.isWhole(s)
	if err != nil {
		return err
	}
	v, ok := podVerdicts[p.state()][whole]
	if !ok {
		return fmt.Errorf("pod %s: %q is no state of this version of berth", p.id, p.state())
	}
	if v != keep {
		p.rt.cfg.Log.Info("Pod is settled", "pod", p.id, "state", p.state(), "whole", whole, "verdict", v)
	}
	switch v {
	case takeBack:
		if err := p.each(func(c *container) error { return c.removeNow(ctx) }); err != nil {
			return err
		}
		if err := unwind(ctx, p, p.rt.podSteps); err != nil {
			return err
		}
		p.forget()
	case resumeStop:
		return p.stopAll(ctx)
	case resumeRemove:
		return p.finishRemove(ctx)
	}
	return nil
}

// isWhole says whether the pod has all that its containers need.
func (p *pod) isWhole(s *seen) (bool, error) {
	if !s.pods[string(p.id)] {
		return false, nil
	}
	cfg, err := p.configOf()
	if err != nil || cfg == nil || !spec.PodNamespaces(cfg).Net {
		return err == nil && cfg != nil, err
	}
	return p.rt.cfg.Namespaces.Pinned(p.id)
}

// settle is the same for a container.
func (c *container) settle(ctx context.Context) error {
	s, err := c.rt.observe(ctx)
	if err != nil {
		return err
	}
	return c.settleAs(ctx, s)
}

func (c *container) settleAs(ctx context.Context, s *seen) error {
	if c.isGone() {
		return nil
	}
	has := s.containers[string(c.id)]
	if has.State == "" {
		has.State = absent
	}
	state := c.state()
	v, ok := containerVerdicts[state][has.State]
	if !ok {
		return fmt.Errorf("container %s: it is %q, in the executor %q, and this version of berth does not know both", c.id, state, has.State)
	}
	if v != keep && v != release {
		c.rt.cfg.Log.Info("Container is settled", "container", c.id, "state", state, "executor", has.State, "verdict", v)
	}
	switch v {
	case takeBack:
		if err := unwind(ctx, c, c.rt.containerSteps); err != nil {
			return err
		}
		c.forget()
	case release:
		c.noteEnd()
		return unwindTo(ctx, c, c.rt.containerSteps, stepRootfs)
	case startFails:
		why := errors.New("berth ended while it was starting the container")
		if err := unwindTo(ctx, c, c.rt.containerSteps, stepRootfs); err != nil {
			return err
		}
		return c.startFailed(ctx, why)
	case startHolds:
		return c.change(ctx, started, func(r *store.Container, pr *progress) { pr.putStart(r) })
	case noteEnd:
		x := lost(c.id, "the executor has it as ended and does not know how")
		if has.Exit != nil {
			x = *has.Exit
		}
		return c.exited(ctx, x)
	case isLost:
		return c.exited(ctx, lost(c.id, "the executor no longer has it"))
	case resumeStop:
		c.rt.retry(string(c.id), c.finishStop) // nobody waits for its grace
	case resumeRemove:
		c.noteEnd()
		return c.finishRemove(ctx)
	}
	return nil
}

// finishStop goes on with stopping the container, which has the rest of its grace.
func (c *container) finishStop(ctx context.Context) error {
	live, _ := c.live.Get(c.id)
	at := time.Now()
	if pr := progressOf(live); pr != nil && pr.KillAt.Before(at.Add(graceMax)) {
		at = pr.KillAt
	}
	c.shorten(at)
	return c.operate(ctx, "stop", c.stop)
}
