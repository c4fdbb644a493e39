// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/wire"
)

// update changes a container's resources, all of them or none: libcontainer sets
// the old ones again where one of the new is refused.
func (x *Executor) update(ctx context.Context, req *wire.Update) error {
	if req.Resources == nil {
		return invalid("container %s: no resources", req.ID)
	}
	c, err := x.find(ctx, req.ID)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if !x.isKnown(c) {
		return notFound("container", c.id) // deleted meanwhile, and another may have its id
	}
	c.mu.Lock()
	state, rec := c.state, c.rec
	c.mu.Unlock()
	if state != wire.Running && state != wire.IsCreated {
		return badState(c.id, state, "its resources are gone")
	}
	converted, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: c.id, UseSystemdCgroup: rec.Systemd,
		Spec: &specs.Spec{Linux: &specs.Linux{CgroupsPath: rec.CgroupArg, Resources: req.Resources}},
	}, nil)
	if err != nil {
		return invalid("container %s: resources: %v", c.id, err)
	}
	lc, err := libcontainer.Load(x.files.libcontainer(), c.id)
	if err != nil {
		return fmt.Errorf("libcontainer: %w", err)
	}
	config := lc.Config()
	resources := *converted.Resources
	resources.Devices = config.Cgroups.Resources.Devices
	resources.SkipDevices = true // which devices are allowed does not change in a container's life
	group := *config.Cgroups
	group.Resources = &resources
	config.Cgroups = &group
	return lc.Set(config)
}

// stats reads what containers use. One that has gone in the meantime is left out.
func (x *Executor) stats(ctx context.Context, t *wire.Targets) (wire.StatsReply, error) {
	var list []*container
	if len(t.IDs) == 0 {
		list = x.all()
	}
	for _, id := range t.IDs {
		c, err := x.find(ctx, id)
		if errors.Is(err, &wire.Error{Code: wire.NotFound}) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	reply := make(wire.StatsReply, len(list))
	for _, c := range list {
		group, err := c.group()
		if err != nil {
			return nil, err
		}
		s, err := group.Stats()
		if errors.Is(err, cgroup.ErrGone) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.id, err)
		}
		if reply[c.id], err = json.Marshal(s); err != nil {
			return nil, err
		}
	}
	return reply, nil
}

// reopenLog makes a container's log go on in a new file, after the kubelet has
// renamed the old one.
func (x *Executor) reopenLog(ctx context.Context, id string) error {
	c, err := x.find(ctx, id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	path, state := c.rec.LogPath, c.state
	c.mu.Unlock()
	if path == "" {
		return invalid("container %s has no log", id)
	}
	if state != wire.Running && state != wire.IsCreated {
		return badState(id, state, "its log is closed")
	}
	return c.tail.reopen(path, func(log int) error { return x.hold(c, log) })
}
