// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
)

// RemoveContainer ends a container if it runs, and forgets it with all that was made
// for it. One that is not there is no error.
func (rt *Runtime) RemoveContainer(ctx context.Context, id string) error {
	c, err := rt.findContainer(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.removeNow(ctx)
}

// removeNow removes a container in whatever state it is.
func (c *container) removeNow(ctx context.Context) error {
	for !c.isGone() {
		if err := c.stopWithin(ctx, 0); err != nil {
			return err
		}
		err := c.operate(ctx, "remove", c.remove)
		if !errors.Is(err, ErrState) || c.state() != ContainerRunning {
			return err
		}
		// Somebody started it after we had stopped it.
	}
	return nil
}

// remove removes a container that has no process.
func (c *container) remove(ctx context.Context) error {
	if c.isGone() {
		return nil
	}
	if c.state() != "" { // else its creation has not come to its record, and now never will
		if err := c.change(ctx, remove, nil); err != nil {
			return err
		}
	}
	return c.finishRemove(ctx)
}

// finishRemove is what is left to do for a container that is being removed.
func (c *container) finishRemove(ctx context.Context) error {
	if err := unwind(ctx, c, c.rt.containerSteps); err != nil {
		c.rt.retry(string(c.id), c.removeNow)
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	c.forget()
	c.rt.cfg.Log.V(1).Info("Container is removed", "container", c.id, "pod", c.pod.id)
	c.rt.feed.container(c, EventDeleted)
	return nil
}

// RemovePod stops a pod if need be, removes its containers, and forgets it. One that
// is not there is no error.
func (rt *Runtime) RemovePod(ctx context.Context, id string) error {
	p, err := rt.findPod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.operate(ctx, "remove", func(ctx context.Context) error {
		if err := p.stopAll(ctx); err != nil {
			return err
		}
		return p.removeAll(ctx)
	})
}

// removeAll removes a pod that is stopped.
func (p *pod) removeAll(ctx context.Context) error {
	if p.isGone() {
		return nil
	}
	if err := p.change(ctx, remove, nil); err != nil {
		return err
	}
	return p.finishRemove(ctx)
}

// finishRemove is what is left to do for a pod that is being removed.
func (p *pod) finishRemove(ctx context.Context) error {
	if err := p.each(func(c *container) error { return c.removeNow(ctx) }); err != nil {
		return err
	}
	if err := unwind(ctx, p, p.rt.podSteps); err != nil {
		p.rt.retry(string(p.id), func(ctx context.Context) error { return p.rt.RemovePod(ctx, string(p.id)) })
		return fmt.Errorf("pod %s: %w", p.id, err)
	}
	p.forget()
	p.rt.cfg.Log.V(1).Info("Pod is removed", "pod", p.id, "namespace", p.name.namespace, "name", p.name.name)
	p.rt.feed.pod(p, EventDeleted)
	return nil
}
