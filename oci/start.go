// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-cri/berth/oci/cgroup"
)

// StartConfig says how to start a keeper.
type StartConfig struct {
	State  string // folder, on a tmpfs that a reboot empties
	Binary string // absolute path of berth-executor
	Log    string // file for what keeper and executor have to say
	Cgroup string // path in each hierarchy, "/berth.executor"; "" leaves them in the caller's
}

// Start connects to the executor of a state folder; where both executor and
// keeper are gone, or never were, it starts a keeper first. The keeper has a
// session of its own and outlives the caller.
//
// As long as one of the two lives the socket is held, and a connection waits
// instead of being refused: so being refused is proof enough that a new keeper is
// needed, and the keeper's lock decides between two who think so at once.
func Start(ctx context.Context, cfg StartConfig) (*Executor, error) {
	e, err := Open(ctx, cfg.State)
	if !errors.Is(err, ErrGone) {
		return e, err
	}
	ended, err := startKeeper(cfg)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Binary, err)
	}
	// There is no event for a socket that appears in a folder which the keeper may
	// have yet to make, so it is asked for again and again.
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		e, err := Open(ctx, cfg.State)
		if !errors.Is(err, ErrGone) {
			return e, err
		}
		select {
		case kerr := <-ended:
			// Another one may have been quicker to start it.
			if e, err := Open(ctx, cfg.State); err == nil {
				return e, nil
			}
			return nil, fmt.Errorf("%s ended (%w): see %s", filepath.Base(cfg.Binary), kerr, cfg.Log)
		case <-ctx.Done():
			return nil, fmt.Errorf("executor did not begin to serve: %w: see %s", ctx.Err(), cfg.Log)
		case <-time.After(wait):
		}
	}
}

// startKeeper starts a keeper; the channel tells its end.
func startKeeper(cfg StartConfig) (<-chan error, error) {
	if err := os.MkdirAll(cfg.State, 0o711); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(cfg.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	join, err := cfg.openCgroup()
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range join {
			f.Close()
		}
	}()
	cmd := exec.Command(cfg.Binary, "keeper", cfg.State, cfg.Binary)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = join
	// Nothing of ours but PATH: the keeper hands it on to every executor, and it would
	// stay as it is now for as long as the node runs.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "BERTH_KEEPER_JOIN=" + strconv.Itoa(len(join))}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the keeper, or with us
	return ended, nil
}

// openCgroup makes the keeper's own cgroup and opens its cgroup.procs files. The
// keeper joins by itself, before it starts the executor: a process that is moved
// from outside may have children by then.
func (cfg StartConfig) openCgroup() (files []*os.File, err error) {
	if cfg.Cgroup == "" {
		return nil, nil
	}
	host, err := cgroup.Open("/sys/fs/cgroup")
	if err != nil {
		return nil, err
	}
	group, err := host.Group(cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	for controller, path := range group.Paths() {
		if controller == "cpuset" {
			continue // a new one takes no process before it has cpus, and ours needs no limit
		}
		if err = os.MkdirAll(path, 0o755); err != nil {
			return files, err
		}
		var f *os.File
		if f, err = os.OpenFile(filepath.Join(path, "cgroup.procs"), os.O_WRONLY, 0); err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}
