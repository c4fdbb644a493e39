// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
)

// Reasons of a container's end, which kubelets and people read (CRI,
// ContainerStatus.reason).
const (
	ReasonCompleted    = "Completed"
	ReasonError        = "Error"
	ReasonOOMKilled    = "OOMKilled"
	ReasonStartError   = "StartError"   // exit code 128
	ReasonExecutorLost = "ExecutorLost" // exit code 255: nobody knows how it ended
	ReasonRebooted     = "NodeRebooted" // exit code 255, likewise
)

// exitLost is the exit code where none is known.
const exitLost = 255

// lost is the exit of a container of which nobody knows more.
func lost(id store.ContainerID, why string) wire.Exit {
	return wire.Exit{ID: string(id), Code: exitLost, At: time.Now(), Lost: true, Reason: why}
}

// watch takes note of every exit that the executor tells of, until ctx ends.
func (rt *Runtime) watch(ctx context.Context) {
	for wait := time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
		err := rt.cfg.Exits.Events(ctx, func(x wire.Exit) error {
			wait = time.Millisecond
			rt.noteExit(ctx, x)
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		rt.cfg.Log.Error(err, "Executor does not tell of exits; asked again", "in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// noteExit records an exit. What follows from it is not waited for.
func (rt *Runtime) noteExit(ctx context.Context, x wire.Exit) {
	if x.Exec != "" {
		rt.noteExecExit(x)
		return
	}
	c := rt.containerAt(store.ContainerID(x.ID))
	if c == nil {
		return // recovery deletes what the store does not name
	}
	record := func(ctx context.Context) error { return c.exited(ctx, x) }
	if err := guard(ctx, record); err != nil {
		rt.cfg.Log.Error(err, "Exit is not recorded yet", "container", c.id)
		rt.retry(string(c.id), record)
	}
}

// exited records how the container ended, once.
func (c *container) exited(ctx context.Context, x wire.Exit) error {
	first, err := c.recordExit(ctx, x)
	if err != nil {
		return err
	}
	if first {
		c.noteEnd()
		c.rt.cfg.Log.V(1).Info("Container has ended", "container", c.id, "pod", c.pod.id, "code", x.Code, "oom", x.OOMKilled)
		c.rt.feed.container(c, EventStopped)
	}
	c.rt.background(func(ctx context.Context) { c.tidy(ctx) })
	return nil
}

func (c *container) recordExit(ctx context.Context, x wire.Exit) (first bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state() {
	case ContainerStarting, ContainerRunning, ContainerStopping:
	default:
		return false, nil // told before, or its start has failed
	}
	return true, c.changeLocked(ctx, exited, func(r *store.Container, pr *progress) {
		pr.putStart(r) // its end may be told before its start has returned
		putExit(r, x)
	})
}

// putExit puts an exit into a record.
func putExit(r *store.Container, x wire.Exit) {
	r.FinishedAt, r.ExitCode, r.Message = x.At.UTC().Round(0), int32(x.Code), ""
	switch {
	case x.Lost:
		r.Reason, r.Message = ReasonExecutorLost, "it is not known how the container ended: "+x.Reason
	case x.OOMKilled:
		r.Reason = ReasonOOMKilled
	case x.Code == 0:
		r.Reason = ReasonCompleted
	default:
		r.Reason = ReasonError
	}
	if r.FinishedAt.Before(r.StartedAt) {
		r.FinishedAt = r.StartedAt // the clock was set back
	}
}

// tidy lets the executor forget a container that has ended.
func (c *container) tidy(ctx context.Context) {
	err := c.operate(ctx, "tidy", c.release)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrClosed) {
		c.rt.cfg.Log.Error(err, "Container that has ended is not cleaned up yet", "container", c.id)
		c.again("tidy", c.release)
	}
}

// release takes the process back, where the container has ended.
func (c *container) release(ctx context.Context) error {
	if c.isGone() || c.state() != ContainerExited {
		return nil
	}
	if err := unwindTo(ctx, c, c.rt.containerSteps, stepRootfs); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}
