// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
)

// settleLimit is how long the start of berth waits for all pods to be settled. What
// takes longer goes on, and is reported meanwhile as it was recorded last.
const settleLimit = 60 * time.Second

// Recover takes up what the store remembers: each pod and container is brought into
// a legal state, by itself and at the same time as the others, what nothing names is
// taken away, and exits are recorded from now on. It returns when all that is done,
// or goes on without the caller after a minute. An error says that nothing can be
// known of what runs.
func (rt *Runtime) Recover(ctx context.Context) error {
	rt.load(ctx)
	s, err := rt.observe(ctx)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	rt.background(func(ctx context.Context) {
		defer close(done)
		rt.settleAll(ctx, s)
		rt.sweep(ctx, s)
	})
	// Not before: an exit of a container that we did not know would get lost.
	rt.background(rt.watch)
	limit := time.NewTimer(settleLimit)
	defer limit.Stop()
	select {
	case <-done:
		return nil
	case <-limit.C:
		rt.cfg.Log.Info("Some pods are not settled yet; they are reported as they were")
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// load makes an object of every record.
func (rt *Runtime) load(ctx context.Context) {
	db := rt.cfg.Store
	rt.restorePods()
	for r := range db.Pods() {
		name := podName{r.Name, r.Namespace, r.UID, r.Attempt}
		live, known := db.LivePods().Get(r.ID)
		p := rt.newPod(r.ID, name, live.JoinKey)
		rt.addPod(p, r.CreatedAt)
		if pr := progressOf(live); pr != nil && podRank(pr.State) > podRank(r.State) {
			pr.apply(&r)
			rt.report(db.PutPodAsync(r), "pod", string(r.ID))
		}
		if !known {
			rt.report(p.resurrect(ctx), "pod", string(r.ID))
		}
	}
	for id, live := range db.LivePods().All() {
		if _, ok := db.Pod(id); !ok { // died before it was on the disk, or after it was deleted there
			rt.addPod(rt.newPod(id, podName{}, live.JoinKey), time.Time{})
		}
	}
	for r := range db.Containers() {
		live, known := db.LiveContainers().Get(r.ID)
		c := rt.newContainer(r.ID, rt.podOf(r.PodID), containerName{r.PodID, r.Name, r.Attempt}, live.JoinKey)
		rt.addContainer(c, r.CreatedAt)
		if pr := progressOf(live); pr != nil && containerRank(pr.State) > containerRank(r.State) {
			pr.applyContainer(&r)
			rt.report(db.PutContainerAsync(r), "container", string(r.ID))
		}
		if !known {
			rt.report(c.resurrect(ctx), "container", string(r.ID))
		}
		switch ContainerState(r.State) {
		case ContainerExited, ContainerRemoving, ContainerFailed:
			c.noteEnd()
		}
	}
	for id, live := range db.LiveContainers().All() {
		if _, ok := db.Container(id); !ok {
			rt.addContainer(rt.newContainer(id, rt.podOf(live.PodID), containerName{}, live.JoinKey), time.Time{})
		}
	}
}

// restorePods writes again the records of pods that had not reached the disk when
// berth died, though somebody was told of the pod.
func (rt *Runtime) restorePods() {
	db := rt.cfg.Store
	for id, live := range db.LivePods().All() {
		pr := progressOf(live)
		if _, ok := db.Pod(id); ok || pr == nil || pr.State == string(PodRemoving) || pr.CreatedAt.IsZero() {
			continue
		}
		cfg := new(cri.PodSandboxConfig)
		if err := proto.Unmarshal(live.Config, cfg); err != nil {
			rt.report(err, "pod", string(id))
			continue
		}
		r := newRecord(id, cfg)
		pr.apply(&r)
		rt.report(db.PutPodAsync(r), "pod", string(id))
	}
}

// resurrect gives a pod a ledger that has lost its own, because the node was started
// anew or live.db is gone. Whatever may be left of it is entered there, to be taken
// back; it is over in any case.
func (p *pod) resurrect(ctx context.Context) error {
	if err := p.live.Put(ctx, p.id, store.Live{}, stepRecord, stepNamespaces, stepNetwork, stepFiles); err != nil {
		return err
	}
	return p.change(ctx, reboot, func(r *store.Pod) {
		if r.EndedAt.IsZero() {
			r.EndedAt = time.Now().UTC().Round(0)
			r.Reason, r.Message = ReasonRebooted, "the node was started anew"
		}
	})
}

func (c *container) resurrect(ctx context.Context) error {
	live := store.Live{PodID: c.pod.id}
	if err := c.live.Put(ctx, c.id, live, stepRecord, stepRootfs, stepProcess); err != nil {
		return err
	}
	return c.change(ctx, reboot, func(r *store.Container, _ *progress) {
		if r.FinishedAt.IsZero() {
			r.FinishedAt, r.ExitCode = time.Now().UTC().Round(0), exitLost
			r.Reason, r.Message = ReasonRebooted, "the node was started anew"
		}
	})
}

func (rt *Runtime) addPod(p *pod, made time.Time) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.pods[p.id] = p
	if p.name != (podName{}) {
		rt.podNames[p.name] = p
	}
	if made.After(rt.lastMade) {
		rt.lastMade = made
	}
}

func (rt *Runtime) addContainer(c *container, made time.Time) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.containers[c.id] = c
	if c.name != (containerName{}) {
		rt.names[c.name] = c
	}
	if made.After(rt.lastMade) {
		rt.lastMade = made
	}
}

// podOf returns a container's pod; where there is none, one that is only a name, for
// a container that is to be taken back.
func (rt *Runtime) podOf(id store.PodID) *pod {
	if p := rt.podAt(id); p != nil {
		return p
	}
	return rt.newPod(id, podName{}, content.Digest(""))
}

func (rt *Runtime) report(err error, kind, id string) {
	if err != nil {
		rt.cfg.Log.Error(err, "Recovery", kind, id)
	}
}

// podRank orders states by how far they are, so that of two records the later is taken.
func podRank(s string) int {
	return slices.Index([]PodState{PodCreating, PodFailed, PodReady, PodStopping, PodNotReady, PodRemoving}, PodState(s))
}

func containerRank(s string) int {
	return slices.Index([]ContainerState{
		ContainerCreating, ContainerFailed, ContainerCreated, ContainerStarting, ContainerRunning,
		ContainerStopping, ContainerExited, ContainerRemoving,
	}, ContainerState(s))
}

// settleAll settles every object: containers first, which pods wait for.
func (rt *Runtime) settleAll(ctx context.Context, s *seen) {
	rt.mu.Lock()
	var containers []*container
	for _, c := range rt.containers {
		containers = append(containers, c)
	}
	var pods []*pod
	for _, p := range rt.pods {
		pods = append(pods, p)
	}
	rt.mu.Unlock()
	slots := make(chan struct{}, 16)
	each(slots, containers, func(c *container) {
		err := c.operate(ctx, "recover", func(ctx context.Context) error { return c.settleAs(ctx, s) })
		if err != nil && ctx.Err() == nil {
			rt.cfg.Log.Error(err, "Container is not settled; tried again", "container", c.id)
			c.again("settle", c.settle)
		}
	})
	each(slots, pods, func(p *pod) {
		err := p.operate(ctx, "recover", func(ctx context.Context) error { return p.settleAs(ctx, s) })
		if err != nil && ctx.Err() == nil {
			rt.cfg.Log.Error(err, "Pod is not settled; tried again", "pod", p.id)
			p.again("settle", p.settle)
		}
	})
}

// each calls fn for every object, as many at a time as there are slots.
func each[T any](slots chan struct{}, list []T, fn func(T)) {
	var wg sync.WaitGroup
	for _, o := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			fn(o)
		})
	}
	wg.Wait()
}

// sweep takes away what the store does not name.
func (rt *Runtime) sweep(ctx context.Context, s *seen) {
	known := func(id string) bool {
		return rt.podAt(store.PodID(id)) != nil || rt.containerAt(store.ContainerID(id)) != nil
	}
	for _, e := range s.execs { // of a berth that is no more: nobody reads what they write
		if e.Exit == nil {
			rt.report(rt.cfg.Streams.ExecKill(ctx, e.ID, e.Exec), "container", e.ID)
		}
	}
	for id := range s.containers {
		if !known(id) {
			err := rt.cfg.Executor.KillAll(ctx, id)
			if errors.Is(err, &wire.Error{Code: wire.NotFound}) {
				err = nil // taken back meanwhile, with the record that had named it
			}
			rt.report(errors.Join(err, rt.cfg.Executor.Delete(ctx, id)), "container", id)
		}
	}
	for id := range s.pods {
		if !known(id) {
			rt.report(rt.cfg.Executor.PodDelete(ctx, id), "pod", id)
		}
	}
	rt.sweepNetwork(ctx, known)
	pins, err := rt.cfg.Namespaces.List()
	rt.report(err, "folder", "of network namespaces")
	for _, id := range pins {
		if !known(id) {
			rt.report(rt.cfg.Namespaces.Remove(store.PodID(id)), "pod", id)
		}
	}
	for _, dir := range []string{filepath.Join(rt.cfg.State, "pods"), filepath.Join(rt.cfg.Root, "volumes")} {
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			rt.report(fmt.Errorf("sweep: %w", err), "folder", dir)
		}
		for _, e := range list {
			if !known(e.Name()) {
				rt.report(os.RemoveAll(filepath.Join(dir, e.Name())), "folder", dir)
			}
		}
	}
}

// sweepNetwork gives back what pods have that the store does not name: their addresses
// outlive a reboot. It comes before their namespaces go, which plugins look into.
func (rt *Runtime) sweepNetwork(ctx context.Context, known func(id string) bool) {
	ids, err := rt.cfg.Network.Attachments()
	rt.report(err, "folder", "of attachments")
	for _, id := range ids {
		if !known(string(id)) {
			rt.cfg.Log.Info("Pod that nobody names is disconnected", "pod", id)
			p := PodNetwork{ID: id, NetNS: ns.Pin(rt.cfg.PinDir, string(id))}
			rt.report(rt.cfg.Network.Detach(ctx, p), "pod", string(id))
		}
	}
}
