// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/wire"
)

// exec runs one more process in a container. It holds no lock while libcontainer
// works: one that hangs, because its working directory is on a dead mount, delays
// nothing else.
func (x *Executor) exec(req *wire.Exec, m *wire.Message) (wire.Created, error) {
	if err := checkID(req.Exec); err != nil {
		return wire.Created{}, err
	}
	if req.Process == nil {
		return wire.Created{}, invalid("exec in %s: no process", req.ID)
	}
	c, err := x.find(req.ID)
	if err != nil {
		return wire.Created{}, err
	}
	e := &execProc{c: c, pidfd: -1, exited: make(chan struct{}), rec: execRecord{ID: c.id, Exec: req.Exec}}
	if req.OwnCgroup {
		e.rec.Sub = "exec-" + req.Exec
	}
	c.mu.Lock()
	switch {
	case c.state != wire.Running:
		defer c.mu.Unlock()
		return wire.Created{}, badState(c.id, c.state, "exec needs a running container")
	case c.execs[req.Exec] != nil:
		defer c.mu.Unlock()
		return wire.Created{}, &wire.Error{Code: wire.Exists, Message: fmt.Sprintf("exec %s in %s exists", req.Exec, c.id)}
	}
	c.execs[req.Exec] = e
	c.mu.Unlock()

	if err := x.runExec(e, req, m); err != nil {
		c.mu.Lock()
		delete(c.execs, req.Exec)
		c.mu.Unlock()
		return wire.Created{}, joinUndo(err, x.dropExec(e))
	}
	return e.rec.Process, nil
}

func (x *Executor) runExec(e *execProc, req *wire.Exec, m *wire.Message) error {
	if err := os.MkdirAll(x.files.execs(e.c.id), 0o700); err != nil {
		return err
	}
	// Entered before it is done: the next executor finds the cgroup by it.
	if err := write(x.files.exec(e.c.id, e.rec.Exec), e.rec); err != nil {
		return err
	}
	process, err := x.process(req.Process)
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
	}
	if err != nil {
		closeAll()
		return nil, err
	}
	return closeAll, nil
}

func (x *Executor) registerExec(e *execProc, process *libcontainer.Process) error {
	pid, err := process.Pid()
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Join(fmt.Errorf("pidfd: %w", err), killChild(pid))
	}
	stat, err := readStat(pid)
	if err != nil {
		unix.Close(pidfd)
		return errors.Join(err, killChild(pid))
	}
	e.rec.Process = wire.Created{PID: pid, Start: stat.start}
	e.mu.Lock()
	e.pidfd = pidfd
	e.mu.Unlock()
	err = write(x.files.exec(e.c.id, e.rec.Exec), e.rec)
	if err == nil {
		err = x.keeper.Put(execName(e.rec), pidfd)
	}
	if err == nil {
		err = x.watchExec(e)
	}
	if err != nil {
		return errors.Join(err, killChild(pid))
	}
	return nil
}

func (x *Executor) watchExec(e *execProc) error {
	e.mu.Lock()
	defer e.mu.Unlock()
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
	pidfd := e.pidfd
	e.mu.Unlock()
	if pidfd < 0 {
		return
	}
	exit := x.collect(pidfd, e.rec.Process)
	exit.ID, exit.Exec = e.c.id, e.rec.Exec
	x.settle(x.files.exit(e.c.id, e.rec.Exec), pidfd, e.rec.Process, exit)
	x.closeExec(e)
	if e.rec.Sub != "" {
		if sub, err := e.sub(); err == nil {
			// Not empty if it left something behind: then it goes with the container.
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = sub.Remove(ctx)
		}
	}
	e.mu.Lock()
	e.exit = exit
	close(e.exited)
	e.mu.Unlock()
	x.publish(exit)
}

// closeExec lets go of an exec'd process's pidfd, here and in the keeper.
func (x *Executor) closeExec(e *execProc) {
	if err := x.keeper.Delete(execName(e.rec)); err != nil {
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

// dropExec takes back what a failed exec has done.
func (x *Executor) dropExec(e *execProc) error {
	x.closeExec(e)
	var err error
	if e.rec.Sub != "" {
		var sub cgroup.Sub
		if sub, err = e.sub(); err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), killTime)
			defer cancel()
			err = errors.Join(sub.Kill(ctx), sub.Remove(ctx))
		}
	}
	return errors.Join(err, remove(x.files.exec(e.c.id, e.rec.Exec)))
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
	c, err := x.find(t.ID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	e := c.execs[t.Exec]
	c.mu.Unlock()
	if e == nil {
		return notFound("exec", t.ID+"/"+t.Exec)
	}
	e.mu.Lock()
	if e.pidfd >= 0 {
		err = unix.PidfdSendSignal(e.pidfd, unix.SIGKILL, nil, 0)
	}
	e.mu.Unlock()
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill exec %s in %s: %w", t.Exec, t.ID, err)
	}
	if e.rec.Sub != "" {
		sub, err := e.sub()
		if err != nil {
			return err
		}
		if err := errors.Join(sub.Kill(ctx), sub.Remove(ctx)); err != nil {
			return err
		}
	}
	select {
	case <-e.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end of exec %s in %s: %w", t.Exec, t.ID, ctx.Err())
	}
}
