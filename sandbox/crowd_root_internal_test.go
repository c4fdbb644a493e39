// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/store"
)

// grace is what the crowd gives its containers: a SIGTERM that comes before the program
// has asked for it is lost on the first process of a PID namespace.
const grace = 300 * time.Millisecond

// crowd is kubelets that all want something of one berth, which dies in the middle.
type crowd struct {
	n      *realNode
	calls  atomic.Int64 // answered
	dieAt  int64        // the number of the call after whose answer berth dies; 0: never
	deaths atomic.Int64

	mu   sync.Mutex
	life *realLife
	next chan struct{} // closed and made anew with each life
}

// now returns the process that lives, and what is closed when there is a next one.
func (c *crowd) now() (*realLife, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.life, c.next
}

// call calls berth until it answers. An error of one that has died is no answer; a kubelet
// asks the next one then.
func (c *crowd) call(fn func(context.Context, *Runtime) error) error {
	for {
		l, next := c.now()
		err := fn(l.gone, l.rt)
		if c.calls.Add(1) == c.dieAt {
			c.deaths.Add(1)
			l.kill()
			go c.renew() // the others wait for it, and so do we
		}
		if err == nil || l.gone.Err() == nil {
			return err
		}
		select {
		case <-next:
		case <-c.n.tb.Context().Done():
			return c.n.tb.Context().Err()
		}
	}
}

// renew starts the next process. A kubelet's calls come in when it has recovered.
func (c *crowd) renew() {
	l := c.n.boot()
	if err := l.rt.Recover(c.n.tb.Context()); err != nil {
		c.n.tb.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life = l
	close(c.next)
	c.next = make(chan struct{})
}

// lifecycle is the life of a pod with two containers, told by one kubelet.
func (c *crowd) lifecycle(pod *cri.PodSandboxConfig, boxes []*cri.ContainerConfig) error {
	var id store.PodID
	err := c.call(func(ctx context.Context, rt *Runtime) (err error) { id, err = rt.RunPod(ctx, pod, ""); return err })
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	var wg sync.WaitGroup
	errs := make([]error, len(boxes))
	for i, box := range boxes {
		wg.Go(func() { errs[i] = c.container(id, box) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := c.call(func(ctx context.Context, rt *Runtime) error { return rt.StopPod(ctx, string(id)) }); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	if err := c.call(func(ctx context.Context, rt *Runtime) error { return rt.RemovePod(ctx, string(id)) }); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return nil
}

// container is the life of one container. If berth died while it was starting it, it has
// not started, and a kubelet makes another one, as its next attempt.
func (c *crowd) container(pod store.PodID, box *cri.ContainerConfig) error {
	for ; ; box.Metadata.Attempt++ {
		deaths := c.deaths.Load()
		var id string
		err := c.call(func(ctx context.Context, rt *Runtime) error {
			made, err := rt.CreateContainer(ctx, string(pod), box)
			id = string(made)
			return err
		})
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		start := c.call(func(ctx context.Context, rt *Runtime) error { return rt.StartContainer(ctx, id) })
		if start != nil && (!errors.Is(start, ErrState) || c.deaths.Load() == deaths) {
			return fmt.Errorf("start: %w", start)
		}
		var status *cri.ContainerStatus
		err = c.call(func(ctx context.Context, rt *Runtime) (err error) { status, err = rt.ContainerStatus(id); return err })
		if err != nil {
			return fmt.Errorf("status: %w", err)
		}
		state := cri.ContainerState_CONTAINER_RUNNING
		if start != nil {
			state = cri.ContainerState_CONTAINER_EXITED
		}
		if status.State != state {
			return fmt.Errorf("after a start (%w) it is %v", start, status)
		}
		if err := c.call(func(ctx context.Context, rt *Runtime) error { return rt.StopContainer(ctx, id, grace) }); err != nil {
			return fmt.Errorf("stop: %w", err)
		}
		err = c.call(func(ctx context.Context, rt *Runtime) (err error) { status, err = rt.ContainerStatus(id); return err })
		if err != nil || status.State != cri.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("after its stop it is %v, %w", status, err)
		}
		if err := c.call(func(ctx context.Context, rt *Runtime) error { return rt.RemoveContainer(ctx, id) }); err != nil {
			return fmt.Errorf("remove: %w", err)
		}
		if start == nil {
			return nil
		}
	}
}

// TestRealCrowd runs 20 pods of two containers each at the same time, without a death and
// with one after a quarter, a half and three quarters of all calls.
func TestRealCrowd(t *testing.T) {
	const pods, boxes, perBox = 20, 2, 6
	const total = pods * (3 + boxes*perBox)
	for _, dieAt := range []int64{0, total / 4, total / 2, 3 * total / 4} {
		t.Run(fmt.Sprintf("death-after-%d", dieAt), func(t *testing.T) {
			n := newRealNode(t)
			c := &crowd{n: n, dieAt: dieAt, life: n.boot(), next: make(chan struct{})}
			c.life.ready()
			var wg sync.WaitGroup
			for i := range pods {
				// Every fourth has a PID namespace that is shared, every fifth is on the host's
				// network. The former not beside a death: a create that recovery kills half-way may
				// leave a zombie in the executor, without whose end a pause process does not end.
				cfg := n.pod(fmt.Sprintf("pod%d", i))
				if i%4 == 0 && dieAt == 0 {
					sharedPID(cfg)
				}
				if i%5 == 0 {
					onHostNetwork(cfg)
				}
				var list []*cri.ContainerConfig
				for b := range boxes {
					list = append(list, n.box(cfg, fmt.Sprintf("box%d", b), "sleep", "0", "up"))
				}
				wg.Go(func() {
					if err := c.lifecycle(cfg, list); err != nil {
						t.Errorf("pod %d: %v", i, err)
					}
				})
			}
			wg.Wait()
			if died := c.deaths.Load() > 0; died != (dieAt > 0) {
				t.Errorf("berth died: %v", died)
			}
			l, _ := c.now()
			l.nothingLeft()
			l.end()
		})
	}
}
