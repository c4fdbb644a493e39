// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
)

// exitStartError is the exit code of a container that could not be started.
const exitStartError = 128

// StartContainer starts a container that was created. Where that fails the container
// has ended with StartError, and is not started again.
func (rt *Runtime) StartContainer(ctx context.Context, id string) error {
	c, err := rt.findContainer(id)
	if err != nil {
		return err
	}
	return c.operate(ctx, "start", c.start)
}

func (c *container) start(ctx context.Context) error {
	if c.isGone() {
		return fmt.Errorf("container %s: %w", c.id, ErrNotFound)
	}
	if c.state() == ContainerRunning {
		return nil // started by a call whose answer was lost
	}
	if err := c.pod.takesContainers(); err != nil {
		return err
	}
	err := c.change(ctx, start, func(_ *store.Container, pr *progress) { pr.BegunAt = time.Now().UTC().Round(0) })
	if err != nil {
		return err
	}
	if err := climbFrom(ctx, c, c.rt.containerSteps, stepRootfs); err != nil {
		return errors.Join(err, c.startFailed(ctx, err))
	}
	err = c.change(ctx, started, func(r *store.Container, pr *progress) {
		pr.PID, pr.Start = c.process.PID, c.process.Start
		pr.putStart(r)
	})
	if errors.Is(err, ErrState) {
		err = nil // it has run, and ended
	}
	if err != nil {
		// It runs and we cannot say so: it is better ended than forgotten.
		err = withUndo(err, unwindTo(ctx, c, c.rt.containerSteps, stepRootfs))
		return errors.Join(err, c.startFailed(ctx, err))
	}
	c.rt.cfg.Log.V(1).Info("Container is started", "container", c.id, "pod", c.pod.id, "name", c.name.name)
	c.rt.feed.container(c, EventStarted)
	return nil
}

// putStart puts the time of a start into a record, unless it has one.
func (pr *progress) putStart(r *store.Container) {
	if !r.StartedAt.IsZero() {
		return
	}
	if r.StartedAt = pr.BegunAt; r.StartedAt.Before(r.CreatedAt) {
		r.StartedAt = r.CreatedAt // the clock was set back
	}
}

// startFailed records that the container could not be started.
func (c *container) startFailed(ctx context.Context, why error) error {
	err := c.change(ctx, exited, func(r *store.Container, _ *progress) {
		r.Reason, r.Message, r.ExitCode = ReasonStartError, why.Error(), exitStartError
		r.FinishedAt = time.Now().UTC().Round(0)
		r.StartedAt = time.Time{} // where the end of what was taken back was told before
	})
	c.noteEnd()
	c.rt.feed.container(c, EventStopped)
	c.rt.background(func(ctx context.Context) { c.tidy(ctx) })
	return err
}

// doProcess makes the container's process and lets it run.
func (c *container) doProcess(ctx context.Context) error {
	req, err := c.request(ctx)
	if err != nil {
		return err
	}
	if c.process, err = c.rt.cfg.Executor.Create(ctx, req); err != nil {
		return err
	}
	return c.rt.cfg.Executor.Start(ctx, string(c.id))
}

// undoProcess ends the process, whatever became of it.
func (c *container) undoProcess(ctx context.Context) error {
	err := c.rt.cfg.Executor.KillAll(ctx, string(c.id))
	if err != nil && !errors.Is(err, &wire.Error{Code: wire.NotFound}) {
		return err
	}
	return c.rt.cfg.Executor.Delete(ctx, string(c.id))
}

// request is what the executor is asked to create.
func (c *container) request(ctx context.Context) (wire.Create, error) {
	pl, err := c.planned()
	if err != nil {
		return wire.Create{}, err
	}
	s, err := c.rt.spec(ctx, c, pl)
	if err != nil {
		return wire.Create{}, err
	}
	rootfs, err := c.rt.cfg.Images.Rootfs(ctx, c.id, pl.ImageID)
	if err != nil {
		return wire.Create{}, err
	}
	req := wire.Create{
		ID: string(c.id), Pod: string(c.pod.id), Spec: s, Rootfs: rootfs,
		Systemd: c.rt.cfg.Driver == cgroup.Systemd, LogMax: c.rt.cfg.LogMax,
		Stdin: pl.config.GetStdin(), StdinOnce: pl.config.GetStdinOnce(), TTY: pl.config.GetTty(),
	}
	if dir, file := pl.pod.GetLogDirectory(), pl.config.GetLogPath(); dir != "" && file != "" {
		req.LogPath = filepath.Join(dir, file)
	}
	return req, nil
}

// cgroupsPath is a location as a runtime spec's cgroupsPath.
func cgroupsPath(d cgroup.Driver, at cgroup.Location, prefix, id string) string {
	if d == cgroup.Systemd {
		return at.Slice() + ":" + prefix + ":" + id
	}
	return at.Path()
}
