// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// poller is the one place where the executor waits for its containers: one epoll
// for all pidfds and pipes, so that a container at rest costs no goroutine and no
// thread.
//
// Go's own poller waits for that epoll in turn. A thread of ours that hung in
// epoll_wait would keep one of the runtime's processors with it as if it ran; with
// few of them the runtime takes a log's processor away at nearly every write then,
// and starts a thread for it that finds nothing to do.
type poller struct {
	ep int
	f  *os.File // of ep

	mu       sync.Mutex
	next     int32                  // +checklocks:mu
	handlers map[int32]func(uint32) // +checklocks:mu
}

func newPoller() (*poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // only then os.File gives it to Go's poller
		unix.Close(ep)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &poller{ep: ep, f: os.NewFile(uintptr(ep), "epoll"), handlers: make(map[int32]func(uint32))}, nil
}

// watch calls fn, which must not block, with the events of fd as they come:
// once, if events has EPOLLONESHOT, until rearm. fd must stay open until forget.
func (p *poller) watch(fd int, events uint32, fn func(events uint32)) (token int32, err error) {
	p.mu.Lock()
	p.next++
	token = p.next
	p.handlers[token] = fn
	p.mu.Unlock()
	// A token, not the descriptor, comes back with an event: the descriptor's number
	// may by then be another's.
	err = unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: token})
	if err != nil {
		p.mu.Lock()
		delete(p.handlers, token)
		p.mu.Unlock()
		return 0, fmt.Errorf("epoll add: %w", err)
	}
	return token, nil
}

// rearm asks for events again after an EPOLLONESHOT.
func (p *poller) rearm(fd int, token int32, events uint32) error {
	if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: token}); err != nil {
		return fmt.Errorf("epoll rearm: %w", err)
	}
	return nil
}

// forget ends the watching of fd. An event that is on its way is dropped.
func (p *poller) forget(fd int, token int32) {
	p.mu.Lock()
	delete(p.handlers, token)
	p.mu.Unlock()
	_ = unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, nil)
}

// run serves events for ever.
func (p *poller) run() error {
	rc, err := p.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	events := make([]unix.EpollEvent, 128)
	for {
		n := 0
		// Go's poller tells of edges: it is asked only when nothing is left.
		rerr := rc.Read(func(uintptr) bool {
			n, err = unix.EpollWait(p.ep, events, 0)
			return n > 0 || err != nil
		})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err := errors.Join(err, rerr); err != nil {
			return fmt.Errorf("epoll wait: %w", err)
		}
		for _, e := range events[:n] {
			p.mu.Lock()
			fn := p.handlers[e.Fd]
			p.mu.Unlock()
			if fn != nil {
				fn(e.Events)
			}
		}
	}
}
