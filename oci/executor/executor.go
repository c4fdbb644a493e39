// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"crypto/rand"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/keeper"
	"github.com/berth-cri/berth/oci/wire"
)

// Executor is the process's one instance: see the package's documentation.
type Executor struct {
	files   files
	binary  string // path of the binary, for the keeper
	version string
	boot    string // this executor's own name: changes with each start
	began   time.Time

	keeper holder
	mnt    *mountNS
	poller *poller
	pump   *pump
	host   cgroup.Host
	limits limits
	listen int

	gate   *gate // of execs that are being started
	starts starts

	oomMu sync.Mutex // the accounts of slices, in their files; before the others

	mu         sync.Mutex
	containers map[string]*container // +checklocks:mu
	// containers whose record cannot be read
	unread   map[string]*unread // +checklocks:mu
	pods     map[string]*pod    // +checklocks:mu
	watchers map[*watcher]bool  // +checklocks:mu

	attached atomic.Int64
	panics   atomic.Uint64
}

// Config is what a start needs.
type Config struct {
	State  string // folder; must be on a tmpfs that a reboot empties
	Binary string // path of this binary, which the keeper starts
	Build  string // version, for people
}

// Run serves until the process ends: it returns only with an error.
//
// Preconditions: the process was started by the keeper, with the socket to it as
// descriptor 3, and main's init locked the main thread (see cmd/berth-executor).
func Run(cfg Config) error {
	logrus.SetLevel(logrus.ErrorLevel) // libcontainer's own words; its errors come back to us
	logrus.SetOutput(os.Stderr)
	// Each init is a Go process of its own: one thread is enough for it, and cheaper.
	if err := os.Setenv("GOMAXPROCS", "1"); err != nil {
		return err
	}
	debug.SetGCPercent(50) // a small heap matters more here than a little time

	x, held, err := open(cfg)
	if err != nil {
		return err
	}
	go x.mindKeeper() // first: a keeper may die while we take over, and to end then would leave nobody
	left, err := x.adopt(held)
	if err != nil {
		return err
	}
	klog.InfoS("executor serves", "pid", os.Getpid(), "build", x.version, "containers", len(x.containers), "took", time.Since(x.began))
	go func() {
		if err := x.poller.run(); err != nil {
			klog.ErrorS(err, "poller ended")
			os.Exit(1) // the keeper starts the next
		}
	}()
	x.settleAll(left)
	return x.serve()
}

func open(cfg Config) (*Executor, []keeper.Held, error) {
	x := &Executor{
		files:      files{state: cfg.State},
		binary:     cfg.Binary,
		version:    cfg.Build,
		boot:       rand.Text(),
		began:      time.Now(),
		containers: make(map[string]*container),
		pods:       make(map[string]*pod),
		watchers:   make(map[*watcher]bool),
		gate:       newGate(),
		unread:     make(map[string]*unread),
	}
	var (
		held []keeper.Held
		err  error
	)
	x.keeper.alone = &alone{is: make(chan struct{})}
	if x.keeper.Client, held, err = keeper.Open(3); err != nil {
		return nil, nil, err
	}
	if err = x.files.makeFolders(); err != nil {
		return nil, nil, err
	}
	if x.mnt, err = openMountNS(cfg.State); err != nil {
		return nil, nil, err
	}
	if x.host, err = cgroup.Open("/sys/fs/cgroup"); err != nil {
		return nil, nil, err
	}
	if x.limits, err = ownLimits(); err != nil {
		return nil, nil, err
	}
	if x.poller, err = newPoller(); err != nil {
		return nil, nil, err
	}
	null, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/null: %w", err)
	}
	x.pump = newPump(x.poller, null, func(format string, args ...any) { klog.Warningf(format, args...) })
	x.pump.more, x.pump.less = x.newJournal, x.dropJournal
	return x, held, nil
}

// aloneTime is how long operations wait for this executor to become the keeper.
const aloneTime = 3 * time.Second

// mindKeeper makes this process the keeper when the keeper is gone.
func (x *Executor) mindKeeper() {
	<-x.keeper.Lost()
	began, alone := time.Now(), false
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := x.keeper.Become(x.files.state, x.binary)
		// Only for want of memory or descriptors, or a binary that is broken. The
		// containers are still ours, signals, exits and logs go on; what needs a keeper
		// waits, and after a while is answered with the reason.
		klog.ErrorS(err, "keeper is gone, and this executor could not take its place; it tries again")
		if !alone && time.Since(began) > aloneTime {
			x.keeper.alone.why = err
			close(x.keeper.alone.is)
			alone = true
		}
		time.Sleep(wait) //nolint:forbidigo // there is no event for memory that is free again
	}
}

// report answers OpReport.
func (x *Executor) report() wire.Report {
	r := wire.Report{
		Build: x.version, PID: os.Getpid(), KeeperPID: os.Getppid(), Started: x.began,
		Held: x.keeper.Names(), Attached: int(x.attached.Load()), Panics: x.panics.Load(),
	}
	for _, c := range x.all() {
		r.Containers++
		c.mu.Lock()
		r.Execs += len(c.execs)
		c.mu.Unlock()
	}
	r.LogBytes, r.LogDropped, r.Discarded = x.pump.written.Load(), x.pump.dropped.Load(), x.pump.discarded.Load()
	return r
}
