// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// A DB is what the node remembers. Its methods may be called by many goroutines.
//
// Reads come from memory and wait for no commit. What they return of a record is
// read-only where it is a map or a slice.
//
// Writes that take a context return when they are durable; the end of the context
// ends the waiting, not the write. An error of the disk is returned to all whose
// writes were to be committed together: readers never see those, and they may be
// tried again at once. (If it was the very last sync that failed, and the machine
// goes down before the next commit, the write may be found all the same, as with
// any file.)
//
// Writes called Async return at once, are visible at once, and are durable some
// milliseconds later, in the order in which they were queued together with all
// others: a power cut may undo the last ones, but none before an earlier write. If
// the disk is full they are tried until they succeed, and Config.OnFault is told.
type DB struct {
	mu sync.RWMutex // guards what is visible: all tables. Never held over I/O or a function of a caller.

	pods       *table[PodID, Pod]
	containers *table[ContainerID, Container]
	images     *table[ImageID, Image]
	layers     *table[LayerID, Layer]
	runs       *table[string, runRecord]

	livePods       *LiveTable[PodID]
	liveContainers *LiveTable[ContainerID]
	boots          *table[string, bootRecord]

	durable *writer // berth.db
	live    *writer // live.db
	locks   []*os.File

	// How the run before this one ended. Fixed.
	previous runRecord
	rebooted bool

	ending sync.Once
	endErr error
}

// A runRecord, of which there is one in berth.db, tells of the process that has
// the file, or had it last.
type runRecord struct {
	Run       uint64 `json:"run"`                 // counts the processes
	LastClean uint64 `json:"lastClean,omitempty"` // the last of them that ended as it should
	Clean     bool   `json:"clean,omitempty"`     // this one has
	Boot      string `json:"boot,omitempty"`      // boot id of the kernel

	extra extra
}

func (r *runRecord) unknown() *extra { return &r.extra }

// A bootRecord, of which there is one in live.db, says for which boot of the
// kernel all of it holds.
type bootRecord struct {
	Boot string `json:"boot"`

	extra extra
}

func (r *bootRecord) unknown() *extra { return &r.extra }

// The keys of the bucket meta besides the version.
const (
	keyRun  = "run"
	keyBoot = "boot"
)

func newDB() *DB {
	db := &DB{
		pods: newTable(
			func(p *Pod) PodID { return p.ID },
			func(a, b *Pod) int { return orderOf(a.CreatedAt, b.CreatedAt, a.ID, b.ID) },
			entry(bucketPods, func(p *Pod) string { return string(p.ID) }),
			map[string]func(*Pod) []string{byState: func(p *Pod) []string { return []string{p.State} }},
		),
		containers: newTable(
			func(c *Container) ContainerID { return c.ID },
			func(a, b *Container) int { return orderOf(a.CreatedAt, b.CreatedAt, a.ID, b.ID) },
			entry(bucketContainers, func(c *Container) string { return string(c.ID) }),
			map[string]func(*Container) []string{
				byState: func(c *Container) []string { return []string{c.State} },
				byPod:   func(c *Container) []string { return []string{string(c.PodID)} },
			},
		),
		images: newTable(
			func(i *Image) ImageID { return i.ID },
			func(a, b *Image) int { return cmp.Compare(a.ID, b.ID) },
			entry(bucketImages, func(i *Image) string { return string(i.ID) }),
			map[string]func(*Image) []string{
				byName:  func(i *Image) []string { return i.Names },
				byLayer: func(i *Image) []string { return texts(i.Layers...) },
			},
		),
		layers: newTable(
			func(l *Layer) LayerID { return l.ID },
			func(a, b *Layer) int { return cmp.Compare(a.ID, b.ID) },
			entry(bucketLayers, func(l *Layer) string { return string(l.ID) }),
			map[string]func(*Layer) []string{byParent: func(l *Layer) []string { return texts(l.Parent) }},
		),
		runs:  newSingle[runRecord](keyRun),
		boots: newSingle[bootRecord](keyBoot),
	}
	db.livePods = newLiveTable[PodID](db, "pod")
	db.liveContainers = newLiveTable[ContainerID](db, "container")
	return db
}

// newSingle is a table of one record in the bucket meta.
func newSingle[R any](key string) *table[string, R] {
	return newTable(func(*R) string { return key }, func(_, _ *R) int { return 0 }, entry(bucketMeta, func(*R) string { return key }), nil)
}

// entry returns how a record that takes one entry is encoded.
func entry[R any](bucket string, key func(*R) string) func(*R) []put {
	return func(r *R) []put {
		b, err := encode(r)
		if err != nil {
			panic("store: record that had been encoded: " + err.Error())
		}
		return []put{{bucket, key(r), frame(bucket, key(r), b)}}
	}
}

// single is the change of the one record of a table.
func single[R any](t *table[string, R], r *R) *changes {
	return &changes{
		list:  []change{&rowChange[string, R]{t, t.id(r), r, t.encode(r)}},
		valid: func(bool) error { return nil },
	}
}

// orderOf puts the older first.
func orderOf[K ~string](a, b time.Time, ida, idb K) int {
	return cmp.Or(a.Compare(b), cmp.Compare(ida, idb))
}

// texts turns typed ids into text for an index.
func texts[D ~string](ids ...D) []string {
	out := make([]string, 0, len(ids))
	for _, id := range ids {
		if id != "" {
			out = append(out, string(id))
		}
	}
	return out
}

// Update calls fn and commits what it has put and deleted, all or nothing, and
// returns when that is durable. An error of fn is returned, and nothing is
// written.
//
// Fn may be called more than once, and after Update has returned because its
// context ended: it must have no effects but on the Tx. A panic in it comes out of
// Update.
func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	return db.durable.do(ctx, func() (*changes, error) {
		tx := db.newTx()
		if err := fn(tx); err != nil {
			return nil, err
		}
		return tx.changes(), nil
	})
}

// put commits what fn puts, which does not depend on what is there.
func (db *DB) put(ctx context.Context, fn func(*Tx) error) error {
	tx := db.newTx()
	if err := fn(tx); err != nil {
		return err
	}
	return db.durable.do(ctx, func() (*changes, error) { return tx.changes(), nil })
}

// putLater is put without waiting.
func (db *DB) putLater(fn func(*Tx) error) error {
	tx := db.newTx()
	if err := fn(tx); err != nil {
		return err
	}
	return db.durable.later(tx.changes())
}

// Flush returns when all that was queued before it is durable.
func (db *DB) Flush(ctx context.Context) error {
	return db.durable.run(ctx, func(err error) error { return err })
}

// LivePods are the live records of pods.
func (db *DB) LivePods() *LiveTable[PodID] { return db.livePods }

// LiveContainers are the live records of containers.
func (db *DB) LiveContainers() *LiveTable[ContainerID] { return db.liveContainers }

// Run counts the processes that had this store, the current one included.
func (db *DB) Run() uint64 { return db.previous.Run + 1 }

// LastCleanRun is the last run that was ended by Close, the current one never; 0
// if there was none. Files that were committed in later runs may have suffered
// from a power cut.
func (db *DB) LastCleanRun() uint64 { return db.previous.LastClean }

// CleanShutdown reports whether the run before this one was ended by Close, or
// there was none.
func (db *DB) CleanShutdown() bool { return db.previous.Clean }

// Rebooted reports whether the node was booted since the run before this one: then
// the live records are gone, and what was running has ended. True if there was
// none.
func (db *DB) Rebooted() bool { return db.rebooted }

// get returns a visible record.
func get[K ~string, R any](db *DB, t *table[K, R], id K) (R, bool) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if r := t.rows[id]; r != nil {
		return *r, true
	}
	var none R
	return none, false
}

// all goes through the records that are visible when it begins.
func all[K ~string, R any](db *DB, t *table[K, R]) iter.Seq[R] {
	return func(yield func(R) bool) {
		db.mu.RLock()
		rows := slices.Clone(t.sorted)
		db.mu.RUnlock()
		each(rows, yield)
	}
}

// where goes through those that have a property.
func where[K ~string, R any](db *DB, t *table[K, R], name, key string) iter.Seq[R] {
	return func(yield func(R) bool) {
		db.mu.RLock()
		rows := t.where(name, key)
		db.mu.RUnlock()
		each(rows, yield)
	}
}

func each[R any](rows []*R, yield func(R) bool) {
	for _, r := range rows {
		if !yield(*r) {
			return
		}
	}
}

// find returns the one id that begins with a prefix, or is it.
func find[K ~string, R any](db *DB, t *table[K, R], prefix string) (K, error) {
	found, n := begins(db, t, prefix)
	switch {
	case n == 1:
		return found, nil
	case n > 1:
		return "", fmt.Errorf("%w: %s", ErrAmbiguous, prefix)
	}
	return "", fmt.Errorf("%w: %q", ErrNotFound, clip(prefix))
}

// begins returns an id that begins with a prefix, and how many there are: one, if it is the whole of one.
func begins[K ~string, R any](db *DB, t *table[K, R], prefix string) (found K, n int) {
	if prefix == "" {
		return "", 0
	}
	db.mu.RLock()
	defer db.mu.RUnlock()
	if _, ok := t.rows[K(prefix)]; ok {
		return K(prefix), 1
	}
	for id := range t.rows {
		if strings.HasPrefix(string(id), prefix) {
			found = id
			n++
		}
	}
	return found, n
}
