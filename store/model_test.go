// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/storetest"
)

// TestModel does what comes into its head, with disks that fail and processes that die, and compares the
// store with a model after each step.
//
// In memory there is what succeeded, and what was asynchronous. After a crash there is what the writes up
// to some moment have made, in their order: no acknowledged one is missing, and of the last commit, if it
// failed at its very end, it is not known.
func TestModel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, seed)
			for range 200 {
				m.step()
				if t.Failed() {
					t.Fatalf("after %q", m.log[max(0, len(m.log)-15):])
				}
			}
			m.crash()
		})
	}
}

// pods is a state: the State of each pod.
type pods map[store.PodID]string

// write is one write: what each pod becomes, "" for none.
type write struct {
	changes pods
	acked   bool // durable, surely
	doubt   bool // failed, and may be in the file if nothing came after it
}

type model struct {
	t       *testing.T
	rand    *rand.Rand
	cfg     store.Config
	db      *store.DB
	broken  func(string) error
	file    pods    // what the file had when it was opened
	history []write // since then
	visible pods
	n       int
	log     []string
}

func newModel(t *testing.T, seed uint64) *model {
	cfg := storetest.Folders(t)
	cfg.OnFault = nil
	if seed%2 == 1 {
		cfg.AsyncDelay = time.Hour
	}
	m := &model{t: t, rand: rand.New(rand.NewPCG(seed, 0)), cfg: cfg, file: make(pods), visible: make(pods)}
	m.open()
	t.Cleanup(func() { m.db.Abandon() })
	return m
}

func (m *model) open() {
	db, err := store.Open(m.t.Context(), m.cfg)
	ok(m.t, err)
	m.db, m.broken = db, nil
}

func (p pods) apply(w write) {
	for id, state := range w.changes {
		if p[id] = state; state == "" {
			delete(p, id)
		}
	}
}

func (m *model) step() {
	m.n++
	id := store.PodID(fmt.Sprintf("p%d", m.rand.IntN(8)))
	state := fmt.Sprintf("s%d", m.n)
	put := write{changes: pods{id: state}}
	gone := write{changes: pods{id: ""}}
	switch k := m.rand.IntN(100); {
	case k < 20:
		m.sync("put", put, m.db.PutPod(m.t.Context(), store.Pod{ID: id, State: state}))
	case k < 28:
		m.sync("delete", gone, m.db.DeletePod(m.t.Context(), id))
	case k < 38:
		other := id + "x"
		put.changes[other] = state
		m.sync("two", put, m.db.Update(m.t.Context(), func(tx *store.Tx) error {
			return errors.Join(tx.PutPod(store.Pod{ID: id, State: state}), tx.PutPod(store.Pod{ID: other, State: state}))
		}))
	case k < 60:
		m.async("put async", put, m.db.PutPodAsync(store.Pod{ID: id, State: state}))
	case k < 75:
		m.async("delete async", gone, m.db.DeletePodAsync(id))
	case k < 80:
		m.sync("flush", write{}, m.db.Flush(m.t.Context()))
	case k < 90:
		m.fault()
	case k < 93:
		if m.broken == nil { // else Check rightly says so
			storetest.Check(m.t, m.db)
		}
	case k < 97:
		m.crash()
	default:
		m.close()
	}
	got := make(pods)
	for p := range m.db.Pods() {
		got[p.ID] = p.State
	}
	if !maps.Equal(got, m.visible) {
		m.t.Errorf("memory has %v, want %v", got, m.visible)
	}
}

func (m *model) sync(name string, w write, err error) {
	m.log = append(m.log, fmt.Sprint(name, w.changes, err))
	w.acked, w.doubt = err == nil, err != nil
	m.history = append(m.history, w)
	if err == nil {
		m.visible.apply(w)
	} else if m.broken == nil {
		m.t.Errorf("%s: %v", name, err)
	}
}

func (m *model) async(name string, w write, err error) {
	m.log = append(m.log, fmt.Sprint(name, w.changes))
	ok(m.t, err)
	m.history = append(m.history, w)
	m.visible.apply(w)
}

// fault breaks the disk, in one of the ways there are, or repairs it.
func (m *model) fault() {
	if m.broken != nil {
		m.broken = nil
		m.log = append(m.log, "repair")
		m.db.FailDurable(m.t, nil)
		ok(m.t, m.db.Flush(m.t.Context()))
		m.sync("flush", write{}, nil)
		return
	}
	way := m.rand.IntN(4)
	m.log = append(m.log, fmt.Sprint("break ", way))
	m.broken = []func(string) error{
		func(p string) error { return at(p, "commit", unix.ENOSPC) },
		func(p string) error { return at(p, "committed", unix.EIO) },
		func(p string) error { return panicAt(p, "commit") },
		func(p string) error { return panicAt(p, "committed") },
	}[way]
	m.db.FailDurable(m.t, m.broken)
}

func (m *model) crash() {
	m.log = append(m.log, "crash")
	m.db.Abandon()
	m.reopen()
}

func (m *model) close() {
	err := m.db.Close()
	m.log = append(m.log, fmt.Sprint("close ", err))
	if err == nil {
		m.history = append(m.history, write{acked: true})
	} else if m.broken == nil {
		m.t.Error(err)
	}
	m.reopen()
}

func (m *model) reopen() {
	m.open()
	storetest.Check(m.t, m.db)
	got := make(pods)
	for p := range m.db.Pods() {
		got[p.ID] = p.State
	}
	from := 1 + slices.IndexFunc(m.history, func(w write) bool { return w.acked })
	for i, w := range m.history {
		if w.acked {
			from = i + 1
		}
	}
	found := false
	for k := from; k <= len(m.history) && !found; k++ {
		want := maps.Clone(m.file)
		for i, w := range m.history[:k] {
			if !w.doubt || i == k-1 {
				want.apply(w)
			}
		}
		found = maps.Equal(got, want)
	}
	if !found {
		m.t.Errorf("after a crash there is %v, which is what no part of %+v makes of %v", got, m.history, m.file)
	}
	m.file, m.visible, m.history = maps.Clone(got), got, nil
}
