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
}

func newPod(id string) *pod {
	return &pod{id: id, made: make(chan struct{}), ns: make(map[string]int)}
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

func (x *Executor) podCreate(req *wire.PodCreate, m *wire.Message) error {
	if err := checkID(req.ID); err != nil {
		return err
	}
	if len(req.Namespaces) > keeper.MaxFDs || len(req.Namespaces) != len(m.Files) {
		return invalid("pod %s: %d namespaces, %d descriptors", req.ID, len(req.Namespaces), len(m.Files))
	}
	x.mu.Lock()
	before := x.pods[req.ID]
	if before != nil && !before.partial {
		x.mu.Unlock()
		<-before.made // a retry: the first one's are as good, once they are there
		return before.err
	}
	p := newPod(req.ID)
	if before != nil {
		p.rec.Pause = before.rec.Pause
	}
	x.pods[p.id] = p
	x.mu.Unlock()
	defer close(p.made)
	if err := x.fillPod(p, req, m); err != nil {
		x.mu.Lock()
		delete(x.pods, p.id)
		x.mu.Unlock()
		p.err = joinUndo(err, x.dropPod(p))
	}
	return p.err
}

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
	if req.SharePID {
		return x.sharePID(p, fds)
	}
	return x.keeper.Put(podName(p.id), fds...)
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

// takePod removes a pod from those that are known. From then on no container finds
// it; one that has found it before is seen here.
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
	}
	delete(x.pods, id)
	return p, nil
}

// findPod returns a pod that is made.
func (x *Executor) findPod(id string) (*pod, error) {
	x.mu.Lock()
	p := x.pods[id]
	x.mu.Unlock()
	if p == nil {
		return nil, notFound("pod", id)
	}
	<-p.made
	return p, p.err
}

func (x *Executor) dropPod(p *pod) error {
	if err := x.keeper.Delete(podName(p.id)); err != nil {
		return err
	}
	for _, fd := range p.ns {
		unix.Close(fd)
	}
	if err := x.mnt.unmountShm(p.id); err != nil {
		return err
	}
	if p.rec.SharePID {
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
	return remove(x.files.pod(p.id))
}

// adoptPods takes over what a dead executor held for pods.
func (x *Executor) adoptPods(held map[string][]int) error {
	entries, err := os.ReadDir(x.files.pods())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			_ = remove(x.files.pod(e.Name()))
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
		fds, ok := held[podName(rec.ID)]
		if !ok && isAlive(rec.Pause) {
			// Both processes died. Its end would be that of all containers.
			p.partial = true
			x.pods[p.id] = p
			continue
		}
		if !ok || len(fds) != len(rec.Namespaces) || rec.SharePID && !isAlive(rec.Pause) {
			// Never finished, or both processes died: berth makes it again.
			for i, fd := range fds {
				p.ns[strconv.Itoa(i)] = fd // to be closed
			}
			if err := x.dropPod(p); err != nil {
				klog.ErrorS(err, "remains of a pod", "pod", rec.ID)
			}
			delete(held, podName(rec.ID)) // closed
			continue
		}
		for i, kind := range rec.Namespaces {
			p.ns[kind] = fds[i]
		}
		x.pods[p.id] = p
	}
	return nil
}
