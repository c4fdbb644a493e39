// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
	"github.com/berth-cri/berth/store/storetest"
)

// errDead is what a process gets that has been killed: nothing it does has effect.
var errDead = errors.New("killed")

// node is what outlives berth: executor, network, namespaces, layers, and the two files.
type node struct {
	tb  testing.TB
	cfg store.Config

	mu         sync.Mutex
	pods       map[string]bool // in the executor
	containers map[string]*simContainer
	pins       map[string]bool // false: Make was killed before it had finished
	attached   map[string]bool
	rootfs     map[string]bool
	broken     []string        // what should never happen
	deaf       map[string]bool // containers that do not mind SIGTERM; by id
	fails      map[string]error
	hangs      map[string]chan struct{} // closed when it is healed
	panics     map[string]bool
	pauseless  map[string]bool // pods whose pause has ended
	garbled    map[string]bool // containers whose record the executor cannot read
	watchers   map[*simWatcher]bool
	pid        int
}

// simContainer is a container of the simulated executor.
type simContainer struct {
	pod   string
	state wire.State
	proc  wire.Created
	exit  *wire.Exit
	acked bool
}

// simWatcher is one who is told of exits.
type simWatcher struct {
	queue []wire.Exit // under node.mu
	wake  chan struct{}
}

func newNode(tb testing.TB) *node {
	return &node{
		tb: tb, cfg: storetest.MemoryFolders(tb),
		pods: make(map[string]bool), containers: make(map[string]*simContainer), pins: make(map[string]bool),
		pauseless: make(map[string]bool), garbled: make(map[string]bool),
		attached: make(map[string]bool), rootfs: make(map[string]bool), deaf: make(map[string]bool),
		fails: make(map[string]error), hangs: make(map[string]chan struct{}), panics: make(map[string]bool), watchers: make(map[*simWatcher]bool),
	}
}

// life is one process of berth on a node.
type life struct {
	*node
	db *store.DB
	rt *Runtime

	pmu   sync.Mutex
	seen  []string
	dieAt int // number of a point; -1: never
	dead  bool
}

// boot starts a process that will die at a point.
func (n *node) boot(dieAt int, plant func(*Runtime)) *life {
	n.tb.Helper()
	db, err := store.Open(n.tb.Context(), n.cfg)
	if err != nil {
		n.tb.Fatal(err)
	}
	l := &life{node: n, db: db, dieAt: dieAt}
	l.rt = New(Config{
		Store: db, Executor: l, Exits: l, Network: simNetwork{l}, Images: simImages{l}, Namespaces: simNamespaces{l},
		State: n.cfg.State, Root: n.cfg.Root, Driver: cgroup.Cgroupfs, Handlers: map[string]spec.Handler{"": {}},
		Features: spec.Features{Arch: "amd64", Kernel: spec.Kernel{Major: 6, Minor: 12}, CgroupV2: true, CgroupNamespace: true, Capabilities: []string{"CAP_CHOWN"}},
		Log:      klog.Logger{}, PinDir: "/run/netns",
	})
	l.rt.at = l.point
	if plant != nil {
		plant(l.rt)
	}
	return l
}

// point is a moment at which the process may die.
func (l *life) point(name string) error {
	l.pmu.Lock()
	defer l.pmu.Unlock()
	if l.dead {
		return errDead
	}
	l.seen = append(l.seen, name)
	if len(l.seen)-1 == l.dieAt {
		l.dead = true
		storetest.Crash(l.db)
		return errDead
	}
	return nil
}

// end waits until nothing of the process moves any more. One that lives ends in order.
func (l *life) end() {
	l.node.tb.Helper()
	if err := l.rt.Close(context.Background()); err != nil {
		l.node.tb.Error(err)
	}
	l.pmu.Lock()
	defer l.pmu.Unlock()
	if !l.dead {
		if err := l.db.Close(); err != nil {
			l.node.tb.Error(err)
		}
	}
}

// effect does something to the node, with a moment to die before and after it.
func (l *life) effect(ctx context.Context, name string, fn func() error) error {
	if err := l.point(name); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	if healed := l.hangs[name]; healed != nil {
		l.mu.Unlock()
		select {
		case <-healed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		l.mu.Lock()
	}
	if l.panics[name] {
		l.mu.Unlock()
		panic("planted in " + name)
	}
	err := l.fails[name]
	if err == nil {
		err = fn()
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.point(name + " done")
}

// wrong notes what should never happen.
func (n *node) wrong(format string, args ...any) {
	n.broken = append(n.broken, fmt.Sprintf(format, args...))
}

// The simulated executor. What it does is what the real one does, as testExecutor holds.

func simError(code wire.Code, format string, args ...any) error {
	return &wire.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func notThere(id string) error { return simError(wire.NotFound, "no container %s", id) }

func (l *life) PodCreate(ctx context.Context, p wire.PodCreate, files []*os.File) error {
	return l.effect(ctx, "pod create", func() error {
		if len(files) != len(p.Namespaces) {
			return simError(wire.Invalid, "pod %s: %d namespaces, %d descriptors", p.ID, len(p.Namespaces), len(files))
		}
		l.pods[p.ID] = true
		return nil
	})
}

func (l *life) PodDelete(ctx context.Context, id string) error {
	return l.effect(ctx, "pod delete", func() error {
		for cid, c := range l.containers {
			if c.pod == id {
				l.wrong("pod %.6s deleted with container %.6s in it", id, cid)
				return simError(wire.BadState, "pod %s: container %s is still here", id, cid)
			}
		}
		delete(l.pods, id)
		return nil
	})
}

func (l *life) Create(ctx context.Context, r wire.Create) (made wire.Created, err error) {
	err = l.effect(ctx, "create", func() error {
		switch {
		case l.containers[r.ID] != nil:
			return simError(wire.Exists, "container %s exists", r.ID)
		case !l.pods[r.Pod]:
			return simError(wire.NotFound, "no pod %s", r.Pod)
		case !l.rootfs[r.ID]:
			l.wrong("container %.6s created without a root file system", r.ID)
		}
		l.pid++
		made = wire.Created{PID: l.pid, Start: uint64(l.pid)}
		l.containers[r.ID] = &simContainer{pod: r.Pod, state: wire.IsCreated, proc: made}
		return nil
	})
	return made, err
}

func (l *life) Start(ctx context.Context, id string) error {
	return l.effect(ctx, "start", func() error {
		c := l.containers[id]
		if c == nil {
			return notThere(id)
		}
		if c.state != wire.IsCreated {
			return simError(wire.BadState, "container %s is %s", id, c.state)
		}
		c.state = wire.Running
		return nil
	})
}

func (l *life) Signal(ctx context.Context, id string, s unix.Signal) error {
	return l.effect(ctx, "signal", func() error {
		c := l.containers[id]
		if c == nil {
			return notThere(id)
		}
		if c.state != wire.Exited && (s == unix.SIGKILL || !l.deaf[id]) {
			l.killLocked(id, s)
		}
		return nil
	})
}

func (l *life) KillAll(ctx context.Context, id string) error {
	return l.effect(ctx, "kill all", func() error {
		c := l.containers[id]
		if c == nil {
			return notThere(id)
		}
		if c.state != wire.Exited {
			l.killLocked(id, unix.SIGKILL)
		}
		return nil
	})
}

func (l *life) Delete(ctx context.Context, id string) error {
	return l.effect(ctx, "delete", func() error {
		switch c := l.containers[id]; {
		case c == nil:
			return nil
		case c.state == wire.Running:
			return simError(wire.BadState, "container %s is running", id)
		case c.state == wire.IsCreated:
			l.killLocked(id, unix.SIGKILL)
		}
		delete(l.containers, id)
		return nil
	})
}

func (l *life) Observe(ctx context.Context) (o wire.Observed, err error) {
	err = l.effect(ctx, "observe", func() error {
		o.Pods = slices.Sorted(maps.Keys(l.pods))
		for _, id := range o.Pods {
			if l.pauseless[id] {
				o.PausesEnded = append(o.PausesEnded, wire.Exit{ID: id})
			}
		}
		for _, id := range slices.Sorted(maps.Keys(l.containers)) {
			c := l.containers[id]
			if l.garbled[id] {
				o.Unreadable = append(o.Unreadable, wire.Unreadable{ID: id})
				continue
			}
			o.Containers = append(o.Containers, wire.Container{ID: id, Pod: c.pod, State: c.state, Process: c.proc, Exit: c.exit})
		}
		return nil
	})
	return o, err
}

// endLocked ends a container by itself.
func (n *node) endLocked(id string, code int) { n.exitLocked(id, wire.Exit{Code: code}) }

// killLocked ends a container by a signal.
func (n *node) killLocked(id string, s unix.Signal) {
	n.exitLocked(id, wire.Exit{Code: 128 + int(s), Signal: int(s)})
}

// exitLocked tells everybody of an end.
func (n *node) exitLocked(id string, x wire.Exit) {
	c := n.containers[id]
	x.ID, x.PID, x.Start, x.At = id, c.proc.PID, c.proc.Start, time.Now()
	c.state, c.exit = wire.Exited, &x
	for w := range n.watchers {
		w.pushLocked(x)
	}
}

func (w *simWatcher) pushLocked(x wire.Exit) {
	w.queue = append(w.queue, x)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (l *life) Events(ctx context.Context, fn func(wire.Exit) error) error {
	w := &simWatcher{wake: make(chan struct{}, 1)}
	l.mu.Lock()
	l.watchers[w] = true
	for _, id := range slices.Sorted(maps.Keys(l.containers)) {
		if c := l.containers[id]; c.exit != nil && !c.acked {
			w.pushLocked(*c.exit)
		}
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.watchers, w)
		l.mu.Unlock()
	}()
	for {
		l.mu.Lock()
		exits := w.queue
		w.queue = nil
		l.mu.Unlock()
		for _, x := range exits {
			if err := l.point("event"); err != nil {
				return err
			}
			if err := fn(x); err != nil {
				return err
			}
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (l *life) Ack(ctx context.Context, id, exec string) error {
	return l.effect(ctx, "ack", func() error {
		if c := l.containers[id]; c != nil && exec == "" {
			c.acked = c.exit != nil
		}
		return nil
	})
}

type simNamespaces struct{ l *life }

func (s simNamespaces) Make(ctx context.Context, r ns.Request) (*ns.Namespaces, error) {
	made := new(ns.Namespaces)
	err := s.l.effect(ctx, "make namespaces", func() error {
		if err := r.Check(); err != nil {
			return err
		}
		for _, n := range []struct {
			wanted bool
			file   **os.File
		}{{r.Net, &made.Net}, {r.IPC, &made.IPC}, {r.UTS, &made.UTS}} {
			if !n.wanted {
				continue
			}
			var err error
			if *n.file, err = os.Open("/dev/null"); err != nil {
				return err
			}
		}
		if r.Net {
			s.l.pins[r.ID] = true
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, made.Close())
	}
	return made, nil
}

func (s simNamespaces) Pinned(id store.PodID) (is bool, err error) {
	err = s.l.effect(context.Background(), "pinned", func() error { is = s.l.pins[string(id)]; return nil })
	return is, err
}

func (s simNamespaces) Remove(id store.PodID) error {
	return s.l.effect(context.Background(), "remove namespaces", func() error {
		if s.l.attached[string(id)] {
			s.l.wrong("namespace of %.6s removed while it is attached", id)
		}
		delete(s.l.pins, string(id))
		return nil
	})
}

func (s simNamespaces) List() (ids []string, err error) {
	err = s.l.effect(context.Background(), "list namespaces", func() error { ids = slices.Sorted(maps.Keys(s.l.pins)); return nil })
	return ids, err
}

type simNetwork struct{ l *life }

func (s simNetwork) Attach(ctx context.Context, p PodNetwork) (a store.Attachment, err error) {
	err = s.l.effect(ctx, "attach", func() error {
		if !s.l.pins[string(p.ID)] {
			s.l.wrong("pod %.6s attached without a namespace", p.ID)
			return fmt.Errorf("%s: %w", p.NetNS, fs.ErrNotExist)
		}
		s.l.attached[string(p.ID)] = true
		a = store.Attachment{Network: "sim", Interface: "eth0", IPs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}}
		return nil
	})
	return a, err
}

func (s simNetwork) Detach(ctx context.Context, p PodNetwork) error {
	return s.l.effect(ctx, "detach", func() error { delete(s.l.attached, string(p.ID)); return nil })
}

func (s simNetwork) Attachments() (ids []store.PodID, err error) {
	err = s.l.effect(context.Background(), "attachments", func() error {
		for _, id := range slices.Sorted(maps.Keys(s.l.attached)) {
			ids = append(ids, store.PodID(id))
		}
		return nil
	})
	return ids, err
}

func (s simNetwork) Dial(ctx context.Context, _ string, port int32) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

type simImages struct{ l *life }

// simFiles are the files of the image that there is.
var simFiles = map[string]string{"/etc/os-release": "NAME=simulated\n"}

func (s simImages) Resolve(_ context.Context, name string) (Image, error) {
	if name != "img" {
		return Image{}, fmt.Errorf("image %s: %w", name, ErrNotFound)
	}
	id := store.ImageID(content.FromBytes([]byte(name)))
	return Image{ID: id, Name: "img:latest", Ref: "img@" + string(id), Config: imagespec.ImageConfig{
		Entrypoint: []string{"/bin/app"}, Volumes: map[string]struct{}{"/data": {}},
	}}, s.l.point("resolve")
}

func (s simImages) Rootfs(ctx context.Context, id store.ContainerID, _ store.ImageID) (wire.Rootfs, error) {
	return wire.Rootfs{Bind: "/"}, s.l.effect(ctx, "rootfs", func() error { s.l.rootfs[string(id)] = true; return nil })
}

func (s simImages) RemoveRootfs(ctx context.Context, id store.ContainerID) error {
	return s.l.effect(ctx, "remove rootfs", func() error {
		if s.l.containers[string(id)] != nil {
			s.l.wrong("root file system of %.6s removed under it", id)
		}
		delete(s.l.rootfs, string(id))
		return nil
	})
}

func (s simImages) ReadFile(_ context.Context, _ store.ImageID, path string, limit int64) ([]byte, error) {
	text, ok := simFiles[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return []byte(text[:min(int64(len(text)), limit)]), nil
}

func (s simImages) Usage(context.Context, store.ContainerID) (Usage, error) {
	return Usage{Mountpoint: "/", Bytes: 4096, Inodes: 1, At: time.Now()}, nil
}

func (s simNamespaces) Counters(store.PodID) ([]LinkCounters, error) {
	return []LinkCounters{{Name: "eth0", RxBytes: 1}}, nil
}
