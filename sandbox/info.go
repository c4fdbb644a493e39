// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/store"
)

// Info is what verbose statuses tell. Its keys are those that people's templates for
// crictl and agents read from the other runtimes.
type Info struct {
	SandboxID   string      `json:"sandboxID,omitempty"` // of a container
	PID         int         `json:"pid"`
	SnapshotKey string      `json:"snapshotKey,omitempty"`
	RuntimeSpec *specs.Spec `json:"runtimeSpec,omitempty"`
	Config      any         `json:"config,omitempty"`

	State string `json:"state"` // ours, which is finer than the CRI's
	Steps []Step `json:"steps,omitempty"`
}

// Step is one step of the ledger, for a person.
type Step struct {
	Name  string        `json:"name"`
	At    time.Time     `json:"at"`
	Took  time.Duration `json:"took,omitempty"`
	State string        `json:"state"` // "entered", "left"
}

// ContainerInfo returns what a verbose status of a container tells.
func (rt *Runtime) ContainerInfo(ctx context.Context, id string) (*Info, error) {
	c, r, err := rt.containerRecord(id)
	if err != nil {
		return nil, err
	}
	live, _ := c.live.Get(c.id)
	info := &Info{SandboxID: string(r.PodID), SnapshotKey: string(r.ID), State: r.State, Steps: ledgerOf(live)}
	if pr := progressOf(live); pr != nil && ContainerState(r.State).runs() {
		info.PID = pr.PID
	}
	pl, err := c.planned()
	if err != nil {
		return info, nil //nolint:nilerr // of before a reboot: there is no configuration any more
	}
	info.Config = pl.config
	if info.RuntimeSpec, err = rt.specOf(ctx, c, pl, false); err != nil {
		info.RuntimeSpec = nil // a device or a file is no longer there; the rest is still true
	}
	return info, nil
}

// PodInfo is the same for a pod.
func (rt *Runtime) PodInfo(id string) (*Info, error) {
	p, r, err := rt.podRecord(id)
	if err != nil {
		return nil, err
	}
	live, _ := p.live.Get(p.id)
	info := &Info{State: r.State, Steps: ledgerOf(live)}
	var cfg *cri.PodSandboxConfig
	if cfg, err = p.configOf(); err == nil && cfg != nil {
		info.Config = cfg
	}
	return info, nil
}

func ledgerOf(l store.Live) (list []Step) {
	for _, s := range l.Steps {
		st := Step{Name: s.Name, At: s.EnteredAt, State: "entered"}
		if !s.Open() {
			st.State, st.Took = "left", s.LeftAt.Sub(s.EnteredAt)
		}
		list = append(list, st)
	}
	return list
}
