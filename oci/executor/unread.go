// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/wire"
)

// unread is a container whose record cannot be read: damaged, or written by a later
// executor. Its process goes on, and its pipes stay, since a later executor may
// understand it. Until then it can only be seen, and deleted.
type unread struct {
	id, record string // its file
	why        error
	names      map[string][]int // what the keeper holds of it
	pidfd      int              // one of those; -1: none

	op   sync.Mutex
	gone bool // +checklocks:op
}

// leaveAlone keeps everything of a container whose record this executor cannot read.
func (x *Executor) leaveAlone(id string, why error, names map[string][]int, held map[string]heldContainer) {
	u := &unread{id: id, record: x.files.in(id, "record"), why: why, names: make(map[string][]int), pidfd: -1}
	if h, ok := held[id]; ok {
		u.names[h.name], u.pidfd = []int{h.pidfd, h.log, h.out[0], h.out[1]}, h.pidfd
		delete(held, id)
	}
	for name, fds := range names {
		if name == stdinName(id) || strings.HasPrefix(name, "x/"+id+"/") {
			u.names[name] = fds
			delete(names, name)
		}
	}
	klog.ErrorS(why, "container's record cannot be read and is left alone", "container", id)
	x.unread[id] = u
}

// keys are the names of its processes in exit/.
func (u *unread) keys() []string {
	var list []string
	for name := range u.names {
		list = append(list, name[strings.LastIndexByte(name, '/')+1:])
	}
	return list
}

func (u *unread) refuse(code wire.Code, do string) error {
	return &wire.Error{Code: code, Message: fmt.Sprintf("container %s is there, but its record %s cannot be read (%v): %s", u.id, u.record, u.why, do)}
}

// deleteUnread kills what is in the container's cgroup, and takes everything back.
// Where the cgroup is comes from libcontainer's own file.
func (x *Executor) deleteUnread(u *unread) error {
	u.op.Lock()
	defer u.op.Unlock()
	if u.gone {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	group, process, err := x.whatRuns(u)
	if err != nil {
		return err
	}
	if err := u.kill(ctx, group, process); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(u.names)) {
		if err := x.letGo(name, u.names[name]); err != nil {
			return err
		}
		delete(u.names, name)
		_ = remove(x.files.keeperExit(name[strings.LastIndexByte(name, '/')+1:]))
	}
	u.pidfd = -1
	if len(group.Paths()) > 0 {
		if err := group.Remove(ctx); err != nil {
			return err
		}
	}
	c := newContainer(u.id)
	c.rec.OwnRoot = true // or there is nothing to unmount
	if err := errors.Join(os.RemoveAll(filepath.Join(x.files.libcontainer(), u.id)), x.unmountOf(c)); err != nil {
		return err
	}
	if err := x.removeFiles(u.id); err != nil {
		return err
	}
	u.gone = true
	x.mu.Lock()
	delete(x.unread, u.id)
	x.mu.Unlock()
	return nil
}

// whatRuns finds a container's cgroup, if it was given one, and its first process.
func (x *Executor) whatRuns(u *unread) (cgroup.Group, wire.Created, error) {
	folder := filepath.Join(x.files.libcontainer(), u.id)
	if _, err := os.Lstat(folder); errors.Is(err, fs.ErrNotExist) && len(u.names) == 0 {
		return cgroup.Group{}, wire.Created{}, nil // nothing was started, or all of it was taken back
	}
	path := filepath.Join(folder, "state.json")
	var state struct {
		PID    int               `json:"init_process_pid"`
		Start  uint64            `json:"init_process_start"`
		Cgroup map[string]string `json:"cgroup_paths"`
	}
	err := read(path, &state)
	if err == nil && len(state.Cgroup) == 0 {
		err = errors.New("it names no cgroup")
	}
	var group cgroup.Group
	if err == nil {
		group, err = cgroup.FromPaths(state.Cgroup)
	}
	if err != nil {
		return group, wire.Created{}, u.refuse(wire.Failed, fmt.Sprintf(
			"nor can %s (%v), so what runs in it is not known: end it by hand, then remove %s and %s", path, err, folder, filepath.Dir(u.record)))
	}
	return group, wire.Created{PID: state.PID, Start: state.Start}, nil
}

// kill ends what runs in the container and waits for it.
func (u *unread) kill(ctx context.Context, group cgroup.Group, process wire.Created) error {
	pidfd := u.pidfd
	if pidfd < 0 && process.PID != 0 {
		if fd, err := sameProcess(process.PID, process.Start); err == nil {
			pidfd = fd
			defer unix.Close(fd)
		}
	}
	if pidfd >= 0 {
		if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %s: %w", u.id, err)
		}
	}
	if len(group.Paths()) > 0 {
		if err := group.Kill(ctx); err != nil {
			return err
		}
	}
	if pidfd < 0 {
		return nil
	}
	return reapWithin(ctx, pidfd)
}
