// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
)

// Image is what a container must know of its image.
type Image struct {
	ID     store.ImageID
	Name   string // the first tag, or as it was asked for; shown in statuses
	Ref    string // a repo digest, or the id where there is none
	Config imagespec.ImageConfig
}

// CreateContainer makes a container in a pod that is ready. It has no process before
// it is started. For a request that comes again see RunPod.
func (rt *Runtime) CreateContainer(ctx context.Context, podID string, cfg *cri.ContainerConfig) (store.ContainerID, error) {
	meta := cfg.GetMetadata()
	switch {
	case meta == nil:
		return "", fmt.Errorf("%w: the container has no metadata", ErrInvalid)
	case meta.GetName() == "":
		return "", fmt.Errorf("%w: metadata.name is empty", ErrInvalid)
	case cfg.GetImage().GetImage() == "":
		return "", fmt.Errorf("%w: image is empty", ErrInvalid)
	}
	p, err := rt.findPod(podID)
	if err != nil {
		return "", err
	}
	digest, err := digestOf(cfg)
	if err != nil {
		return "", err
	}
	name := containerName{p.id, meta.GetName(), meta.GetAttempt()}
	for {
		c := rt.claimContainer(p, name, digest, cfg)
		if c.digest != digest {
			if err := c.makeRoom(ctx); err != nil {
				return "", err
			}
			continue
		}
		err := c.operate(ctx, "create", c.create)
		if errors.Is(err, errStale) {
			continue
		}
		if err != nil {
			return "", err
		}
		return c.id, nil
	}
}

// claimContainer returns the container of a name, which is new if there was none.
func (rt *Runtime) claimContainer(p *pod, name containerName, digest content.Digest, cfg *cri.ContainerConfig) *container {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if c := rt.names[name]; c != nil {
		return c
	}
	c := rt.newContainer(store.NewContainerID(), p, name, digest)
	c.plan = &plan{config: proto.CloneOf(cfg)}
	rt.containers[c.id], rt.names[name] = c, c
	return c
}

// makeRoom removes a container that was made with another configuration and never started.
func (c *container) makeRoom(ctx context.Context) error {
	if c.isGone() {
		return nil
	}
	return c.operate(ctx, "make room", func(ctx context.Context) error {
		switch s := c.state(); {
		case c.isGone():
			return nil
		case s == ContainerCreated:
			return c.remove(ctx)
		default:
			return c.existsError(s)
		}
	})
}

func (c *container) existsError(s ContainerState) error {
	return fmt.Errorf("container %s attempt %d of pod %s is %s, %s: %w", c.name.name, c.name.attempt, c.pod.id, c.id, s, ErrExists)
}

// create makes the container, unless that has been done.
func (c *container) create(ctx context.Context) error {
	if c.isGone() {
		return errStale
	}
	switch s := c.state(); s {
	case ContainerCreated:
		return nil
	case "":
	default:
		return c.existsError(s)
	}
	// What can be wrong is found out before anything is made.
	if err := c.prepare(ctx); err != nil {
		c.forget()
		return err
	}
	if err := c.begin(ctx, first{podID: c.pod.id, config: c.plan.configBytes, effective: c.plan.resolvedBytes}); err != nil {
		return c.fell(ctx, withUndo(err, c.leave(ctx, stepRecord)))
	}
	if err := climb(ctx, c, c.rt.containerSteps[:2]); err != nil {
		return c.fell(ctx, err)
	}
	err := c.durable.wait(ctx)
	if err == nil {
		err = c.pod.takesContainers()
	}
	if err == nil {
		err = c.change(ctx, climbed, nil)
	}
	if err != nil {
		return c.fell(ctx, withUndo(err, unwind(ctx, c, c.rt.containerSteps)))
	}
	c.plan, c.durable = nil, nil
	c.rt.cfg.Log.V(1).Info("Container is created", "container", c.id, "pod", c.pod.id, "name", c.name.name)
	c.rt.feed.container(c, EventCreated)
	return nil
}

// takesContainers returns why a pod takes no more containers. It is asked after the
// container is known: so a pod that is being removed either finds it or refuses it.
func (p *pod) takesContainers() error {
	if s := p.state(); s != PodReady {
		return fmt.Errorf("pod %s is %s: %w", p.id, cmp.Or(s, "gone"), ErrState)
	}
	return nil
}

// fell ends a creation that failed; see pod.fell.
func (c *container) fell(ctx context.Context, err error) error {
	if left := (*fallError)(nil); !errors.As(err, &left) {
		c.forget()
		return err
	}
	c.mu.Lock()
	r, ok := c.rt.cfg.Store.Container(c.id)
	if ok && ContainerState(r.State) == ContainerCreating {
		if cerr := c.changeLocked(ctx, fell, func(r *store.Container, _ *progress) {
			r.Reason, r.Message = "CreateFailed", err.Error()
		}); cerr != nil {
			c.rt.cfg.Log.Error(cerr, "State of a container is not written", "container", c.id)
		}
	}
	c.mu.Unlock()
	c.rt.cfg.Log.Error(err, "Container is left to be cleaned up", "container", c.id)
	c.again("settle", c.settle)
	return err
}
