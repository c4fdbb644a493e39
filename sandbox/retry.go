// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"time"
)

const (
	retryFirst = time.Second
	retryMost  = time.Minute
)

// retry does again, after a while and less and less often, what could not be taken
// back: a cgroup that will not empty, a plugin that fails. There is one for an object.
func (rt *Runtime) retry(id string, fn func(context.Context) error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.closed || rt.retried[id] {
		return
	}
	rt.retried[id] = true
	rt.work.Add(1)
	go func() {
		defer rt.work.Done()
		for wait := retryFirst; ; wait = min(2*wait, retryMost) {
			select {
			case <-time.After(wait):
			case <-rt.ctx.Done():
				return
			}
			// While this runs, a failure of fn must not start another.
			err := guard(rt.ctx, fn)
			if err == nil {
				break
			}
			rt.cfg.Log.V(1).Info("Left to be cleaned up", "id", id, "error", err, "again", min(2*wait, retryMost))
		}
		rt.mu.Lock()
		delete(rt.retried, id)
		rt.mu.Unlock()
	}()
}
