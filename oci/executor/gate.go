// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/berth-cri/berth/oci/wire"
)

const (
	// perPod and perNode are how many execs may be on their way to their program at a
	// time. That takes milliseconds, but for one whose working directory is on a dead
	// mount: it keeps threads in an uninterruptible sleep until the mount is back.
	perPod, perNode = 4, 64

	// gateTime is how long one more waits for another to come to its program.
	gateTime = 5 * time.Second
)

// gate bounds the execs that are being started, so that those of one pod which do
// not come to their end cost neither the others nor the node's threads.
type gate struct {
	mu sync.Mutex
	// by pod
	under map[string][]*passage // +checklocks:mu
	// all of them
	n int // +checklocks:mu
	// closed and renewed when one leaves
	left chan struct{} // +checklocks:mu
}

// passage is one exec on its way.
type passage struct {
	pod, what string
	since     time.Time
}

func newGate() *gate {
	return &gate{under: make(map[string][]*passage), left: make(chan struct{})}
}

// enter waits until there is room for one more in pod.
func (g *gate) enter(ctx context.Context, pod, what string) (leave func(), err error) {
	late := time.NewTimer(gateTime)
	defer late.Stop()
	for {
		g.mu.Lock()
		if len(g.under[pod]) < perPod && g.n < perNode {
			p := &passage{pod: pod, what: what, since: time.Now()}
			g.under[pod] = append(g.under[pod], p)
			g.n++
			g.mu.Unlock()
			return func() { g.leave(p) }, nil
		}
		full, left := g.fullLocked(pod), g.left
		g.mu.Unlock()
		select {
		case <-left:
		case <-late.C:
			return nil, &wire.Error{Code: wire.Failed, Message: what + ": " + full}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (g *gate) leave(p *passage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var rest []*passage
	for _, other := range g.under[p.pod] {
		if other != p {
			rest = append(rest, other)
		}
	}
	if g.under[p.pod] = rest; len(rest) == 0 {
		delete(g.under, p.pod)
	}
	g.n--
	close(g.left)
	g.left = make(chan struct{})
}

// fullLocked says who is in the way.
//
// +checklocks:g.mu
func (g *gate) fullLocked(pod string) string {
	list, where := g.under[pod], "in "+pod
	if len(list) < perPod {
		list, where = nil, "on this node"
		for _, of := range g.under {
			list = append(list, of...)
		}
	}
	oldest := list[0]
	for _, p := range list {
		if p.since.Before(oldest.since) {
			oldest = p
		}
	}
	return fmt.Sprintf("refused: %d execs %s have not come to their program yet; the longest, %s, has been on its way for %v",
		len(list), where, oldest.what, time.Since(oldest.since).Round(time.Second))
}
