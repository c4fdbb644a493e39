// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/keeper"
	"github.com/berth-cri/berth/oci/wire"
)

// pod is what the containers of a pod share: namespaces, held by descriptor, and
// /dev/shm.
type pod struct {
	id   string
	made chan struct{}  // closed when the rest is set
	err  error          // why it was not made after all
	ns   map[string]int // "ipc", "uts", "net", "pid", "user"
	rec  podRecord
	// partial says that keeper and executor died together and only the pause process
	// is left: what else the pod had is to be handed over again.
	partial bool

	// op is held while the pod is made or taken back, and while the end of its pause
	// process is dealt with.
	op sync.Mutex
	// pidfd of the pause process; -1: none
	pause int // +checklocks:op
	// of the poller, for pause
	token int32 // +checklocks:op
	// all of it was taken back
	gone bool // +checklocks:op

	// Of Executor.mu.
	going bool       // it is being taken back, and no container finds it any more
	ended *wire.Exit // of the pause process: no container can be made in the pod any more
}

func newPod(id string) *pod {
	return &pod{id: id, made: make(chan struct{}), ns: make(map[string]int), pause: -1}
}

// podRecord is what the next executor must know of a pod.
type podRecord struct {
	ID         string
	ShmSize    int64
	Namespaces []string // in the order of the held descriptors

	SharePID    bool
	PauseCgroup string
	Systemd     bool
	Pause       wire.Created // zero: none, or not yet
}

func podName(id string) string { return "pod/" + id }

func (x *Executor) podCreate(ctx context.Context, req *wire.PodCreate, m *wire.Message) error {
	if err := checkID(req.ID); err != nil {
		return err
	}
	if len(req.Namespaces) > keeper.MaxFDs || len(req.Namespaces) != len(m.Files) {
		return invalid("pod %s: %d namespaces, %d descriptors", req.ID, len(req.Namespaces), len(m.Files))
	}
	p := newPod(req.ID)
	var partial *pod
	for {
		x.mu.Lock()
		if err := ctx.Err(); err != nil {
			x.mu.Unlock()
			return err // as in create
		}
		before := x.pods[req.ID]
		if before == nil || before.partial && !before.going && before.ended == nil {
			if partial = before; partial != nil {
				p.rec.Pause = partial.rec.Pause
			}
			x.pods[p.id] = p
			p.op.Lock()
			x.mu.Unlock()
			break
		}
		useless := before.going || before.ended != nil
		x.mu.Unlock()
		if !useless {
			select {
			case <-before.made: // a retry: the first one's are as good, once they are there
				return before.err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		// One that could not be taken back, or whose pause process has ended.
		if err := x.podDelete(ctx, req.ID); err != nil {
			return fmt.Errorf("pod %s of before: %w", req.ID, err)
		}
	}
	defer close(p.made)
	defer p.op.Unlock()
	if partial != nil {
		partial.op.Lock()
		x.forgetPauseLocked(partial) // p watches it now
		partial.op.Unlock()
	}
	if err := x.fillPod(p, req, m); err != nil {
		x.mu.Lock()
		p.going = true
		x.mu.Unlock()
		p.err = joinUndo(err, x.dropPodLocked(p))
	}
	return p.err
}

// fillPod makes a pod.
//
// +checklocks:p.op
func (x *Executor) fillPod(p *pod, req *wire.PodCreate, m *wire.Message) error {
	// Entered before it is done: the next executor takes it back if we die here.
	p.rec = podRecord{
		ID: p.id, ShmSize: req.ShmSize, Namespaces: req.Namespaces,
		SharePID: req.SharePID, PauseCgroup: req.PauseCgroup, Systemd: req.Systemd, Pause: p.rec.Pause,
	}
	if err := write(x.files.pod(p.id), p.rec); err != nil {
		return err
	}
	var fds []int
	for i, kind := range req.Namespaces {
		if !slices.Contains(namespaceKinds[:], kind) {
			return invalid("pod %s: namespace %q: unknown", p.id, kind)
		}
		f, err := m.Take(i)
		if err != nil {
			return err
		}
		fd, err := dup(f)
		if err != nil {
			return err
		}
		p.ns[kind] = fd
		fds = append(fds, fd)
	}
	if req.ShmSize > 0 {
		if err := x.mnt.mountShm(p.id, req.ShmSize); err != nil {
			return err
		}
	}
	if !req.SharePID {
		return x.keeper.Put(podName(p.id), fds...)
	}
	if err := x.sharePID(p, fds); err != nil {
		return err
	}
	return x.watchPauseLocked(p)
}

// sharePID starts a pod's pause process, or finds the one that is there, and has
// the keeper hold its namespace with the others. The process is let go on when all
// is written down.
func (x *Executor) sharePID(p *pod, fds []int) error {
	p.rec.Namespaces = append(slices.Clone(p.rec.Namespaces), "pid")
	if p.rec.Pause.PID != 0 {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/pid", p.rec.Pause.PID), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("PID namespace of pod %s: %w", p.id, err)
		}
		p.ns["pid"] = fd
		return errors.Join(write(x.files.pod(p.id), p.rec), x.keeper.Put(podName(p.id), append(fds, fd)...))
	}
	pause, err := x.startPause()
	if err != nil {
		return err
	}
	p.rec.Pause, p.ns["pid"] = pause.process, pause.pidns
	group, err := managerAt("pause-"+p.id, p.rec.PauseCgroup, p.rec.Systemd)
	if err == nil {
		err = group.Apply(pause.process.PID)
	}
	if err == nil {
		err = write(x.files.pod(p.id), p.rec)
	}
	if err == nil {
		err = x.keeper.Put(podName(p.id), append(fds, pause.pidns)...)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("pause: %w", err), pause.close())
	}
	return pause.release()
}

var namespaceKinds = [...]string{"ipc", "uts", "net", "user"} //nolint:gochecknoglobals // a table

// podDelete lets go of a pod. One that is not there is no error; one that still
// has containers is.
func (x *Executor) podDelete(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	for _, c := range x.all() {
		c.mu.Lock()
		of := c.rec.Pod
		c.mu.Unlock()
		if of != id {
			continue
		}
		if _, err := x.find(ctx, c.id); err != nil && ctx.Err() != nil { // it may be on its way out
			return err
		}
	}
	p, err := x.takePod(id)
	if err != nil {
		return err
	}
	<-p.made
	return x.dropPod(p)
}

// takePod marks a pod as going. From then on no container finds it; one that has
// found it before is seen here. It stays known until all of it is taken back.
func (x *Executor) takePod(id string) (*pod, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.containers {
		c.mu.Lock()
		of, state := c.rec.Pod, c.state
		c.mu.Unlock()
		if of == id {
			return nil, &wire.Error{Code: wire.BadState, Message: fmt.Sprintf("pod %s: container %s is still here (%s): delete it first", id, c.id, state)}
		}
	}
	p := x.pods[id]
	if p == nil {
		p = newPod(id) // nothing is known of it, but a record may be left
		close(p.made)
		x.pods[id] = p // whoever makes it waits for us
	}
	p.going = true
	return p, nil
}

// findPod returns a pod that is made.
func (x *Executor) findPod(id string) (*pod, error) {
	x.mu.Lock()
	p := x.pods[id]
	if p == nil || p.going {
		x.mu.Unlock()
		return nil, notFound("pod", id)
	}
	ended := p.ended
	x.mu.Unlock()
	if ended != nil {
		return nil, &wire.Error{Code: wire.BadState, Message: fmt.Sprintf("pod %s: its pause process has ended (%s): it is to be made again", id, howEnded(ended))}
	}
	<-p.made
	return p, p.err
}

// dropPod takes back all of a pod. What fails is done again by the next try: the
// pod is known until then.
func (x *Executor) dropPod(p *pod) error {
	p.op.Lock()
	defer p.op.Unlock()
	return x.dropPodLocked(p)
}

// +checklocks:p.op
func (x *Executor) dropPodLocked(p *pod) error {
	if p.gone {
		return nil // somebody else was quicker, and another may have its id by now
	}
	if err := x.keeper.Delete(podName(p.id)); err != nil {
		return err
	}
	for kind, fd := range p.ns {
		unix.Close(fd)
		delete(p.ns, kind)
	}
	if err := x.mnt.unmountShm(p.id); err != nil {
		return err
	}
	if p.rec.SharePID {
		x.forgetPauseLocked(p)
		if err := endPause(p.rec.Pause); err != nil {
			return err
		}
		group, err := managerAt("pause-"+p.id, p.rec.PauseCgroup, p.rec.Systemd)
		if err != nil {
			return err
		}
		if err := group.Destroy(); err != nil {
			return fmt.Errorf("cgroup of pause: %w", err)
		}
	}
	if err := errors.Join(remove(x.files.podExit(p.id)), remove(x.files.pod(p.id))); err != nil {
		return err
	}
	p.gone = true
	x.mu.Lock()
	if x.pods[p.id] == p {
		delete(x.pods, p.id)
	}
	x.mu.Unlock()
	return nil
}

// adoptPods takes over what a dead executor held for pods.
func (x *Executor) adoptPods(held map[string][]int) (left []*takeover, err error) {
	entries, err := os.ReadDir(x.files.pods())
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			_ = remove(x.files.pod(e.Name()))
		}
		if strings.HasSuffix(e.Name(), ".tmp") || strings.HasSuffix(e.Name(), ".exit") {
			continue
		}
		var rec podRecord
		if err := read(x.files.pod(e.Name()), &rec); err != nil {
			klog.ErrorS(err, "pod's record cannot be read and is left alone", "pod", e.Name())
			continue
		}
		p := newPod(rec.ID)
		p.rec = rec
		close(p.made)
		x.pods[p.id] = p
		t := &takeover{what: "pod", id: p.id, settled: make(chan struct{})}
		x.adoptPod(t, p, held)
		if len(t.steps) > 0 {
			left = append(left, t)
		}
	}
	return left, nil
}

// adoptPod takes over one pod.
//
// Preconditions: p is not yet shared.
func (x *Executor) adoptPod(t *takeover, p *pod, held map[string][]int) {
	fds, ok := held[podName(p.id)]
	alive := isAlive(p.rec.Pause)
	switch {
	case !ok && alive:
		// Both processes died. Its end would be that of all containers.
		p.partial = true
	case !ok || len(fds) != len(p.rec.Namespaces):
		// Never finished, or both processes died: berth makes it again.
		for i, fd := range fds {
			p.ns[strconv.Itoa(i)] = fd // to be closed
		}
		p.going, t.slow = true, true
		t.add(func() error { return x.dropPod(p) })
		return
	default:
		for i, kind := range p.rec.Namespaces {
			p.ns[kind] = fds[i]
		}
	}
	if !p.rec.SharePID {
		return
	}
	var exit wire.Exit
	switch err := read(x.files.podExit(p.id), &exit); {
	case err == nil:
		p.ended = &exit
	case !alive:
		p.ended = pauseLost(p)
	default:
		x.atOnce(t, func() error { return x.watchPause(p) })
	}
}
