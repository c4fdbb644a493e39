// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import "context"

// KillByFreezing is Kill as it is on v2 kernels before 5.14, which have no cgroup.kill.
func (g Group) KillByFreezing(ctx context.Context) error { return g.killRounds(ctx, g.killFrozenV2) }
