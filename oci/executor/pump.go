// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// visits is how many logs are moved at a time: enough that one slow disk write
	// does not stop the others, few enough that the journals stay small.
	visits = 4

	// stuckMax is how many visits that hang in file systems may have their journals
	// replaced at a time. Each of them has a thread as well.
	stuckMax = 16

	// stuckOne is how many of them may hang in one file system. When there are as many,
	// the other logs there wait until it answers, and only those.
	stuckOne = stuckMax - visits

	// stuckTime is how long a visit may make no progress while others wait, before its
	// journal is replaced.
	stuckTime = 100 * time.Millisecond

	// patience is how long a container waits for a log that cannot be written.
	patience = 5 * time.Second

	// share is how many chunks one visit takes before others have their turn.
	share = 16
)

// pump moves what containers write into their logs, a few at a time: a visit has
// one of the journals until it is over.
//
// A visit may hang in a write, for as long as a disk or a server does not answer.
// Nothing ends it then, so it keeps its thread and its journal, and the pump makes
// another journal as soon as somebody waits for one. That is bounded: a log whose
// file system already has visits hanging in it gets a journal only as long as there
// is a replacement for it, should it hang as well. Five file systems may be dead, and
// logs on others go on.
type pump struct {
	poller   *poller
	null     int // /dev/null
	logf     func(format string, args ...any)
	pwrite   func(fd int, b []byte, off int64) (int, error)
	patience time.Duration
	began    time.Time

	// more makes journal n, to replace one with which a visit hangs; less gives it up.
	more func(n int) (*journal, error)
	less func(j *journal) error

	written   atomic.Uint64 // bytes
	dropped   atomic.Uint64 // bytes that no log file would take
	discarded atomic.Uint64 // bytes after the end
	queued    atomic.Int32  // len(queue), for visits under way
	opening   atomic.Int32  // log files that are being opened

	mu sync.Mutex
	// there is a journal with this number
	journal [visits + stuckMax]bool // +checklocks:mu
	free    []*journal              // +checklocks:mu
	// under way
	under map[*visit]bool // +checklocks:mu
	// of those under way
	stuck int // +checklocks:mu
	// for a journal, in their order
	queue []*waiting // +checklocks:mu
	// somebody looks for visits that hang
	watch bool // +checklocks:mu
	// log files to be closed
	closing []int // +checklocks:mu
	// somebody closes them
	closer bool // +checklocks:mu
}

// visit is the use of a journal for one container.
type visit struct {
	j    *journal
	id   string       // of the container
	dev  uint64       // of the file system that its log is on; 0: none
	beat atomic.Int64 // when it last made progress, see pump.now
	hung bool         // guarded by pump.mu: it hangs, and was counted
	kept bool         // guarded by pump.mu: see keep
}

// waiting is one who waits for a journal.
type waiting struct {
	id    string
	dev   uint64
	ready chan *visit // of capacity 1
}

func newPump(p *poller, null int, logf func(format string, args ...any)) *pump {
	return &pump{
		poller: p, null: null, logf: logf, pwrite: unix.Pwrite, patience: patience, began: time.Now(),
		under: make(map[*visit]bool),
	}
}

// now is a time that no clock is set by.
func (p *pump) now() int64 { return int64(time.Since(p.began)) }

// add makes a journal one of the pump's. One that is at the middle of a visit is
// not free: see resume.
func (p *pump) add(j *journal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.journal[j.n] = true
	p.free = append(p.free, j)
	p.dispatchLocked()
}

// resume makes a journal with which an executor before us was at the middle of a
// visit one of the pump's, for the visit that completes it.
func (p *pump) resume(j *journal, id string, dev uint64) *visit {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.journal[j.n] = true
	return p.beginLocked(j, id, dev)
}

// +checklocks:p.mu
func (p *pump) beginLocked(j *journal, id string, dev uint64) *visit {
	v := &visit{j: j, id: id, dev: dev}
	v.beat.Store(p.now())
	p.under[v] = true
	return v
}

// borrow waits for a journal.
func (p *pump) borrow(id string, dev uint64) *visit {
	w := &waiting{id: id, dev: dev, ready: make(chan *visit, 1)}
	p.mu.Lock()
	p.queue = append(p.queue, w)
	p.dispatchLocked()
	p.mu.Unlock()
	return <-w.ready
}

// giveBack ends a visit.
func (p *pump) giveBack(v *visit) {
	p.mu.Lock()
	delete(p.under, v)
	var excess *journal
	if v.hung {
		p.stuck--
	}
	if p.workingLocked() >= visits {
		excess = v.j
	} else {
		p.free = append(p.free, v.j)
	}
	p.dispatchLocked()
	p.mu.Unlock()
	if v.hung && v.dev != 0 {
		p.logf("log of container %s: its file system answers again", v.id)
	}
	if excess == nil {
		return
	}
	n := excess.n
	if err := p.less(excess); err != nil {
		p.logf("pump's journal %d: %v", n, err)
	}
	p.mu.Lock()
	p.journal[n] = false
	p.mu.Unlock()
}

// keep leaves the journal with a visit that cannot end, and says whether that is new.
func (p *pump) keep(v *visit) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !v.kept
	v.dev, v.kept = 0, true
	if !v.hung {
		v.hung = true
		p.stuck++
	}
	p.watchLocked()
	return first
}

// workingLocked is how many journals there are but for those with which visits hang.
//
// +checklocks:p.mu
func (p *pump) workingLocked() int {
	return len(p.free) + len(p.under) - p.stuck
}

// dispatchLocked gives free journals to those who wait.
//
// +checklocks:p.mu
func (p *pump) dispatchLocked() {
	for i := 0; i < len(p.queue) && len(p.free) > 0; {
		w := p.queue[i]
		if !p.admitsLocked(w.dev) {
			i++
			continue
		}
		j := p.free[len(p.free)-1]
		p.free = p.free[:len(p.free)-1]
		p.queue = slices.Delete(p.queue, i, i+1)
		w.ready <- p.beginLocked(j, w.id, w.dev)
	}
	p.queued.Store(int32(len(p.queue)))
	p.watchLocked()
}

// admitsLocked says whether a visit to a log on dev may begin: if it hangs as well,
// those elsewhere must still find a journal.
//
// +checklocks:p.mu
func (p *pump) admitsLocked(dev uint64) bool {
	if dev == 0 || p.stuck == 0 {
		return true
	}
	hanging := make(map[uint64]bool, stuckMax)
	for v := range p.under {
		if v.hung {
			hanging[v.dev] = true
		}
	}
	here, suspect := 0, 0
	for v := range p.under {
		if v.dev == dev {
			here++
		}
		if !v.hung && hanging[v.dev] {
			suspect++ // it is likely to hang, too
		}
	}
	left := stuckMax - p.stuck // so many more can be replaced
	switch {
	case hanging[dev]:
		return here < stuckOne && suspect < left
	case left < visits:
		return here == 0 // one at a time
	default:
		return true
	}
}

// watchLocked sees to it that a visit that hangs is noticed, if that makes a
// difference to anybody.
//
// +checklocks:p.mu
func (p *pump) watchLocked() {
	if p.watch || len(p.queue) == 0 || p.workingLocked() >= visits && len(p.under) == p.stuck {
		return
	}
	p.watch = true
	time.AfterFunc(stuckTime, p.lookForStuck)
}

// lookForStuck replaces the journals of visits that hang.
func (p *pump) lookForStuck() {
	var hang []string
	var err error
	p.mu.Lock()
	before := p.now() - int64(stuckTime)
	for v := range p.under {
		if v.hung || v.beat.Load() > before {
			continue
		}
		v.hung = true
		p.stuck++
		hang = append(hang, v.id)
	}
	for p.workingLocked() < visits {
		n := slices.Index(p.journal[:], false)
		if n < 0 {
			break
		}
		p.journal[n] = true
		p.mu.Unlock()
		var j *journal
		j, err = p.more(n) // waits for the keeper
		p.mu.Lock()
		if err != nil {
			p.journal[n] = false
			break
		}
		p.free = append(p.free, j)
	}
	p.watch = false
	p.dispatchLocked()
	p.mu.Unlock()
	for _, id := range hang {
		p.logf("log of container %s: its file system does not answer; others go on without it", id)
	}
	if err != nil {
		p.logf("pump's journal: %v", err)
	}
}

// close closes a log file, at some time: on some file systems that waits for what
// was written. One thread at most hangs in it.
func (p *pump) close(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closing = append(p.closing, fd)
	if !p.closer {
		p.closer = true
		go p.closeAll()
	}
}

func (p *pump) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.closing) > 0 {
		fd := p.closing[0]
		p.closing = p.closing[1:]
		p.mu.Unlock()
		unix.Close(fd)
		p.mu.Lock()
	}
	p.closer = false
}

// newJournal makes one more journal, with a pipe that the keeper holds.
func (x *Executor) newJournal(n int) (*journal, error) {
	j, err := x.openJournal(n, nil)
	if err != nil {
		return nil, err
	}
	if err := x.keeper.Put(pumpName(n), j.r, j.w); err != nil {
		return nil, errors.Join(err, x.dropJournal(j))
	}
	return j, nil
}

// openJournal opens journal n, fds being its pipe, nil for none yet.
func (x *Executor) openJournal(n int, fds []int) (*journal, error) {
	if fds == nil {
		fds = make([]int, 2)
		if err := unix.Pipe2(fds, unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return nil, fmt.Errorf("pump's pipe: %w", err)
		}
	}
	return openJournal(x.files.journal(n), n, fds[0], fds[1])
}

// dropJournal gives up a journal that nobody owns.
func (x *Executor) dropJournal(j *journal) error {
	if err := x.letGo(pumpName(j.n), []int{j.r, j.w}); err != nil {
		return err
	}
	if err := j.unmap(); err != nil {
		return err
	}
	return remove(x.files.journal(j.n))
}
