// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/wire"
)

// startPause starts the first process of a PID namespace for a pod's containers.
// It is this binary again, in C before Go starts (pause.c), so no image is needed.
//
// Containers share the namespace with it, so it must be no way out: its root is an
// empty read-only file system, it is uid 65535 without a capability, cannot gain
// any, may make four system calls, is not dumpable, so that /proc/1/root, fd and
// environ are closed even to root in a container, and has no descriptor and no
// environment.
//
// It waits until release is called, and ends if this executor ends before: so one
// that is in no record does not stay.
func (x *Executor) startPause() (p *pauseProcess, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pause: socket: %w", err)
	}
	own, its := os.NewFile(uintptr(pair[0]), "pause"), os.NewFile(uintptr(pair[1]), "pause")
	cmd := exec.Command("/proc/self/exe", "pause", x.mnt.dir)
	cmd.Args[0] = "berth-executor"
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.ExtraFiles = []*os.File{its}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	err = cmd.Start()
	its.Close()
	if err != nil {
		own.Close()
		return nil, fmt.Errorf("pause: %w", err)
	}
	p = &pauseProcess{process: wire.Created{PID: cmd.Process.Pid}, pidns: -1, socket: own}
	if err := p.examine(); err != nil {
		return nil, joinUndo(err, errors.Join(p.close(), endPause(p.process)))
	}
	return p, nil
}

// pauseProcess is one that waits to be released.
type pauseProcess struct {
	process wire.Created
	pidns   int // the caller's
	socket  *os.File
}

// examine waits until it is ready.
func (p *pauseProcess) examine() error {
	stat, err := readStat(p.process.PID)
	if err != nil {
		return err
	}
	p.process.Start = stat.start
	var said [128]byte
	n, err := p.socket.Read(said[:])
	if err != nil || n != 1 || said[0] != 0 {
		return fmt.Errorf("pause: %q: %w", said[:n], err)
	}
	p.pidns, err = unix.Open(fmt.Sprintf("/proc/%d/ns/pid", p.process.PID), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("PID namespace of pause: %w", err)
	}
	return nil
}

// release lets it outlive this executor.
func (p *pauseProcess) release() error {
	_, err := p.socket.Write([]byte{1})
	return errors.Join(err, p.close())
}

func (p *pauseProcess) close() error { return p.socket.Close() }

// managerAt is libcontainer's manager of a cgroup without limits, at a path as in a
// spec's CgroupsPath.
func managerAt(name, path string, systemd bool) (cgroupManager, error) {
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: name, UseSystemdCgroup: systemd,
		Spec: &specs.Spec{Linux: &specs.Linux{CgroupsPath: path}},
	}, nil)
	if err != nil {
		return nil, err
	}
	config.Resources.SkipDevices = true // a pause process may open nothing at all
	return manager.New(config)
}

// cgroupManager is what is used of libcontainer's.
type cgroupManager interface {
	Apply(pid int) error
	Destroy() error
}

// endPause ends a pod's pause process, and with it whatever is left in its PID
// namespace, and reaps it if it is our child. Ended already is no error.
func endPause(process wire.Created) error {
	if process.PID == 0 {
		return nil
	}
	pidfd, err := sameProcess(process.PID, process.Start)
	if err != nil {
		return nil //nolint:nilerr // gone
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill pause: %w", err)
	}
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(poll, int(killTime.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("end of pause: %w", err)
		}
		break
	}
	if poll[0].Revents == 0 {
		return fmt.Errorf("pause %d was killed and does not end", process.PID)
	}
	if err := reap(pidfd); err != nil && !errors.Is(err, unix.ECHILD) {
		return fmt.Errorf("reap pause: %w", err)
	}
	return nil
}

// isAlive says whether a pause process is there to stay. One that was not let go
// on still has its descriptor, and ends by itself now that nobody is left to do so.
func isAlive(process wire.Created) bool {
	if process.PID == 0 {
		return false
	}
	pidfd, err := sameProcess(process.PID, process.Start)
	if err != nil {
		return false
	}
	defer unix.Close(pidfd)
	stat, err := readStat(process.PID)
	if err != nil || stat.state == 'Z' {
		return false
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", process.PID))
	return err != nil || len(fds) == 0
}

// watchPause begins to listen to a pod's pause process: without it no container of
// the pod can be made, and those that were there have been killed by the kernel.
// Again is no error.
func (x *Executor) watchPause(p *pod) error {
	p.op.Lock()
	defer p.op.Unlock()
	return x.watchPauseLocked(p)
}

// +checklocks:p.op
func (x *Executor) watchPauseLocked(p *pod) error {
	if p.token != 0 {
		return nil
	}
	pidfd, err := sameProcess(p.rec.Pause.PID, p.rec.Pause.Start)
	if err != nil {
		x.notePause(p, pauseLost(p))
		return nil
	}
	token, err := x.poller.watch(pidfd, unix.EPOLLIN|unix.EPOLLONESHOT, func(uint32) { go x.pauseEnded(p) })
	if err != nil {
		unix.Close(pidfd)
		return err
	}
	p.pause, p.token = pidfd, token
	return nil
}

// +checklocks:p.op
func (x *Executor) forgetPauseLocked(p *pod) {
	if p.pause < 0 {
		return
	}
	x.poller.forget(p.pause, p.token)
	unix.Close(p.pause)
	p.pause, p.token = -1, 0
}

// pauseEnded deals with a pause process that has ended and should not have.
func (x *Executor) pauseEnded(p *pod) {
	defer x.recoverTo("end of the pause process of pod "+p.id, nil)
	p.op.Lock()
	defer p.op.Unlock()
	if p.pause < 0 {
		return // the pod was taken back meanwhile
	}
	exit := x.collect(p.pause, p.rec.Pause)
	exit.ID = p.id
	if exit.Lost {
		exit.Reason = pauseLost(p).Reason
	}
	x.notePause(p, exit)
	if err := reap(p.pause); err != nil && !errors.Is(err, unix.ECHILD) {
		klog.ErrorS(err, "reap", "pid", p.rec.Pause.PID)
	}
	x.forgetPauseLocked(p)
}

// notePause remembers, for the next executor too, that a pause process has ended.
func (x *Executor) notePause(p *pod, exit *wire.Exit) {
	if err := write(x.files.podExit(p.id), exit); err != nil {
		klog.ErrorS(err, "the next executor will not know how a pause process ended", "pod", p.id)
	}
	x.mu.Lock()
	p.ended = exit
	x.mu.Unlock()
	klog.ErrorS(nil, "the pause process of a pod has ended, and with it every container that shares its PID namespace", "pod", p.id, "how", howEnded(exit))
}

// pauseLost is the exit of a pause process that nobody could ask.
func pauseLost(p *pod) *wire.Exit {
	exit := lost(p.rec.Pause)
	exit.ID = p.id
	exit.Reason = fmt.Sprintf("pause process %d ended, and nobody was there to see how", p.rec.Pause.PID)
	return exit
}

func howEnded(e *wire.Exit) string {
	switch {
	case e.Lost:
		return e.Reason
	case e.Signal != 0:
		return fmt.Sprintf("killed by signal %d", e.Signal)
	}
	return fmt.Sprintf("exited with %d", e.Code)
}
