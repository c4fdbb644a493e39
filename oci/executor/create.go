// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	_ "github.com/opencontainers/cgroups/devices" // lets the managers set device rules
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/wire"
)

// checkID refuses an id that could not be a file name and a word of the keeper's
// messages. By hand: a regular expression is compiled when a process starts, and
// every create and exec starts one of this binary.
func checkID(id string) error {
	const most = 100
	ok := len(id) > 0 && len(id) <= most && id[0] != '.' && id[0] != '-'
	for i := 0; ok && i < len(id); i++ {
		b := id[i]
		ok = b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '_' || b == '.' || b == '-'
	}
	// What ends so is a temporary or an exit file (see files).
	ok = ok && !strings.HasSuffix(id, ".tmp") && !strings.HasSuffix(id, ".exit")
	if !ok {
		return invalid("id %.120q: want up to %d letters, digits, '_', '.', '-', the first no '.' or '-'", id, most)
	}
	return nil
}

// create makes a container whose process waits to be started.
//
// Its record is written before anything else. Whatever happens after, here or in
// the next executor, destroy takes back.
func (x *Executor) create(ctx context.Context, req *wire.Create) (wire.Created, error) {
	if err := checkID(req.ID); err != nil {
		return wire.Created{}, err
	}
	if req.Spec == nil || req.Spec.Process == nil || req.Spec.Linux == nil {
		return wire.Created{}, invalid("container %s: spec without process or linux part", req.ID)
	}
	if r := req.Rootfs; r.Bind == "" && (len(r.Lower) == 0 || len(r.Lower) == 1 && r.Upper == "") {
		return wire.Created{}, invalid("container %s: a root file system is a folder, or layers below an upper one, or two layers and more", req.ID)
	}
	if req.LogMax > lineCap {
		return wire.Created{}, invalid("container %s: log lines of %d bytes: the limit is %d", req.ID, req.LogMax, lineCap)
	}
	c := newContainer(req.ID)
	c.rec = record{
		ID: req.ID, Pod: req.Pod, CgroupArg: req.Spec.Linux.CgroupsPath, Systemd: req.Systemd,
		LogPath: req.LogPath, LogMax: req.LogMax, TTY: req.TTY,
		Stdin: req.Stdin, StdinOnce: req.StdinOnce, OwnRoot: req.Rootfs.Bind == "",
	}
	c.tail = newTail(x.pump, c.id, x.files.in(c.id, "tail"), req.LogMax)
	close(c.settled)
	_, _ = x.find(ctx, c.id) // one of an executor that has died may be on its way out
	c.op.Lock()
	defer c.op.Unlock()
	defer close(c.made)
	x.mu.Lock()
	if err := ctx.Err(); err != nil {
		// Its caller has gone, and may have deleted it already: nobody would do so again.
		x.mu.Unlock()
		return wire.Created{}, fmt.Errorf("container %s was not begun: %w", c.id, err)
	}
	if x.containers[c.id] != nil {
		x.mu.Unlock()
		return wire.Created{}, &wire.Error{Code: wire.Exists, Message: "container " + c.id + " exists"}
	}
	if u := x.unread[c.id]; u != nil {
		x.mu.Unlock()
		return wire.Created{}, u.refuse(wire.Exists, "delete it first")
	}
	x.containers[c.id] = c
	x.mu.Unlock()

	if err := x.build(ctx, c, req); err != nil {
		return wire.Created{}, joinUndo(err, x.destroy(c))
	}
	return c.rec.Process, nil
}

// joinUndo adds what failed while an error was being undone.
func joinUndo(err, undo error) error {
	if undo == nil {
		return err
	}
	return fmt.Errorf("%w (and while taking it back: %w)", err, undo)
}

// build does the work of create, in the order in which destroy undoes it.
func (x *Executor) build(ctx context.Context, c *container, req *wire.Create) error {
	if err := os.Mkdir(x.files.container(c.id), 0o700); err != nil {
		return err
	}
	if err := write(x.files.in(c.id, "record"), c.rec); err != nil {
		return err
	}
	if err := reserve(x.files.exit(c.id, "")); err != nil {
		return err
	}
	config, giveBack, err := x.config(ctx, c, req)
	defer func() {
		for _, fn := range giveBack {
			if err := fn(); err != nil {
				klog.ErrorS(err, "mount lent for a start stays", "container", c.id)
			}
		}
	}()
	if err != nil {
		return err
	}
	// Where its cgroups will be must be known before they are made: a kill in the
	// middle of libcontainer's work leaves no other trace of them.
	cm, err := manager.New(config.Cgroups)
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	c.mu.Lock()
	c.rec.Cgroup = cm.GetPaths()
	c.mu.Unlock()
	if err := x.oomBegin(c); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	if err := write(x.files.in(c.id, "record"), c.rec); err != nil {
		return err
	}
	return x.spawn(c, req, config)
}

// config makes libcontainer's configuration from the request. The returned
// functions are to be called once the container has pivoted, or never will.
func (x *Executor) config(ctx context.Context, c *container, req *wire.Create) (config *configs.Config, giveBack []func() error, err error) {
	spec := req.Spec
	root := req.Rootfs.Bind
	if root == "" {
		root, err = x.mnt.mountRoot(c.id, overlay{
			lower: req.Rootfs.Lower, upper: req.Rootfs.Upper, work: req.Rootfs.Work, volatile: req.Rootfs.Volatile,
		})
		if err != nil {
			return nil, nil, err
		}
		// Only the mount: libcontainer starts each exec with the root's path as its
		// directory, before it enters the container, so the folder must be there.
		giveBack = append(giveBack, func() error { return x.mnt.detachRoot(c.id) })
	}
	if spec.Root == nil {
		spec.Root = &specs.Root{}
	}
	spec.Root.Path = root
	back, err := x.fillNamespaces(ctx, c, spec)
	giveBack = append(giveBack, back...)
	if err != nil {
		return nil, giveBack, err
	}
	for i := range spec.Mounts {
		if spec.Mounts[i].Source != wire.PodShm {
			continue
		}
		if _, err := x.findPod(c.rec.Pod); err != nil {
			return nil, giveBack, err
		}
		path, back, err := x.mnt.lendShm(c.rec.Pod, c.id)
		if err != nil {
			return nil, giveBack, fmt.Errorf("/dev/shm of pod %s: %w", c.rec.Pod, err)
		}
		spec.Mounts[i].Source = path
		giveBack = append(giveBack, back)
	}
	if req.Systemd {
		// Else systemd keeps a scope that has failed, as by an out-of-memory kill, for ever.
		if spec.Annotations == nil {
			spec.Annotations = make(map[string]string)
		}
		spec.Annotations["org.systemd.property.CollectMode"] = "'inactive-or-failed'"
	}
	spec.Process.OOMScoreAdj = x.limits.oomScoreAdj(spec.Process.OOMScoreAdj)
	config, err = specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: c.id, UseSystemdCgroup: req.Systemd, Spec: spec,
		NoPivotRoot: req.NoPivot, NoNewKeyring: req.NoNewKeyring,
	})
	if err != nil {
		return nil, giveBack, invalid("container %s: %v", c.id, err)
	}
	config.Capabilities = x.limits.capabilities(spec.Process.Capabilities)
	return config, giveBack, nil
}

// fillNamespaces replaces the placeholders by paths. They go through our own
// descriptors, which name the namespace itself and not whoever now has its path. The
// returned functions close those that were opened for it.
func (x *Executor) fillNamespaces(ctx context.Context, c *container, spec *specs.Spec) (giveBack []func() error, err error) {
	for i := range spec.Linux.Namespaces {
		ns := &spec.Linux.Namespaces[i]
		kind := nsName(ns.Type)
		switch {
		case ns.Path == wire.FromPod:
			p, err := x.findPod(c.rec.Pod)
			if err != nil {
				return giveBack, err
			}
			fd, ok := p.ns[kind]
			if !ok {
				return giveBack, invalid("container %s: pod %s holds no %s namespace", c.id, p.id, kind)
			}
			ns.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
		case strings.HasPrefix(ns.Path, wire.FromContainer):
			other, err := x.find(ctx, strings.TrimPrefix(ns.Path, wire.FromContainer))
			if err != nil {
				return giveBack, err
			}
			fd, err := other.openNamespace(kind)
			if err != nil {
				return giveBack, err
			}
			giveBack = append(giveBack, func() error { return unix.Close(fd) })
			ns.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
		}
	}
	return giveBack, nil
}

// openNamespace opens a namespace of the container's first process.
func (c *container) openNamespace(kind string) (fd int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock() // over nothing that waits; and the pidfd stays open
	if c.state != wire.Running && c.state != wire.IsCreated || c.pidfd < 0 {
		return -1, badState(c.id, c.state, "its "+kind+" namespace is gone")
	}
	path := fmt.Sprintf("/proc/%d/ns/%s", c.rec.Process.PID, kind)
	fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	// The number may be another's by now. It was this process's if that still lives.
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}, 0)
	if err != nil || n > 0 {
		unix.Close(fd)
		return -1, badState(c.id, wire.Exited, "its "+kind+" namespace is gone")
	}
	return fd, nil
}

// nsName is a namespace's name under /proc/PID/ns.
func nsName(t specs.LinuxNamespaceType) string {
	switch t {
	case specs.NetworkNamespace:
		return "net"
	case specs.MountNamespace:
		return "mnt"
	default:
		return string(t)
	}
}

// spawn starts libcontainer's init and registers what came of it, so that from
// here on the container outlives this executor.
func (x *Executor) spawn(c *container, req *wire.Create, config *configs.Config) error {
	process, err := x.process(req.Spec.Process, req.Env)
	if err != nil {
		return err
	}
	process.Init = true
	io, err := x.openStdio(c, req, process)
	if err != nil {
		return err
	}
	defer io.closeChildEnds()
	lc, err := libcontainer.Create(x.files.libcontainer(), c.id, config)
	if err != nil {
		io.closeOwnEnds()
		return fmt.Errorf("libcontainer: %w", err)
	}
	defer x.starts.begin()()
	if err := lc.Start(process); err != nil {
		io.closeOwnEnds()
		return err
	}
	pid, err := process.Pid()
	if err != nil {
		return err
	}
	if err := io.receiveConsole(req.Console); err != nil {
		io.closeOwnEnds()
		return errors.Join(err, killChild(pid, killTime))
	}
	return x.register(c, pid, io)
}

// register makes the process known: pidfd, record, keeper, poller.
func (x *Executor) register(c *container, pid int, io *stdio) error {
	// Our child, not waited for: the pid is its own until then.
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		io.closeOwnEnds()
		return errors.Join(fmt.Errorf("pidfd: %w", err), killChild(pid, killTime))
	}
	stat, err := readStat(pid)
	if err != nil {
		io.closeOwnEnds()
		unix.Close(pidfd)
		return errors.Join(err, killChild(pid, killTime))
	}
	c.mu.Lock()
	c.pidfd, c.stdin, c.out = pidfd, io.stdin, io.out
	c.rec.Process = wire.Created{PID: pid, Start: stat.start}
	c.state = wire.IsCreated
	rec := c.rec
	c.mu.Unlock()
	c.tail.open(io.out, io.log, true)

	if err := x.hold(c, io.log.fd); err != nil {
		return err
	}
	if c.stdin >= 0 {
		if err := x.keeper.Put(stdinName(c.id), c.stdin); err != nil {
			return err
		}
	}
	// Last: a record with a process says that all of it is there and is to go on. The
	// next executor takes back what has none.
	if err := write(x.files.in(c.id, "record"), rec); err != nil {
		return err
	}
	return x.watch(c)
}

// watch begins to listen to a container's pidfd and streams.
func (x *Executor) watch(c *container) error {
	if err := x.watchProcess(c); err != nil {
		return err
	}
	return c.tail.start()
}

// watchProcess begins to listen to a container's pidfd. Again is no error.
func (x *Executor) watchProcess(c *container) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 || c.token != 0 {
		return nil
	}
	token, err := x.poller.watch(c.pidfd, unix.EPOLLIN|unix.EPOLLONESHOT, func(uint32) { go x.ended(c) })
	c.token = token
	return err
}

// killChild ends and reaps a child that could not be registered. One that does not end
// in time is in an uninterruptible sleep, and stays a child that nobody waits for.
func killChild(pid int, within time.Duration) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	// Not by a pidfd: there may be no descriptor left, which is why it was not registered.
	deadline := time.Now().Add(within)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		n, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || n == pid:
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("process %d was killed and does not end", pid)
		}
		time.Sleep(wait) //nolint:forbidigo // see above
	}
}

// start lets the container's own program run.
func (x *Executor) start(ctx context.Context, id string) error {
	c, err := x.find(ctx, id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if !x.isKnown(c) {
		return notFound("container", id) // deleted meanwhile, and another may have its id
	}
	c.mu.Lock()
	state := c.state
	c.mu.Unlock()
	if state != wire.IsCreated {
		return badState(id, state, "only a created container can be started")
	}
	if err := x.openStart(c); err != nil {
		return fmt.Errorf("start %s: %w", id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == wire.IsCreated { // not if it has ended already
		c.state = wire.Running
	}
	return nil
}

// startLook is how often, in milliseconds, a start that has not been answered looks
// whether it was done before.
const startLook = 20

// openStart lets init go on to the container's program: it waits until somebody
// opens the other end of a FIFO, and writes a byte before it executes the program.
// libcontainer's own Container.Exec leaves a thread behind that waits for ever when
// init has died meanwhile.
func (x *Executor) openStart(c *container) error {
	c.mu.Lock()
	pidfd, err := unix.FcntlInt(uintptr(c.pidfd), unix.F_DUPFD_CLOEXEC, 5)
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("pidfd: %w", err)
	}
	defer unix.Close(pidfd)
	path := x.files.execFIFO(c.id)
	fifo, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fifo)
	for {
		fds := []unix.PollFd{{Fd: int32(fifo), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, startLook)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n == 0 && x.runs(c) == wire.Running {
			// An executor before us took the byte, and died before it could say so; init
			// had yet to come to its program.
			return remove(path)
		}
		// First the byte: the program may have ended by now as well.
		var b [1]byte
		n, err = unix.Read(fifo, b[:])
		switch {
		case n == 1:
			return remove(path)
		case n == 0 && fds[1].Revents != 0:
			return errors.New("its process has ended before it was started")
		case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return &os.PathError{Op: "read", Path: path, Err: err}
		}
	}
}
