// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// testPump is a pump whose journals are numbers, with visits of them already there.
func testPump(t *testing.T) (p *pump, made *atomic.Int32) {
	p, made = newPump(nil, -1, t.Logf), new(atomic.Int32)
	p.more = func(n int) (*journal, error) {
		made.Add(1)
		return &journal{n: n}, nil
	}
	p.less = func(*journal) error {
		made.Add(-1)
		return nil
	}
	for n := range visits {
		p.add(&journal{n: n})
	}
	return p, made
}

// visitors are many who want to visit logs on one file system, and how far they are.
type visitors struct {
	began, ended atomic.Int32
	answer       chan struct{} // closed when the file system answers
}

func (p *pump) visitors(n int, dev uint64) *visitors {
	v := &visitors{answer: make(chan struct{})}
	for range n {
		go func() {
			b := p.borrow("c", dev)
			v.began.Add(1)
			<-v.answer
			p.giveBack(b)
			v.ended.Add(1)
		}()
	}
	return v
}

// However many visits hang, their journals are replaced, up to a bound, beyond which
// only such logs wait; and all is as before when they do not hang any more.
func TestPumpReplacesJournals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, made := testPump(t)
		dead := p.visitors(100, 1)
		synctest.Wait()
		if n := dead.began.Load(); n != visits {
			t.Errorf("%d visits at a time, want %d", n, visits)
		}
		time.Sleep(100 * stuckTime) //nolint:forbidigo // of synctest
		synctest.Wait()
		if n, more := dead.began.Load(), made.Load(); n != stuckOne || more != stuckOne {
			t.Errorf("%d visits hang and %d journals were made for them, want %d", n, more, stuckOne)
		}
		for dev := range uint64(3) { // 0 is a log without a file
			alive := p.visitors(50, dev*2)
			close(alive.answer)
			began := time.Now()
			synctest.Wait()
			if n := alive.ended.Load(); n != 50 {
				t.Errorf("%d of 50 visits to logs elsewhere", n)
			}
			if took := time.Since(began); took > 0 {
				t.Errorf("visits to logs elsewhere took %v", took)
			}
		}
		close(dead.answer)
		synctest.Wait()
		if n := dead.ended.Load(); n != 100 {
			t.Errorf("%d of 100 visits came to their end", n)
		}
		if n := made.Load(); n != 0 || len(p.free) != visits || p.stuck != 0 || len(p.under) != 0 {
			t.Errorf("%d journals more than at the start, %d free, %d visits, %d stuck", n, len(p.free), len(p.under), p.stuck)
		}
	})
}

// Several file systems that do not answer leave the others alone, too.
func TestPumpWithDeadFileSystems(t *testing.T) {
	for _, together := range []bool{true, false} {
		t.Run(fmt.Sprintf("together=%t", together), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _ := testPump(t)
				var dead []*visitors
				for dev := range uint64(5) {
					dead = append(dead, p.visitors(30, dev+1))
					if !together {
						time.Sleep(100 * stuckTime) //nolint:forbidigo // of synctest
					}
				}
				time.Sleep(100 * stuckTime) //nolint:forbidigo // of synctest
				alive := p.visitors(50, 99)
				close(alive.answer)
				synctest.Wait()
				if n := alive.ended.Load(); n != 50 {
					t.Errorf("%d of 50 visits to logs elsewhere", n)
				}
				for i, d := range dead {
					close(d.answer)
					time.Sleep(100 * stuckTime) //nolint:forbidigo // of synctest: more of the others may hang first
					if n := d.ended.Load(); n != 30 {
						t.Errorf("%d of 30 visits after file system %d answers", n, i)
					}
				}
				if len(p.free) != visits || p.stuck != 0 {
					t.Errorf("%d journals free, %d stuck", len(p.free), p.stuck)
				}
			})
		})
	}
}

// A visit that makes progress is not taken for one that hangs.
func TestPumpKnowsSlowFromStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, made := testPump(t)
		var slow []*visit
		for range visits {
			slow = append(slow, p.borrow("c", 1))
		}
		next := p.visitors(1, 1)
		for range 20 {
			time.Sleep(stuckTime / 2) //nolint:forbidigo // of synctest
			for _, v := range slow {
				v.beat.Store(p.now())
			}
		}
		if n := made.Load(); n != 0 || next.began.Load() != 0 {
			t.Errorf("%d journals were made, %d visits began", n, next.began.Load())
		}
		p.giveBack(slow[0])
		close(next.answer)
		synctest.Wait()
		if next.ended.Load() != 1 {
			t.Error("who waited was not next")
		}
	})
}
