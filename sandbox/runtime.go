// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
)

var (
	// ErrNotFound says that there is no pod or container of that id.
	ErrNotFound = errors.New("not found")
	// ErrExists says that name and attempt belong to another pod or container, which was made with
	// another configuration, or has ended. The message names it.
	ErrExists = errors.New("already exists")
	// ErrInvalid refuses a request that cannot be right. The message names the field.
	ErrInvalid = errors.New("invalid")
	// ErrTimeout says that a step took longer than it may. The message names the step.
	ErrTimeout = errors.New("took too long")
	// ErrStuck refuses to touch a path of the host while others of the same pod, or too many of the
	// node, have not come back. The message names the path.
	ErrStuck = errors.New("path of the host does not answer")
	// ErrNoHandler refuses a pod whose runtime handler is not configured.
	ErrNoHandler = errors.New("no such runtime handler")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("berth is shutting down")
)

// Executor is what runs containers, as far as lifecycles need it.
type Executor interface {
	PodCreate(ctx context.Context, p wire.PodCreate, namespaces []*os.File) error
	PodDelete(ctx context.Context, id string) error
	Create(ctx context.Context, c wire.Create) (wire.Created, error)
	Start(ctx context.Context, id string) error
	Signal(ctx context.Context, id string, signal unix.Signal) error
	KillAll(ctx context.Context, id string) error
	Delete(ctx context.Context, id string) error
	Observe(ctx context.Context) (wire.Observed, error)
}

// Exits is how the executor tells of processes that have ended.
type Exits interface {
	Events(ctx context.Context, fn func(wire.Exit) error) error
	Ack(ctx context.Context, id, exec string) error
}

var (
	_ Executor = (*oci.Executor)(nil)
	_ Exits    = (*oci.Executor)(nil)
)

// Network connects pods.
type Network interface {
	// Attach connects a pod that has a network namespace. What an earlier try left is
	// no hindrance.
	Attach(ctx context.Context, p PodNetwork) (store.Attachment, error)
	// Detach undoes Attach, whether that was done, done in part, or not at all, and
	// however often it is called. The namespace may be gone.
	Detach(ctx context.Context, p PodNetwork) error
	// Attachments returns the pods that are connected, or may be.
	Attachments() ([]store.PodID, error)
	// Dial connects to a port on the loopback interface of a network namespace, by its
	// path; of the node's own where that is "".
	Dial(ctx context.Context, netns string, port int32) (net.Conn, error)
}

// PodNetwork is what a network must know of a pod.
type PodNetwork struct {
	ID                   store.PodID
	Name, Namespace, UID string
	NetNS                string // path; there may be nothing any more when a pod is detached
	Annotations          map[string]string
	// Config is the pod's configuration as received, nil after a reboot.
	Config *cri.PodSandboxConfig
	// Attachment is what Attach has returned, for Detach; nil if nobody knows.
	Attachment *store.Attachment
}

// Images makes root file systems.
type Images interface {
	// Resolve finds the image that a container's image spec names.
	Resolve(ctx context.Context, name string) (Image, error)
	// Rootfs makes a container's root file system: the image's layers below one of its
	// own. Again is no error.
	Rootfs(ctx context.Context, id store.ContainerID, image store.ImageID) (wire.Rootfs, error)
	// RemoveRootfs undoes Rootfs, whether that was done or not.
	RemoveRootfs(ctx context.Context, id store.ContainerID) error
	// ReadFile reads a file of an image, as a container would see it: fs.ErrNotExist
	// where there is none. It reads up to limit bytes.
	ReadFile(ctx context.Context, image store.ImageID, path string, limit int64) ([]byte, error)
	// Usage returns what a container has written, as counted a short while ago.
	Usage(ctx context.Context, id store.ContainerID) (Usage, error)
}

// Namespaces makes what the containers of a pod share.
type Namespaces interface {
	Make(ctx context.Context, r ns.Request) (*ns.Namespaces, error)
	// Pinned says whether a pod's network namespace is there.
	Pinned(id store.PodID) (bool, error)
	Remove(id store.PodID) error
	List() ([]string, error)
	// Counters reads what the interfaces of a pod have counted, but for the loopback.
	Counters(id store.PodID) ([]LinkCounters, error)
}

// Config is what a Runtime is made of.
type Config struct {
	Store      *store.DB
	Executor   Executor
	Exits      Exits
	Streams    Streams
	Network    Network
	Images     Images
	Namespaces Namespaces

	// State is a folder for what is to be gone after a reboot: the files of pods.
	State string
	// Root is a folder on a disk: volumes that images ask for.
	Root string

	Features     spec.Features
	Cgroups      cgroup.Host
	Driver       cgroup.Driver
	CgroupPrefix string // of a container's scope; "" is "berth"
	Handlers     map[string]spec.Handler
	NodeHostname string
	// PinDir is where network namespaces are pinned; "" is ns.DefaultDir.
	PinDir string
	// LogMax is how many bytes of content a record of a container's log may have; 0: 16384.
	LogMax int

	// StepLimit is how long a step may take; 0: 2 minutes. Plugins of the network have
	// limits of their own.
	StepLimit time.Duration

	Log klog.Logger
}

// Runtime is the pods and containers of a node. Its methods may be called by many
// goroutines.
type Runtime struct {
	cfg   Config
	paths *paths

	podSteps       []step[*pod]
	containerSteps []step[*container]

	// at is passed at every moment at which a process may die; its error stands for
	// that death. Nil outside tests.
	at func(point string) error

	ctx    context.Context //nolint:containedctx // ends what the runtime does by itself
	cancel context.CancelFunc
	work   sync.WaitGroup // what the runtime does by itself

	mu         sync.Mutex
	pods       map[store.PodID]*pod             // +checklocks:mu
	containers map[store.ContainerID]*container // +checklocks:mu
	podNames   map[podName]*pod                 // +checklocks:mu
	names      map[containerName]*container     // +checklocks:mu
	lastMade   time.Time                        // +checklocks:mu
	// By id: what is tried again.
	retried map[string]bool // +checklocks:mu
	closed  bool            // +checklocks:mu

	feed  feed
	execs execExits
	cpu   rates
}

// podName is what a kubelet knows a pod by before it has an id.
type podName struct {
	name, namespace, uid string
	attempt              uint32
}

// containerName is the same for a container.
type containerName struct {
	pod     store.PodID
	name    string
	attempt uint32
}

// New makes a Runtime of what the store remembers. Recover is to be called next.
func New(cfg Config) *Runtime {
	if cfg.StepLimit == 0 {
		cfg.StepLimit = 2 * time.Minute
	}
	if cfg.CgroupPrefix == "" {
		cfg.CgroupPrefix = "berth"
	}
	rt := &Runtime{
		cfg:        cfg,
		paths:      newPaths(),
		pods:       make(map[store.PodID]*pod),
		containers: make(map[store.ContainerID]*container),
		podNames:   make(map[podName]*pod),
		names:      make(map[containerName]*container),
		retried:    make(map[string]bool),
	}
	rt.podSteps, rt.containerSteps = podSteps(cfg.StepLimit), containerSteps(cfg.StepLimit)
	rt.ctx, rt.cancel = context.WithCancel(context.Background())
	return rt
}

// Close ends what the runtime does by itself and waits for it, and for the
// operations that are under way, until ctx ends. Pods and containers are left as
// they are.
func (rt *Runtime) Close(ctx context.Context) error {
	rt.mu.Lock()
	rt.closed = true
	rt.mu.Unlock()
	rt.cancel()
	rt.feed.close()
	done := make(chan struct{})
	go func() { rt.work.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("operations are under way: %w", context.Cause(ctx))
	}
}

// hold makes Close wait for work.Done, unless it is too late for that.
func (rt *Runtime) hold() error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.closed {
		return ErrClosed
	}
	rt.work.Add(1)
	return nil
}

// background runs fn, which ends with its context, unless the runtime is being closed.
func (rt *Runtime) background(fn func(ctx context.Context)) {
	if rt.hold() != nil {
		return
	}
	go func() {
		defer rt.work.Done()
		fn(rt.ctx)
	}()
}

// point is a moment at which the process may die.
func (rt *Runtime) point(name string) error {
	if rt.at == nil {
		return nil
	}
	return rt.at(name)
}

// made returns a time for something new: now, and later than all before, since a
// kubelet sorts by it.
func (rt *Runtime) made() time.Time {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	now := time.Now().UTC().Round(0)
	if !now.After(rt.lastMade) {
		now = rt.lastMade.Add(time.Nanosecond)
	}
	rt.lastMade = now
	return now
}

func (rt *Runtime) podDir(id store.PodID) string {
	return filepath.Join(rt.cfg.State, "pods", string(id))
}

func (rt *Runtime) volumeDir(id store.ContainerID) string {
	return filepath.Join(rt.cfg.Root, "volumes", string(id))
}

// findPod finds a pod by its id or by the beginning of it.
func (rt *Runtime) findPod(id string) (*pod, error) {
	return find("pod", id, rt.podAt, rt.cfg.Store.FindPod)
}

// findContainer finds a container by its id or by the beginning of it.
func (rt *Runtime) findContainer(id string) (*container, error) {
	return find("container", id, rt.containerAt, rt.cfg.Store.FindContainer)
}

func (rt *Runtime) podAt(id store.PodID) *pod {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.pods[id]
}

func (rt *Runtime) containerAt(id store.ContainerID) *container {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.containers[id]
}

// find looks for an object of that id, and then for the one whose id begins so.
func find[K ~string, O any](kind, id string, at func(K) *O, full func(prefix string) (K, error)) (*O, error) {
	if o := at(K(id)); o != nil {
		return o, nil
	}
	k, err := full(id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if err == nil {
		if o := at(k); o != nil {
			return o, nil
		}
	}
	return nil, fmt.Errorf("%s %q: %w", kind, id, ErrNotFound)
}

// podRecord finds a pod and what is remembered of it.
func (rt *Runtime) podRecord(id string) (*pod, store.Pod, error) {
	p, err := rt.findPod(id)
	if err != nil {
		return nil, store.Pod{}, err
	}
	r, err := p.record()
	return p, r, err
}

// containerRecord is the same for a container.
func (rt *Runtime) containerRecord(id string) (*container, store.Container, error) {
	c, err := rt.findContainer(id)
	if err != nil {
		return nil, store.Container{}, err
	}
	r, err := c.record()
	return c, r, err
}

// notMade is for what is being made, and is not shown before that is done.
func notMade(kind, id string) error {
	return fmt.Errorf("%s %s is still being made: %w", kind, id, ErrNotFound)
}
