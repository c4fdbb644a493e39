// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/keeper"
	"github.com/berth-cri/berth/oci/wire"
)

const (
	// unwanted is the pidfd of an exec'd process that is to be killed as soon as there
	// is one.
	unwanted = -2

	// dropTime is how long taking back an exec may keep others waiting, a new executor's
	// start among them. What takes longer is in an uninterruptible sleep.
	dropTime = 500 * time.Millisecond
)

// exec runs one more process in a container. It holds no lock while libcontainer
// works: one that hangs, because its working directory is on a dead mount, delays
// nothing else.
func (x *Executor) exec(ctx context.Context, req *wire.Exec, m *wire.Message) (wire.Created, error) {
	if err := checkID(req.Exec); err != nil {
		return wire.Created{}, err
	}
	if req.Process == nil {
		return wire.Created{}, invalid("exec in %s: no process", req.ID)
	}
	c, err := x.find(ctx, req.ID)
	if err != nil {
		return wire.Created{}, err
	}
	c.mu.Lock()
	pod := "pod " + c.rec.Pod
	if c.rec.Pod == "" {
		pod = "container " + c.id
	}
	c.mu.Unlock()
	leave, err := x.gate.enter(ctx, pod, fmt.Sprintf("exec %s in %s, directory %q", req.Exec, c.id, req.Process.Cwd))
	if err != nil {
		return wire.Created{}, err
	}
	defer leave()
	e := &execProc{c: c, pidfd: -1, exited: make(chan struct{}), rec: execRecord{ID: c.id, Exec: req.Exec}}
	if req.OwnCgroup {
		e.rec.Sub = "exec-" + req.Exec
	}
	c.mu.Lock()
	switch {
	case ctx.Err() != nil:
		defer c.mu.Unlock()
		return wire.Created{}, ctx.Err() // as in create
	case c.state != wire.Running:
		defer c.mu.Unlock()
		return wire.Created{}, badState(c.id, c.state, "exec needs a running container")
	case c.execs[req.Exec] != nil:
		defer c.mu.Unlock()
		return wire.Created{}, c.execs[req.Exec].again()
	}
	c.execs[req.Exec] = e
	c.mu.Unlock()

	err = x.runExec(e, req, m)
	if err == nil {
		return e.rec.Process, nil
	}
	if errors.Is(err, keeper.ErrLost) {
		// There will be no answer, and the next executor takes it back: here, what is
		// still to be done could come too late or go only half way.
		return wire.Created{}, err
	}
	err = joinUndo(err, x.dropExec(e))
	c.mu.Lock()
	delete(c.execs, req.Exec)
	state := c.state
	c.mu.Unlock()
	close(e.exited)
	if state != wire.Running {
		return wire.Created{}, &wire.Error{Code: wire.BadState, Message: fmt.Sprintf("container %s has ended: %v", c.id, err)}
	}
	return wire.Created{}, err
}

// again answers a request with an id that was used before. Nothing is run twice: for
// one that has an answer to come, this is it.
func (e *execProc) again() error {
	if e.lost {
		return &wire.Error{Code: wire.Lost, Message: fmt.Sprintf("exec %s in %s: %s", e.rec.Exec, e.c.id, lostReason)}
	}
	return &wire.Error{Code: wire.Exists, Message: fmt.Sprintf("exec %s in %s exists", e.rec.Exec, e.c.id)}
}

const lostReason = "the executor died while it was being started: it may have run, and does so no more"

func (x *Executor) runExec(e *execProc, req *wire.Exec, m *wire.Message) error {
	if err := os.MkdirAll(x.files.execs(e.c.id), 0o700); err != nil {
		return err
	}
	process, err := x.process(req.Process, req.Env)
	if err != nil {
		return err
	}
	closeStdio, err := execStdio(process, req, m)
	if err != nil {
		return err
	}
	defer closeStdio()
	lc, err := libcontainer.Load(x.files.libcontainer(), e.c.id)
	if err != nil {
		return fmt.Errorf("libcontainer: %w", err)
	}
	// Entered before it is done: the next executor finds the cgroup by it, and knows
	// that it may have run. It is not run again then.
	if err := write(x.files.exec(e.c.id, e.rec.Exec), e.rec); err != nil {
		return err
	}
	if err := reserve(x.files.exit(e.c.id, e.rec.Exec)); err != nil {
		return err
	}
	if e.rec.Sub != "" {
		sub, err := e.sub()
		if err != nil {
			return err
		}
		if err := sub.Create(); err != nil {
			return err
		}
		process.SubCgroupPaths = sub.SubCgroupPaths()
	}
	defer x.starts.begin()()
	if err := lc.Start(process); err != nil {
		return err
	}
	return x.registerExec(e, process)
}

// execStdio gives process the descriptors that came with the request.
func execStdio(process *libcontainer.Process, req *wire.Exec, m *wire.Message) (closeAll func(), err error) {
	var files []*os.File
	closeAll = func() {
		for _, f := range files {
			f.Close()
		}
	}
	next := func() *os.File {
		f, terr := m.Take(len(files))
		if terr != nil {
			err = errors.Join(err, terr)
			return nil
		}
		files = append(files, f)
		return f
	}
	if req.Process.Terminal {
		process.ConsoleSocket = next()
	} else {
		// A typed nil in an interface is not nil: hence the conditions.
		if req.Stdin {
			if f := next(); f != nil {
				process.Stdin = f
			}
		}
		if req.Stdout {
			if f := next(); f != nil {
				process.Stdout = f
			}
		}
		if req.Stderr {
			if f := next(); f != nil {
				process.Stderr = f
			}
		}
		// Whoever made the pipe may have wanted its own end not to block, and has set that
		// for both. A program does not expect EAGAIN from its output.
		for _, f := range files {
			err = errors.Join(err, setBlocking(f))
		}
	}
	if err != nil {
		closeAll()
		return nil, err
	}
	return closeAll, nil
}

func setBlocking(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), false) })
	return errors.Join(cerr, err)
}

func (x *Executor) registerExec(e *execProc, process *libcontainer.Process) error {
	pid, err := process.Pid()
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Join(fmt.Errorf("pidfd: %w", err), killChild(pid, killTime))
	}
	stat, err := readStat(pid)
	if err != nil {
		unix.Close(pidfd)
		return errors.Join(err, killChild(pid, killTime))
	}
	e.mu.Lock()
	killed := e.pidfd == unwanted
	e.rec.Process, e.pidfd = wire.Created{PID: pid, Start: stat.start}, pidfd
	e.mu.Unlock()
	// In this order: a record with a process says that the keeper knows whose exit to
	// write down, should we die. Before it is there the next executor takes the exec back.
	err = x.holdExec(e)
	if err == nil {
		err = write(x.files.exec(e.c.id, e.rec.Exec), e.rec)
	}
	if err == nil {
		err = x.watchExec(e)
	}
	switch {
	case errors.Is(err, keeper.ErrLost):
		return err
	case err != nil:
		return errors.Join(err, killChild(pid, killTime))
	case killed:
		// By execKill, which waits for the end and then takes the rest of the tree.
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // ended already is as good
	}
	return nil
}

func (x *Executor) watchExec(e *execProc) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pidfd < 0 || e.token != 0 {
		return nil // dealt with, or done before
	}
	token, err := x.poller.watch(e.pidfd, unix.EPOLLIN|unix.EPOLLONESHOT, func(uint32) { go x.execEnded(e) })
	e.token = token
	return err
}

// execEnded deals with the end of an exec'd process. What it left running in the
// background goes on, as with the other runtimes; whoever wants it ended too asks
// for execKill.
func (x *Executor) execEnded(e *execProc) {
	defer x.recoverTo("end of exec "+e.rec.Exec, nil)
	e.mu.Lock()
	pidfd, known := e.pidfd, e.exit != nil
	e.mu.Unlock()
	if pidfd < 0 {
		return
	}
	if !known {
		exit := x.collect(pidfd, e.rec.Process)
		exit.ID, exit.Exec = e.c.id, e.rec.Exec
		x.settle(x.files.exit(e.c.id, e.rec.Exec), pidfd, e.rec.Process, exit)
		x.removeSub(e)
		e.mu.Lock()
		e.exit = exit
		close(e.exited)
		e.mu.Unlock()
		x.publish(exit)
	} else {
		x.removeSub(e) // an executor died between the exit file and the rest
	}
	// After the message: a keeper that is slow delays nobody.
	x.closeExec(e)
}

// removeSub removes the cgroup of an exec that has ended. One in which something
// was left goes with the container.
func (x *Executor) removeSub(e *execProc) {
	if e.rec.Sub == "" {
		return
	}
	if sub, err := e.sub(); err == nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = sub.Remove(ctx)
	}
}

// closeExec lets go of an exec'd process's pidfd, here and in the keeper.
func (x *Executor) closeExec(e *execProc) {
	e.keep.Lock()
	e.letGo = true
	err := x.keeper.Delete(execName(e.rec))
	e.keep.Unlock()
	if err != nil {
		klog.ErrorS(err, "keeper still holds an exec that has ended", "container", e.c.id, "exec", e.rec.Exec)
		return
	}
	// Once the name is gone the keeper writes no more, but it may have just before.
	_ = remove(x.files.keeperExit(key(e.rec.Process)))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pidfd >= 0 {
		x.poller.forget(e.pidfd, e.token)
		unix.Close(e.pidfd)
		e.pidfd = -1
	}
}

// dropExec takes back what an exec has done that failed.
func (x *Executor) dropExec(e *execProc) error {
	return errors.Join(x.stopExec(e), remove(x.files.exit(e.c.id, e.rec.Exec)+".tmp"), remove(x.files.exec(e.c.id, e.rec.Exec)))
}

// stopExec ends what there may be of an exec that failed, or that was being started
// when its executor died.
func (x *Executor) stopExec(e *execProc) error {
	x.closeExec(e)
	if err := x.killOrphan(e); err != nil {
		klog.ErrorS(err, "an exec that was being started may be left in the container", "container", e.c.id, "exec", e.rec.Exec)
	}
	if err := x.reapStrays(); err != nil {
		klog.ErrorS(err, "children of an exec that failed may be left", "container", e.c.id, "exec", e.rec.Exec)
	}
	var err error
	if e.rec.Sub != "" {
		dropped := make(chan error, 1)
		go func() { dropped <- x.dropSub(e) }()
		late := time.NewTimer(dropTime)
		defer late.Stop()
		select {
		case err = <-dropped:
		case <-late.C: // it goes on; what it cannot end goes with the container
		}
	}
	return err
}

// execLost deals with an exec that was being started when its executor died. Its
// caller has been told nothing but the end of the connection: that it is lost he is
// told when he asks again, and everybody by its exit.
func (x *Executor) execLost(e *execProc) error {
	if err := x.stopExec(e); err != nil {
		return err
	}
	exit := &wire.Exit{ID: e.c.id, Exec: e.rec.Exec, Code: 255, At: time.Now(), Lost: true, Reason: lostReason}
	return x.noteExec(e, exit)
}

func (x *Executor) dropSub(e *execProc) error {
	sub, err := e.sub()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	return errors.Join(sub.Kill(ctx), sub.Remove(ctx))
}

func (e *execProc) sub() (cgroup.Sub, error) {
	group, err := e.c.group()
	if err != nil {
		return cgroup.Sub{}, err
	}
	return group.Sub(e.rec.Sub)
}

// execKill ends an exec'd process, with all it has started if it has a cgroup of
// its own, and returns once it has been reaped. One that has ended is no error.
func (x *Executor) execKill(ctx context.Context, t *wire.ExecTarget) error {
	c, err := x.find(ctx, t.ID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	e := c.execs[t.Exec]
	c.mu.Unlock()
	if e == nil {
		return notFound("exec", t.ID+"/"+t.Exec)
	}
	if err := e.kill(); err != nil {
		return err
	}
	var sub cgroup.Sub
	if e.rec.Sub != "" {
		if sub, err = e.sub(); err != nil {
			return err
		}
		if err := sub.Kill(ctx); err != nil {
			return err
		}
	}
	select {
	case <-e.exited:
	case <-ctx.Done():
		return fmt.Errorf("end of exec %s in %s: %w", t.Exec, t.ID, ctx.Err())
	}
	if e.rec.Sub == "" {
		return nil
	}
	// Once more: it may have been on its way into its cgroup.
	return errors.Join(sub.Kill(ctx), sub.Remove(ctx))
}

// kill sends SIGKILL, or has registerExec send it where there is no process yet.
func (e *execProc) kill() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.exit != nil:
		return nil
	case e.pidfd < 0:
		e.pidfd = unwanted
		return nil
	}
	err := unix.PidfdSendSignal(e.pidfd, unix.SIGKILL, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill exec %s in %s: %w", e.rec.Exec, e.c.id, err)
	}
	return nil
}
