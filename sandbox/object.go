// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
)

// stepRecord is the first step of every pod and container: that it is known at all.
// Its facts are the object's progress, so that a state that somebody was told of
// survives kill -9 although the record on disk is written a little later.
const stepRecord = "record"

// entry is what pods and containers have in common: an id, the operation that is
// under way, and a ledger.
type entry[K ~string] struct {
	rt   *Runtime
	id   K
	kind string // "pod", "container"; for errors
	live *store.LiveTable[K]
	ops  queue
	// settled brings the object into a legal state, whatever was under way.
	settled func(context.Context) error
	// digest of the configuration, to tell whether a request is the one that this was
	// made for.
	digest content.Digest

	// mu orders changes of the record: an exit comes at any time. It is held over writes
	// to live.db, which is in memory.
	mu sync.Mutex
	// gone says that nothing is left of the object, and its name may be taken again.
	gone bool // +checklocks:mu
}

// first is the live record that entering stepRecord makes.
type first struct {
	podID             store.PodID
	config, effective []byte
}

func (e *entry[K]) enter(ctx context.Context, name string) error {
	if err := e.rt.point("enter " + name); err != nil {
		return err
	}
	live, ok := e.live.Get(e.id)
	if !ok {
		return fmt.Errorf("enter %s: %s has no record: %w", name, e.kind, ErrNotFound)
	}
	if slices.ContainsFunc(live.Steps, func(s store.Step) bool { return s.Name == name && s.Open() }) {
		return nil
	}
	if err := e.live.Enter(ctx, e.id, name, nil); err != nil {
		return err
	}
	return e.rt.point("entered " + name)
}

func (e *entry[K]) leave(ctx context.Context, name string) error {
	if err := e.rt.point("leave " + name); err != nil {
		return err
	}
	if name == stepRecord {
		e.rt.background(e.lastLeave)
		return nil
	}
	if err := e.live.Leave(ctx, e.id, name); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return e.rt.point("left " + name)
}

// lastLeave forgets the ledger once the record is gone from the disk. Until then it
// says that the object is being removed, or was never made: else a death in between
// would bring it back.
func (e *entry[K]) lastLeave(ctx context.Context) {
	err := e.rt.point("flush")
	if err == nil {
		err = e.rt.cfg.Store.Flush(ctx)
	}
	if err == nil {
		err = e.live.Delete(ctx, e.id)
	}
	if err != nil && ctx.Err() == nil {
		e.rt.cfg.Log.Error(err, "Ledger is not forgotten; the next start of berth will", e.kind, e.id)
	}
}

func (e *entry[K]) entered() []string {
	live, _ := e.live.Get(e.id)
	var names []string
	for _, s := range live.Steps {
		if s.Open() {
			names = append(names, s.Name)
		}
	}
	return names
}

// begin enters stepRecord.
func (e *entry[K]) begin(ctx context.Context, f first) error {
	if err := e.rt.point("begin"); err != nil {
		return err
	}
	l := store.Live{PodID: f.podID, Config: f.config, Effective: f.effective, JoinKey: e.digest}
	if err := e.live.Put(ctx, e.id, l, stepRecord); err != nil {
		return err
	}
	return e.rt.point("begun")
}

// progress is the part of a record that changes. It is stored.
type progress struct {
	State string `json:"state"`
	// CreatedAt and Handler are what a pod's record has and its configuration has not.
	CreatedAt  time.Time      `json:"createdAt,omitzero"`
	Handler    string         `json:"handler,omitempty"`
	StartedAt  time.Time      `json:"startedAt,omitzero"`
	FinishedAt time.Time      `json:"finishedAt,omitzero"`
	ExitCode   int32          `json:"exitCode,omitempty"`
	Reason     string         `json:"reason,omitempty"`
	Message    string         `json:"message,omitempty"`
	Network    *store.Network `json:"network,omitempty"`
	// PID and Start name a container's first process; see wire.Created.
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"`
	// BegunAt is when a container's start was begun: that it has started may be known
	// only from its end.
	BegunAt time.Time `json:"begunAt,omitzero"`
	// KillAt is when a container that is being stopped is killed.
	KillAt time.Time `json:"killAt,omitzero"`
}

// progressOf returns what the ledger has; nil where there is nothing.
func progressOf(l store.Live) *progress {
	for _, s := range l.Steps {
		if s.Name == stepRecord && s.Open() && s.Facts != nil {
			p := new(progress)
			if json.Unmarshal(s.Facts, p) == nil {
				return p
			}
		}
	}
	return nil
}

// save writes progress down where it survives kill -9. A message is for a person,
// and is cut before it is too large for a ledger.
func (e *entry[K]) save(ctx context.Context, p progress) error {
	const most = 4 << 10
	if len(p.Message) > most {
		p.Message = p.Message[:most]
	}
	if err := e.rt.point("save " + p.State); err != nil {
		return err
	}
	facts, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := e.live.Done(ctx, e.id, stepRecord, facts); err != nil {
		return err
	}
	return e.rt.point("saved " + p.State)
}

// operate runs an operation on the object; see queue. A panic is a crash at that
// step: the object is then settled, as after one.
func (e *entry[K]) operate(ctx context.Context, kind string, fn func(context.Context) error) error {
	return e.ops.run(ctx, kind, func(ctx context.Context) error {
		if err := e.rt.hold(); err != nil {
			return err
		}
		defer e.rt.work.Done()
		err := guard(ctx, fn)
		if p := (*PanicError)(nil); errors.As(err, &p) {
			e.rt.cfg.Log.Error(err, "Operation panicked", "operation", kind, e.kind, e.id, "stack", string(p.Stack))
			if serr := guard(ctx, e.settled); serr != nil {
				e.rt.cfg.Log.Error(serr, "What had panicked is not settled yet", "operation", kind, e.kind, e.id)
				e.again("settle", e.settled)
			}
		}
		return err
	})
}

// again does an operation after a while, and again until it succeeds; see retry.
func (e *entry[K]) again(kind string, fn func(context.Context) error) {
	e.rt.retry(string(e.id), func(ctx context.Context) error { return e.operate(ctx, kind, fn) })
}

// pod is a pod sandbox.
type pod struct {
	entry[store.PodID]
	name podName

	// While it is being made, by its one operation. Then the records have it all.
	config   *cri.PodSandboxConfig
	handler  string
	durable  *future // the record has been written to the disk
	attached *store.Attachment
}

// container is a container.
type container struct {
	entry[store.ContainerID]
	pod  *pod
	name containerName
	// plan is what the creation works with; nil afterwards.
	plan    *plan
	durable *future
	process wire.Created // of the start under way

	ended   chan struct{} // closed when it has no process any more, or never had one
	endOnce sync.Once
	killAt  time.Time // +checklocks:mu
	// Closed and made anew when killAt comes nearer.
	shortens chan struct{} // +checklocks:mu
}

func (rt *Runtime) newPod(id store.PodID, name podName, digest content.Digest) *pod {
	p := &pod{name: name}
	p.rt, p.id, p.kind, p.live, p.digest = rt, id, "pod", rt.cfg.Store.LivePods(), digest
	p.settled = p.settle
	return p
}

func (rt *Runtime) newContainer(id store.ContainerID, p *pod, name containerName, digest content.Digest) *container {
	c := &container{pod: p, name: name, ended: make(chan struct{}), shortens: make(chan struct{})}
	c.rt, c.id, c.kind, c.live, c.digest = rt, id, "container", rt.cfg.Store.LiveContainers(), digest
	c.settled = c.settle
	return c
}

// record returns what is remembered of the pod.
func (p *pod) record() (store.Pod, error) {
	r, ok := p.rt.cfg.Store.Pod(p.id)
	if !ok {
		return r, fmt.Errorf("pod %s: %w", p.id, ErrNotFound)
	}
	return r, nil
}

func (c *container) record() (store.Container, error) {
	r, ok := c.rt.cfg.Store.Container(c.id)
	if !ok {
		return r, fmt.Errorf("container %s: %w", c.id, ErrNotFound)
	}
	return r, nil
}

// change moves the pod on to the state that follows from what has happened, with
// what edit adds, and returns when that would survive kill -9.
func (p *pod) change(ctx context.Context, e event, edit func(*store.Pod)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, err := p.record()
	if err != nil {
		return err
	}
	next, err := PodState(r.State).next(e)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.id, err)
	}
	r.State = string(next)
	if edit != nil {
		edit(&r)
	}
	return p.put(ctx, r)
}

// put writes a record where it survives kill -9, and later to the disk.
func (p *pod) put(ctx context.Context, r store.Pod) error {
	err := p.save(ctx, progress{
		State: r.State, CreatedAt: r.CreatedAt, Handler: r.Handler,
		FinishedAt: r.EndedAt, Reason: r.Reason, Message: r.Message, Network: &r.Network,
	})
	if err != nil {
		return err
	}
	return p.rt.cfg.Store.PutPodAsync(r)
}

// apply brings a record up to what was written here last.
func (pr *progress) apply(r *store.Pod) {
	r.State, r.CreatedAt, r.Handler = pr.State, pr.CreatedAt, pr.Handler
	r.EndedAt, r.Reason, r.Message = pr.FinishedAt, pr.Reason, pr.Message
	if pr.Network != nil {
		r.Network = *pr.Network
	}
}

// applyContainer is the same for a container.
func (pr *progress) applyContainer(r *store.Container) {
	r.State, r.StartedAt, r.FinishedAt = pr.State, pr.StartedAt, pr.FinishedAt
	r.ExitCode, r.Reason, r.Message = pr.ExitCode, pr.Reason, pr.Message
}

// change is pod.change for a container.
func (c *container) change(ctx context.Context, e event, edit func(*store.Container, *progress)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changeLocked(ctx, e, edit)
}

// changeLocked is change.
//
// +checklocks:c.mu
func (c *container) changeLocked(ctx context.Context, e event, edit func(*store.Container, *progress)) error {
	r, err := c.record()
	if err != nil {
		return err
	}
	next, err := ContainerState(r.State).next(e)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	r.State = string(next)
	live, _ := c.live.Get(c.id)
	pr := progress{}
	if before := progressOf(live); before != nil {
		pr = *before
	}
	if edit != nil {
		edit(&r, &pr)
	}
	pr.State, pr.StartedAt, pr.FinishedAt, pr.ExitCode = r.State, r.StartedAt, r.FinishedAt, r.ExitCode
	pr.Reason, pr.Message = r.Reason, r.Message
	if err := c.save(ctx, pr); err != nil {
		if e != exited {
			return err
		}
		// That it ended is not to be lost because a tmpfs is full: then to the disk.
		c.rt.cfg.Log.Error(err, "The end of a container is written to the disk", "container", c.id)
		return c.rt.cfg.Store.PutContainer(ctx, r)
	}
	return c.rt.cfg.Store.PutContainerAsync(r)
}

// state returns where the container is; "" if it is not there.
func (c *container) state() ContainerState {
	r, _ := c.rt.cfg.Store.Container(c.id)
	return ContainerState(r.State)
}

func (p *pod) state() PodState {
	r, _ := p.rt.cfg.Store.Pod(p.id)
	return PodState(r.State)
}

// forget lets go of a pod of which nothing is left.
func (p *pod) forget() {
	p.mu.Lock()
	p.gone = true
	p.mu.Unlock()
	p.rt.mu.Lock()
	defer p.rt.mu.Unlock()
	delete(p.rt.pods, p.id)
	if p.rt.podNames[p.name] == p {
		delete(p.rt.podNames, p.name)
	}
}

func (c *container) forget() {
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
	c.noteEnd()
	c.rt.mu.Lock()
	defer c.rt.mu.Unlock()
	delete(c.rt.containers, c.id)
	if c.rt.names[c.name] == c {
		delete(c.rt.names, c.name)
	}
}

// isGone says whether nothing is left of it.
func (e *entry[K]) isGone() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.gone
}

// noteEnd tells those who wait that the container has no process.
func (c *container) noteEnd() { c.endOnce.Do(func() { close(c.ended) }) }

// future is a result that is there later.
type future struct {
	done chan struct{}
	err  error // once done is closed
}

func later(fn func() error) *future {
	f := &future{done: make(chan struct{})}
	go func() {
		defer close(f.done)
		f.err = fn()
	}()
	return f
}

// wait returns the result, or why the waiting has ended. A nil future has none.
func (f *future) wait(ctx context.Context) error {
	if f == nil {
		return nil
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
