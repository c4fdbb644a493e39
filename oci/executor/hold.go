// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"fmt"
	"strings"

	"github.com/berth-cri/berth/oci/keeper"
	"github.com/berth-cri/berth/oci/wire"
)

// The names under which the keeper holds what outlives the executor:
//
//	listen                      the socket for requests
//	mnt                         the mount namespace
//	pump/N                      journal N's private pipe: read end, write end
//	pod/ID                      a pod's namespaces, in the order of its record
//	c/ID/KINDS/PID-START        a container: a descriptor for each letter of KINDS
//	in/ID                       its stdin's write end, or its terminal's master
//	x/ID/EXEC/PID-START         an exec'd process's pidfd
//
// A name that ends in PID-START makes the keeper write an exit file for that
// process, should it become the keeper's child.
const (
	listenName = "listen"

	// The letters of KINDS.
	kindPidfd  = 'p'
	kindLog    = 'l'
	kindStdout = 'o'
	kindStderr = 'e'
)

func pumpName(n int) string        { return fmt.Sprintf("pump/%d", n) }
func stdinName(id string) string   { return "in/" + id }
func execName(r execRecord) string { return "x/" + r.ID + "/" + r.Exec + "/" + key(r.Process) }

// holder is the keeper as operations see it. When the keeper is gone they stop
// where they stand, as if this executor had been killed: it is about to become
// the keeper, and the next executor goes on from there. To take back what was
// begun would only race with that, and an error would be told to a client that
// has nothing to do with it.
//
// An executor that cannot take the keeper's place answers all the same, after a while:
// that it has none.
type holder struct {
	*keeper.Client
	alone *alone
}

// alone is the state of an executor that has no keeper and cannot become it.
type alone struct {
	is  chan struct{} // closed when that is so
	why error         // set before
}

func (h holder) Put(name string, fds ...int) error {
	return h.untilReplaced(h.Client.Put(name, fds...))
}
func (h holder) Delete(name string) error { return h.untilReplaced(h.Client.Delete(name)) }

func (h holder) untilReplaced(err error) error {
	if errors.Is(err, keeper.ErrLost) {
		<-h.alone.is // mindKeeper execs, however often it has to try
		return h.alone.err()
	}
	return err
}

func (a *alone) err() error {
	return &wire.Error{Code: wire.Failed, Message: fmt.Sprintf("the keeper is gone, and this executor cannot take its place yet: %v", a.why)}
}

// hold has the keeper hold a container's descriptors, log being the log file's.
// A descriptor in the list stays open until release, whatever became of it: the
// keeper's own death is survived by handing on these very numbers.
func (x *Executor) hold(c *container, log int) error {
	c.keep.Lock()
	defer c.keep.Unlock()
	if c.letGo {
		return nil // it has ended, and all of this was closed
	}
	return x.holdLocked(c, log)
}

// +checklocks:c.keep
func (x *Executor) holdLocked(c *container, log int) error {
	c.mu.Lock()
	kinds, fds := []byte{kindPidfd}, []int{c.pidfd}
	for _, h := range []struct {
		kind byte
		fd   int
	}{{kindLog, log}, {kindStdout, c.out[0]}, {kindStderr, c.out[1]}} {
		if h.fd >= 0 {
			kinds, fds = append(kinds, h.kind), append(fds, h.fd)
		}
	}
	name, before := "c/"+c.id+"/"+string(kinds)+"/"+key(c.rec.Process), c.held
	c.mu.Unlock()
	if err := x.keeper.Put(name, fds...); err != nil {
		return err
	}
	c.mu.Lock()
	c.held = name // not before the keeper has agreed: what is not held is not let go of, either
	c.mu.Unlock()
	if before != "" && before != name {
		return x.keeper.Delete(before)
	}
	return nil
}

// release has the keeper let go of a container. Again is no error.
func (x *Executor) release(c *container) error {
	c.keep.Lock()
	defer c.keep.Unlock()
	c.mu.Lock()
	held, hasStdin := c.held, c.stdin >= 0
	c.mu.Unlock()
	if hasStdin {
		if err := x.keeper.Delete(stdinName(c.id)); err != nil {
			return err
		}
	}
	if held != "" {
		if err := x.keeper.Delete(held); err != nil {
			return err
		}
	}
	c.letGo = true
	c.mu.Lock()
	c.held = ""
	c.mu.Unlock()
	return nil
}

// heldContainer is what the keeper held for one container.
type heldContainer struct {
	name    string
	process wire.Created
	pidfd   int
	log     int
	out     [2]int
	stdin   int
}

// parseHeld sorts what was handed over by container and by name.
func parseHeld(name string, fds []int) (id string, h heldContainer, ok bool) {
	h = heldContainer{name: name, pidfd: -1, log: -1, out: [2]int{-1, -1}, stdin: -1}
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[0] != "c" || len(parts[2]) != len(fds) {
		return "", h, false
	}
	if _, err := fmt.Sscanf(parts[3], "%d-%d", &h.process.PID, &h.process.Start); err != nil {
		return "", h, false
	}
	for i, kind := range parts[2] {
		switch kind {
		case kindPidfd:
			h.pidfd = fds[i]
		case kindLog:
			h.log = fds[i]
		case kindStdout:
			h.out[0] = fds[i]
		case kindStderr:
			h.out[1] = fds[i]
		default: // of a newer executor: not ours to understand, and open as long as it is held
		}
	}
	return parts[1], h, true
}
