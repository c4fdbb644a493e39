// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/keeper"
	"github.com/berth-cri/berth/oci/wire"
)

// pod is what the containers of a pod share: namespaces, held by descriptor, and
// /dev/shm.
type pod struct {
	id  string
	shm bool
	ns  map[string]int // "ipc", "uts", "net", "pid", "user"
}

// podRecord is what the next executor must know of a pod.
type podRecord struct {
	ID         string
	ShmSize    int64
	Namespaces []string // in the order of the held descriptors
}

func podName(id string) string { return "pod/" + id }

func (x *Executor) podCreate(req *wire.PodCreate, m *wire.Message) error {
	if err := checkID(req.ID); err != nil {
		return err
	}
	if len(req.Namespaces) > keeper.MaxFDs || len(req.Namespaces) != len(m.Files) {
		return invalid("pod %s: %d namespaces, %d descriptors", req.ID, len(req.Namespaces), len(m.Files))
	}
	p := &pod{id: req.ID, shm: req.ShmSize > 0, ns: make(map[string]int)}
	x.mu.Lock()
	if x.pods[p.id] != nil {
		x.mu.Unlock()
		return nil // a retry: the first one's are as good
	}
	x.pods[p.id] = p
	x.mu.Unlock()
	if err := x.fillPod(p, req, m); err != nil {
		x.mu.Lock()
		delete(x.pods, p.id)
		x.mu.Unlock()
		return joinUndo(err, x.dropPod(p))
	}
	return nil
}

func (x *Executor) fillPod(p *pod, req *wire.PodCreate, m *wire.Message) error {
	// Entered before it is done: the next executor takes it back if we die here.
	rec := podRecord{ID: p.id, ShmSize: req.ShmSize, Namespaces: req.Namespaces}
	if err := write(x.files.pod(p.id), rec); err != nil {
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
	return x.keeper.Put(podName(p.id), fds...)
}

var namespaceKinds = [...]string{"ipc", "uts", "net", "pid", "user"} //nolint:gochecknoglobals // a table

// podDelete lets go of a pod. One that is not there is no error; one that still
// has containers is.
func (x *Executor) podDelete(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	for _, c := range x.all() {
		c.mu.Lock()
		of, state := c.rec.Pod, c.state
		c.mu.Unlock()
		if of == id {
			return &wire.Error{Code: wire.BadState, Message: fmt.Sprintf("pod %s: container %s is still here (%s): delete it first", id, c.id, state)}
		}
	}
	x.mu.Lock()
	p := x.pods[id]
	delete(x.pods, id)
	x.mu.Unlock()
	if p == nil {
		p = &pod{id: id}
	}
	return x.dropPod(p)
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
		p := &pod{id: rec.ID, shm: rec.ShmSize > 0, ns: make(map[string]int)}
		fds, ok := held[podName(rec.ID)]
		if !ok || len(fds) != len(rec.Namespaces) {
			// Never finished, or both processes died: berth makes it again.
			for _, fd := range fds {
				unix.Close(fd)
			}
			if err := x.dropPod(p); err != nil {
				return fmt.Errorf("pod %s: %w", rec.ID, err)
			}
			continue
		}
		for i, kind := range rec.Namespaces {
			p.ns[kind] = fds[i]
		}
		x.pods[p.id] = p
	}
	return nil
}
