// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
)

const (
	// graceMax is as long as a container may take to end; longer ones are cut to it.
	graceMax = 30 * 24 * time.Hour
	// killLimit is how long we wait for a container that was killed.
	killLimit = 30 * time.Second
)

// StopContainer asks a container to end, and kills it after grace, which is cut to
// what makes sense. Another call that gives it less time shortens the first. One that
// is not there, or has no process, is no error.
func (rt *Runtime) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := rt.findContainer(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.stopWithin(ctx, grace)
}

func (c *container) stopWithin(ctx context.Context, grace time.Duration) error {
	c.shorten(time.Now().Add(min(max(grace, 0), graceMax)))
	return c.operate(ctx, "stop", c.stop)
}

// shorten brings the time at which the container is killed nearer.
func (c *container) shorten(at time.Time) {
	stopping := c.state() == ContainerStopping
	c.mu.Lock()
	defer c.mu.Unlock()
	// One that is over is of a stop that was given up before its turn came.
	if over := !stopping && c.killAt.Before(time.Now()); !c.killAt.IsZero() && !over && !at.Before(c.killAt) {
		return
	}
	c.killAt = at
	close(c.shortens)
	c.shortens = make(chan struct{})
}

// deadline returns when the container is to be killed, and what is closed when that changes.
func (c *container) deadline() (time.Time, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.killAt, c.shortens
}

// stop ends the container's process.
func (c *container) stop(ctx context.Context) error {
	defer func() {
		c.mu.Lock()
		c.killAt = time.Time{} // the next one to ask is the first
		c.mu.Unlock()
	}()
	if !c.state().runs() {
		return nil
	}
	at, _ := c.deadline()
	err := c.change(ctx, stop, func(_ *store.Container, pr *progress) { pr.KillAt = at })
	if errors.Is(err, ErrState) { // it ended by itself
		return nil
	}
	if err != nil {
		return err
	}
	if time.Until(at) > 0 {
		if err := c.signal(ctx); err != nil {
			c.rt.cfg.Log.Error(err, "Container cannot be asked to stop; it will be killed", "container", c.id)
		}
		if ended, err := c.waitUntilKill(); ended || err != nil {
			return err
		}
	}
	return c.kill(ctx)
}

// waitUntilKill waits for the end of the container or of its grace, and says whether it
// ended. The end of berth is not the end of the grace: the next one goes on with it.
func (c *container) waitUntilKill() (ended bool, err error) {
	for {
		at, shortens := c.deadline()
		timer := time.NewTimer(time.Until(at))
		select {
		case <-c.ended:
			timer.Stop()
			return true, nil
		case <-timer.C:
			return false, nil
		case <-shortens:
			timer.Stop()
		case <-c.rt.ctx.Done():
			timer.Stop()
			return false, ErrClosed
		}
	}
}

// kill ends all processes of the container and waits until its end is recorded.
func (c *container) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, killLimit, fmt.Errorf("%w: killed, and not gone after %v", ErrTimeout, killLimit))
	defer cancel()
	err := c.rt.cfg.Executor.KillAll(ctx, string(c.id))
	if errors.Is(err, &wire.Error{Code: wire.NotFound}) {
		// It runs, as we have it, and the executor has nothing: nobody will tell us more.
		return c.exited(ctx, lost(c.id, "the executor does not know it"))
	}
	if err != nil {
		return fmt.Errorf("container %s: kill: %w", c.id, err)
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s: %w", c.id, context.Cause(ctx))
	}
}

// signal sends the stop signal.
func (c *container) signal(ctx context.Context) error {
	r, err := c.record()
	if err != nil {
		return err
	}
	sig, err := stopSignal(r.StopSignal)
	if err != nil {
		return err
	}
	err = c.rt.cfg.Executor.Signal(ctx, string(c.id), sig)
	if errors.Is(err, &wire.Error{Code: wire.NotFound}) || errors.Is(err, &wire.Error{Code: wire.BadState}) {
		return nil // it has ended; that is on its way to us
	}
	return err
}

// stopSignal is the signal of a record.
func stopSignal(name string) (unix.Signal, error) {
	return spec.StopSignal(cri.Signal_SIGNAL_RUNTIME_DEFAULT, name)
}

// stopSignalName is how a signal stands in a record.
func stopSignalName(s syscall.Signal) string { return fmt.Sprint(int(s)) }

// StopPod ends all that runs in a pod and gives back its network. One that is not
// there, or has been stopped, is no error.
func (rt *Runtime) StopPod(ctx context.Context, id string) error {
	p, err := rt.findPod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.operate(ctx, "stop", p.stopAll)
}

// stopAll stops the pod: afterwards only its record is left, and its containers'.
func (p *pod) stopAll(ctx context.Context) error {
	switch s := p.state(); s {
	case "", PodRemoving:
		return nil
	case PodNotReady:
		if steps := p.entered(); len(steps) <= 1 {
			return nil
		}
	}
	if err := p.change(ctx, stop, nil); err != nil {
		return err
	}
	return p.finishStop(ctx)
}

// finishStop is what is left to do for a pod that is being stopped.
func (p *pod) finishStop(ctx context.Context) error {
	err := p.each(func(c *container) error {
		if err := c.stopWithin(ctx, 0); err != nil {
			return err
		}
		return c.operate(ctx, "tidy", c.release) // it needs what the pod has
	})
	if err != nil {
		return err
	}
	if err := unwindTo(ctx, p, p.rt.podSteps, stepRecord); err != nil {
		p.again("stop", p.stopAll)
		return fmt.Errorf("pod %s: %w", p.id, err)
	}
	err = p.change(ctx, stopped, func(r *store.Pod) {
		r.EndedAt = time.Now().UTC().Round(0)
		r.Network.Namespace = ""
	})
	if err != nil {
		return err
	}
	p.rt.cfg.Log.V(1).Info("Pod is stopped", "pod", p.id, "namespace", p.name.namespace, "name", p.name.name)
	p.rt.feed.pod(p, EventStopped)
	return nil
}

// each does something to all containers of the pod at once and returns the errors.
func (p *pod) each(fn func(*container) error) error {
	list := p.containersOf()
	if len(list) == 1 {
		return fn(list[0])
	}
	errs := make(chan error, len(list))
	for _, c := range list {
		go func() { errs <- guard(context.Background(), func(context.Context) error { return fn(c) }) }()
	}
	var all []error
	for range list {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}
