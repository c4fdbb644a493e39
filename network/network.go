// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/store"
)

// Config says where things are. The folders are absolute.
type Config struct {
	ConfDir string   // CNI configurations; need not be there yet
	BinDirs []string // plugins, in the order in which they are looked for
	// CacheDir is ours alone, and is made if it is not there. It has to outlive a reboot, as the
	// addresses do that plugins keep on the disk.
	CacheDir string
	// MaxConfs is how many configurations a pod is attached to, the first as eth0, the next as eth1 and
	// so on. 0 means 1; a negative number means all there are.
	MaxConfs int
	// ConfTemplate is a file from which SetPodCIDR makes a configuration; empty: none.
	ConfTemplate string
	// SharedCaches are folders of attachments that others than berth may have made, which GC looks at;
	// nil: /var/lib/cni.
	SharedCaches []string

	// What the plugins of one ADD, CHECK or GC, of one DEL, and of one STATUS together may take.
	// 0 means DefaultAddTimeout, DefaultDelTimeout and DefaultStatusTimeout.
	AddTimeout, DelTimeout, StatusTimeout time.Duration
}

const (
	// DefaultAddTimeout leaves a kubelet, which gives RunPodSandbox four minutes, one for the other
	// steps and for the rollback, and so the plugin's own words. Address managers of clouds do take
	// more than one minute.
	DefaultAddTimeout = 3 * time.Minute
	// DefaultDelTimeout lies within the two minutes of StopPodSandbox.
	DefaultDelTimeout = 100 * time.Second
	// DefaultStatusTimeout is the distance between two questions of a kubelet.
	DefaultStatusTimeout = 10 * time.Second
)

// sharedCache is where libcni keeps results unless it is told otherwise.
const sharedCache = "/var/lib/cni"

func (c Config) withDefaults() (Config, error) {
	for name, dir := range map[string]string{"conf dir": c.ConfDir, "cache dir": c.CacheDir} {
		if !filepath.IsAbs(dir) {
			return Config{}, fmt.Errorf("%w %s %q: want an absolute path", ErrInvalid, name, dir)
		}
	}
	for _, dir := range c.BinDirs {
		if !filepath.IsAbs(dir) || strings.Contains(dir, ":") {
			return Config{}, fmt.Errorf("%w bin dir %q: want an absolute path without a colon", ErrInvalid, dir)
		}
	}
	if len(c.BinDirs) == 0 {
		return Config{}, fmt.Errorf("%w: no bin dirs", ErrInvalid)
	}
	c.ConfDir, c.CacheDir = filepath.Clean(c.ConfDir), filepath.Clean(c.CacheDir)
	if c.CacheDir == sharedCache || filepath.Dir(c.CacheDir) == sharedCache {
		return Config{}, fmt.Errorf("%w cache dir %s: others use it", ErrInvalid, c.CacheDir)
	}
	if c.SharedCaches == nil {
		c.SharedCaches = []string{sharedCache}
	}
	if c.MaxConfs == 0 {
		c.MaxConfs = 1
	}
	for d, def := range map[*time.Duration]time.Duration{
		&c.AddTimeout: DefaultAddTimeout, &c.DelTimeout: DefaultDelTimeout, &c.StatusTimeout: DefaultStatusTimeout,
	} {
		if *d == 0 {
			*d = def
		}
	}
	return c, nil
}

// Network connects pods by the configurations of one folder.
type Network struct {
	cfg     Config
	records records
	stuck   *stuckPlugins

	stop  chan struct{}  // closed by Close
	ended chan struct{}  // closed when the watcher and the prober have ended
	ask   chan struct{}  // tells the prober to ask; holds one
	write sync.Mutex     // of SetPodCIDR, so that two do not write at once; guards no field
	loops sync.WaitGroup // the watcher and the prober
	once  sync.Once

	mu sync.Mutex
	// +checklocks:mu
	confs confSet
	// +checklocks:mu
	probe probe
	// +checklocks:mu
	closed bool
	// changed is closed, and replaced, when confs or probe change.
	// +checklocks:mu
	changed chan struct{}
	// +checklocks:mu
	busy map[store.PodID]chan struct{} // closed when the operation on the pod ends
	// +checklocks:mu
	working int // operations on pods
	// +checklocks:mu
	gc *gcRun // under way
}

// Open reads the configurations, and watches them until Close. That there is none is no error: nodes
// start without.
func Open(ctx context.Context, cfg Config) (*Network, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	records, err := openRecords(cfg.CacheDir)
	if err != nil {
		return nil, fmt.Errorf("network: cache: %w", err)
	}
	n := &Network{
		cfg: cfg, records: records, stuck: &stuckPlugins{},
		stop: make(chan struct{}), ended: make(chan struct{}), ask: make(chan struct{}, 1),
		changed: make(chan struct{}), busy: make(map[store.PodID]chan struct{}),
	}
	log := klog.FromContext(ctx)
	n.reload(log, false) // if it is not settled, the watcher waits until it is
	n.loops.Add(2)
	go func() { defer n.loops.Done(); n.watch(log) }()
	go func() { defer n.loops.Done(); n.probes() }()
	go func() { n.loops.Wait(); close(n.ended) }()
	return n, nil
}

// closePatience is how long Close waits for a look at the plugins that does not come back.
const closePatience = 10 * time.Second

// Close ends the watching; a plugin that is being asked for its STATUS is killed. Operations under way
// go on to their ends, which is for their contexts to bring about; new ones get ErrClosed.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.once.Do(func() { close(n.stop) })
	select {
	case <-n.ended:
		return nil
	case <-time.After(closePatience):
		return errors.New("network: a folder of plugins or configurations does not answer")
	}
}

// attachable returns the configurations that a pod is attached to: the first valid ones.
func (n *Network) attachable() ([]conf, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attachableLocked()
}

// +checklocks:n.mu
func (n *Network) attachableLocked() ([]conf, error) {
	list := n.confs.valid
	if len(list) == 0 {
		return nil, n.confs.reason(n.cfg.ConfDir)
	}
	if n.cfg.MaxConfs > 0 {
		list = list[:min(len(list), n.cfg.MaxConfs)]
	}
	return list, nil
}

// enter waits until no other operation works on the pod, and keeps others out until leave is called.
// Specification, "Execution Parameters": no two operations at once for one container.
func (n *Network) enter(ctx context.Context, pod store.PodID) (leave func(), err error) {
	for {
		n.mu.Lock()
		other := n.busy[pod]
		switch {
		case n.closed:
			n.mu.Unlock()
			return nil, ErrClosed
		case other == nil && n.gc == nil:
			mine := make(chan struct{})
			n.busy[pod] = mine
			n.working++
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				delete(n.busy, pod)
				n.working--
				close(mine)
			}, nil
		case other == nil:
			// A GC gives way: what is attached now is not on the list that it was given.
			n.gc.cancel()
			other = n.gc.done
		}
		n.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// run returns libcni with a runner for one operation, its context, and its end, which lets go of the lock
// (nil: there is none).
func (n *Network) run(ctx context.Context, command string, pod store.PodID, lock *os.File, timeout time.Duration) (context.Context, func(), *libcni.CNIConfig) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: not done after %v", ErrTimeout, timeout))
	r := &runner{command: command, pod: pod, lock: lock, stuck: n.stuck, kill: killGroup, find: findPlugin, grace: killGrace}
	end := func() {
		cancel()
		if lock != nil {
			unlock(lock, r.killed)
		}
	}
	return ctx, end, libcni.NewCNIConfigWithCacheDir(n.cfg.BinDirs, n.cfg.CacheDir, r)
}

// named adds the network's name to an error of libcni, and takes out what libcni adds to that of a
// plugin, which names itself.
func named(network string, err error) error {
	if failed, ok := errors.AsType[*PluginError](err); ok {
		err = failed
	}
	return fmt.Errorf("network %s: %w", network, err)
}
