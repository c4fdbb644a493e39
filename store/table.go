// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"maps"
	"slices"
)

// A table is the records of one sort in memory. DB.mu guards all of it.
//
// A record that is in rows or batch is never changed, only replaced: it is read by those who were given
// it, without the lock.
type table[K ~string, R any] struct {
	// What a table is made of, fixed.
	id      func(*R) K
	order   func(a, b *R) int            // for lists; total
	encode  func(*R) []put               // all that the files hold of a record
	keys    map[string]func(*R) []string // the properties that there are indexes for
	indexes map[string]*index[K]

	// rows is what readers see.
	rows   map[K]*R
	sorted []*R
	// batch is what the commit under way, if it succeeds, will make of rows.
	batch map[K]staged[R]
	// pins has the records with an asynchronous write that is not in the file yet. Such a write shows in
	// rows at once, and no commit of an earlier one may undo that.
	pins map[K]pin[R]
}

// pin is the last asynchronous write to a record, and what the file has of it meanwhile; nil for nothing.
type pin[R any] struct {
	seq    uint64
	inFile *R
}

// staged is a record that a write wants to be, nil to be deleted, and the number of that write.
type staged[R any] struct {
	row *R
	seq uint64
}

// An index leads from a property of records to the records that have it.
type index[K comparable] struct {
	ids map[string]map[K]struct{}
}

func newTable[K ~string, R any](id func(*R) K, order func(a, b *R) int, encode func(*R) []put, keys map[string]func(*R) []string) *table[K, R] {
	t := &table[K, R]{
		id: id, order: order, encode: encode, keys: keys,
		indexes: make(map[string]*index[K]),
		rows:    make(map[K]*R),
		batch:   make(map[K]staged[R]),
		pins:    make(map[K]pin[R]),
	}
	for name := range keys {
		t.indexes[name] = &index[K]{make(map[string]map[K]struct{})}
	}
	return t
}

// set makes a record visible; nil removes it.
func (t *table[K, R]) set(id K, r *R) {
	if old, ok := t.rows[id]; ok {
		if r != nil && t.order(old, r) == 0 {
			at, _ := slices.BinarySearchFunc(t.sorted, old, t.order)
			t.sorted[at], t.rows[id] = r, r
			t.reindex(id, old, false)
			t.reindex(id, r, true)
			return
		}
		if at, found := slices.BinarySearchFunc(t.sorted, old, t.order); found {
			t.sorted = slices.Delete(t.sorted, at, at+1)
		}
		delete(t.rows, id)
		t.reindex(id, old, false)
	}
	if r == nil {
		return
	}
	t.rows[id] = r
	at, _ := slices.BinarySearchFunc(t.sorted, r, t.order)
	t.sorted = slices.Insert(t.sorted, at, r)
	t.reindex(id, r, true)
}

func (t *table[K, R]) reindex(id K, r *R, add bool) {
	for name, keys := range t.keys {
		ids := t.indexes[name].ids
		for _, key := range keys(r) {
			switch {
			case add && ids[key] == nil:
				ids[key] = map[K]struct{}{id: {}}
			case add:
				ids[key][id] = struct{}{}
			default:
				delete(ids[key], id)
				if len(ids[key]) == 0 {
					delete(ids, key)
				}
			}
		}
	}
}

// load makes all records visible at once.
func (t *table[K, R]) load(rs []*R) {
	slices.SortFunc(rs, t.order)
	t.sorted = rs
	for _, r := range rs {
		t.rows[t.id(r)] = r
		t.reindex(t.id(r), r, true)
	}
}

// where returns the visible records that an index leads to, in order.
func (t *table[K, R]) where(name, key string) []*R {
	ids := t.indexes[name].ids[key]
	rs := make([]*R, 0, len(ids))
	for id := range ids {
		rs = append(rs, t.rows[id])
	}
	slices.SortFunc(rs, t.order)
	return rs
}

// newest returns a record as the last write that is known left it: a transaction's own (local), those of
// the commit under way (if inBatch), or the visible one.
func (t *table[K, R]) newest(id K, local map[K]*R, inBatch bool) *R {
	if r, ok := local[id]; ok {
		return r
	}
	if s, ok := t.batch[id]; ok && inBatch && t.pins[id].seq <= s.seq {
		return s.row
	}
	return t.rows[id]
}

// newestWhere calls fn for the newest form of each record that may have a property, until it returns
// false. Some of them do not have it: fn is to look.
func (t *table[K, R]) newestWhere(name, key string, local map[K]*R, inBatch bool, fn func(*R) bool) {
	candidates := maps.Clone(t.indexes[name].ids[key])
	if candidates == nil {
		candidates = make(map[K]struct{})
	}
	for id := range t.batch {
		candidates[id] = struct{}{}
	}
	for id := range local {
		candidates[id] = struct{}{}
	}
	for id := range candidates {
		if r := t.newest(id, local, inBatch); r != nil && !fn(r) {
			return
		}
	}
}

// contents goes through all that the files hold of the table.
func (t *table[K, R]) contents(yield func(put) bool) bool {
	for id, r := range t.rows {
		if _, pinned := t.pins[id]; !pinned && !t.yield(r, yield) {
			return false
		}
	}
	for _, p := range t.pins {
		if p.inFile != nil && !t.yield(p.inFile, yield) {
			return false
		}
	}
	return true
}

func (t *table[K, R]) yield(r *R, yield func(put) bool) bool {
	for _, p := range t.encode(r) {
		if !yield(p) {
			return false
		}
	}
	return true
}

// problems returns what is wrong with the table itself: an index that was not kept.
func (t *table[K, R]) problems() []string {
	var out []string
	fresh := newTable(t.id, t.order, t.encode, t.keys)
	fresh.load(slices.Collect(maps.Values(t.rows)))
	if !slices.Equal(fresh.sorted, t.sorted) {
		out = append(out, "the list in memory is not that of the records in memory")
	}
	for name, ix := range fresh.indexes {
		if !maps.EqualFunc(ix.ids, t.indexes[name].ids, maps.Equal[map[K]struct{}, map[K]struct{}]) {
			out = append(out, "the index by "+name+" is not that of the records in memory")
		}
	}
	return out
}

// A change is one record written, in a transaction. DB.mu is held for all but puts.
type change interface {
	// puts are the entries to write.
	puts() []put
	// stage adds the change to what the commit under way will make visible.
	stage(seq uint64)
	// unstage takes it out again.
	unstage()
	// show says that it is in the file, and makes it visible unless a later asynchronous write is.
	show(seq uint64)
	// pin makes an asynchronous one visible.
	pin(seq uint64)
	// unpin says that an asynchronous one is in the file.
	unpin(seq uint64)
}

// rowChange is a change of one table.
type rowChange[K ~string, R any] struct {
	t       *table[K, R]
	id      K
	row     *R // nil: deleted
	entries []put
}

var _ change = (*rowChange[PodID, Pod])(nil)

func (c *rowChange[K, R]) puts() []put      { return c.entries }
func (c *rowChange[K, R]) stage(seq uint64) { c.t.batch[c.id] = staged[R]{c.row, seq} }
func (c *rowChange[K, R]) unstage()         { delete(c.t.batch, c.id) }

func (c *rowChange[K, R]) show(seq uint64) {
	if p, ok := c.t.pins[c.id]; ok && p.seq > seq {
		c.t.pins[c.id] = pin[R]{p.seq, c.row}
		return
	}
	c.t.set(c.id, c.row)
}

func (c *rowChange[K, R]) pin(seq uint64) {
	inFile := c.t.rows[c.id]
	if p, ok := c.t.pins[c.id]; ok {
		inFile = p.inFile
	}
	c.t.pins[c.id] = pin[R]{seq, inFile}
	c.t.set(c.id, c.row)
}

func (c *rowChange[K, R]) unpin(seq uint64) {
	if p := c.t.pins[c.id]; p.seq > seq {
		c.t.pins[c.id] = pin[R]{p.seq, c.row}
		return
	}
	delete(c.t.pins, c.id)
}
