// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"k8s.io/klog/v2"
)

// oomBase is the kill counter of what oomKilled will read, before the container
// is made.
func (x *Executor) oomBase(*container) (uint64, error) {
	return 0, nil // a new cgroup's counter
}

// oomKilled says whether the kernel killed in this container's cgroup for want of
// memory. It is read after the process has ended and before the cgroup is
// removed, which only this executor does: no notification can be lost, and none
// can be false (on v1 the eventfd also fires when a cgroup goes).
func (x *Executor) oomKilled(c *container) bool {
	group, err := c.group()
	if err == nil {
		var kills uint64
		kills, err = group.OOMKills()
		if err == nil {
			return kills > c.rec.OOMBase
		}
	}
	klog.ErrorS(err, "out-of-memory kills cannot be read", "container", c.id)
	return false
}
