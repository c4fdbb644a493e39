// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"time"
)

// KillByFreezing is Kill as it is on v2 kernels before 5.14, which have no cgroup.kill.
func (g Group) KillByFreezing(ctx context.Context) error { return g.killRounds(ctx, g.killFrozenV2) }

// EmptyByEvents is Empty without the looks in between: only an event can end it.
func (g Group) EmptyByEvents(ctx context.Context) error {
	never := looks{time.Hour, time.Hour}
	if g.version == V2 {
		return waitEvents(ctx, never, g.members[0].path, "populated", false)
	}
	return waitMembers(ctx, never, g.dirs()[0])
}
