// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/oci/wire"
)

// update changes the container's resources: in the kernel if it runs, and in what is
// remembered, by which it starts.
func (c *container) update(ctx context.Context, want *cri.LinuxContainerResources) error {
	state := c.state()
	switch state {
	case ContainerCreated, ContainerRunning:
	default:
		return fmt.Errorf("container %s is %s: %w", c.id, cmp.Or(state, "gone"), ErrState)
	}
	changes, err := spec.Resources(want, c.rt.cfg.Features)
	if err != nil {
		return err
	}
	live, ok := c.live.Get(c.id)
	if !ok {
		return fmt.Errorf("container %s: %w", c.id, ErrNotFound)
	}
	cfg := new(cri.ContainerConfig)
	if err := proto.Unmarshal(live.Config, cfg); err != nil {
		return fmt.Errorf("container %s: configuration: %w", c.id, err)
	}
	if cfg.Linux == nil {
		cfg.Linux = new(cri.LinuxContainerConfig)
	}
	if cfg.Linux.Resources == nil {
		cfg.Linux.Resources = new(cri.LinuxContainerResources)
	}
	mergeResources(cfg.Linux.Resources, want)
	if _, err := spec.Resources(cfg.Linux.Resources, c.rt.cfg.Features); err != nil {
		return err // else nothing could be started or run in it any more
	}
	next := live
	if next.Config, err = proto.Marshal(cfg); err != nil {
		return err
	}
	if err := c.rt.point("update"); err != nil {
		return err
	}
	if state == ContainerRunning {
		if err := c.rt.cfg.Streams.Update(ctx, wire.Update{ID: string(c.id), Resources: changes}); err != nil {
			return err
		}
	}
	if err := c.rt.point("updated"); err != nil {
		return err
	}
	return c.live.Put(ctx, c.id, next)
}

// mergeResources puts what is wanted over what there is. Zero leaves it, as in the
// kernel; a list or a map that is given is the whole of it.
func mergeResources(have, want *cri.LinuxContainerResources) {
	if len(want.GetHugepageLimits()) > 0 {
		have.HugepageLimits = nil
	}
	if len(want.GetUnified()) > 0 {
		have.Unified = nil
	}
	proto.Merge(have, want)
}
