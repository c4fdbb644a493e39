// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
)

// A Problem is one thing that Check has found.
type Problem struct {
	File   string // "berth.db", "live.db"; "" for what is in memory only
	Record string // "containers 0123..."; "" for the file as a whole
	Text   string
}

// String gives "berth.db: containers 0123...: refers to pod 4567..., which is not there".
func (p Problem) String() string {
	out := p.Text
	if p.Record != "" {
		out = p.Record + ": " + out
	}
	if p.File != "" {
		out = p.File + ": " + out
	}
	return out
}

// Check looks for what must not be, in an order that is the same every time; it
// finds nothing in a store that is in order:
//
//   - a file that is not a sound database, or that does not hold what memory does,
//     which is so when somebody has written to a record that the store had returned
//   - a record or a step of a ledger that does not have the right form
//   - a container without its pod, an image without one of its layers, a layer
//     without its parent, a name of two images
//   - a live record without a durable one, but for one with an open step: that is
//     of a creation under way, which recovery will unwind
//   - a live container whose pod nobody knows
//
// A container may name an image that is not there any more.
//
// Both files are read, between two commits. The error says why it could not look.
func (db *DB) Check(ctx context.Context) ([]Problem, error) {
	var problems []Problem
	for _, w := range []*writer{db.durable, db.live} {
		found, err := db.checkFile(ctx, w)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
	}
	db.mu.RLock()
	defer db.mu.RUnlock()
	return append(problems, db.checkRecords()...), nil
}

// checkFile compares a file with memory.
func (db *DB) checkFile(ctx context.Context, w *writer) (problems []Problem, err error) {
	name := filepath.Base(w.file.path)
	add := func(record, format string, args ...any) {
		problems = append(problems, Problem{name, record, fmt.Sprintf(format, args...)})
	}
	// The job may run when nobody waits for it any more.
	done := make(chan []Problem, 1)
	err = w.run(ctx, func(error) error {
		defer func() { done <- problems }()
		if w.file.suspect {
			add("", "the last commit failed, and the file is to be made anew: %v", w.lastErr)
			return nil
		}
		entries, err := readFile(w.file.path)
		if err != nil {
			add("", "%v", err)
			return nil
		}
		want := make(map[string][]byte)
		db.mu.RLock()
		for p := range w.contents() {
			want[p.bucket+" "+p.key] = p.value
		}
		db.mu.RUnlock()
		for _, e := range entries {
			if e.value == nil {
				continue
			}
			record := e.bucket + " " + e.key
			if value, ok := want[record]; !ok {
				add(record, "is in the file, not in memory")
			} else if !bytes.Equal(value, e.value) && !bytes.Equal(value, db.rewritten(e)) {
				add(record, "the file holds something else than memory; has somebody written to a record that was read?")
			}
			delete(want, record)
		}
		for record := range want {
			add(record, "is in memory, not in the file")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	problems = <-done
	slices.SortStableFunc(problems, func(a, b Problem) int { return bytes.Compare([]byte(a.Record), []byte(b.Record)) })
	return problems, nil
}

// rewritten is an entry as this version would have written it. Another one may have had other fields, or
// the same in another order.
func (db *DB) rewritten(e put) []byte {
	payload, err := unframe(e.bucket, e.key, e.value)
	if err != nil {
		return nil
	}
	switch p, c := db.livePods, db.liveContainers; e.bucket {
	case bucketPods:
		payload, err = recode[Pod](payload)
	case bucketContainers:
		payload, err = recode[Container](payload)
	case bucketImages:
		payload, err = recode[Image](payload)
	case bucketLayers:
		payload, err = recode[Layer](payload)
	case p.record, c.record:
		payload, err = recode[liveRecord](payload)
	case p.steps, c.steps:
		payload, err = recode[Step](payload)
	case bucketMeta:
		if e.key == keyRun {
			payload, err = recode[runRecord](payload)
		} else {
			payload, err = recode[bootRecord](payload)
		}
	}
	if err != nil {
		return nil
	}
	return frame(e.bucket, e.key, payload)
}

func recode[R any](payload []byte) ([]byte, error) {
	r, err := decode[R](payload)
	if err != nil {
		return nil, err
	}
	return encode(r)
}

// checkRecords looks at the records in memory. DB.mu is held.
func (db *DB) checkRecords() []Problem {
	var problems []Problem
	add := func(file, record, format string, args ...any) {
		problems = append(problems, Problem{file, record, fmt.Sprintf(format, args...)})
	}
	for _, text := range slices.Concat(
		db.pods.problems(), db.containers.problems(), db.images.problems(), db.layers.problems(),
		db.livePods.table.problems(), db.liveContainers.table.problems(),
	) {
		add("", "", "%s", text)
	}
	for _, p := range db.pods.sorted {
		if err := p.check(); err != nil {
			add(durableName, "pods "+string(p.ID), "%v", err)
		}
	}
	for _, c := range db.containers.sorted {
		record := "containers " + string(c.ID)
		if err := c.check(); err != nil {
			add(durableName, record, "%v", err)
		}
		if db.pods.rows[c.PodID] == nil {
			add(durableName, record, "refers to pod %s, which is not there", c.PodID)
		}
	}
	db.checkImages(add)
	checkLive(db.livePods, db.pods, add)
	checkLive(db.liveContainers, db.containers, add)
	for _, r := range db.liveContainers.table.sorted {
		if db.pods.rows[r.PodID] == nil && db.livePods.table.rows[r.PodID] == nil {
			add(liveName, "container "+string(r.id), "refers to pod %q, which is not there", r.PodID)
		}
	}
	return problems
}

func (db *DB) checkImages(add func(file, record, format string, args ...any)) {
	names := make(map[string]ImageID)
	for _, i := range db.images.sorted {
		record := "images " + string(i.ID)
		if err := i.check(); err != nil {
			add(durableName, record, "%v", err)
		}
		for _, l := range i.Layers {
			if db.layers.rows[l] == nil {
				add(durableName, record, "refers to layer %s, which is not there", l)
			}
		}
		for _, name := range i.Names {
			if other, ok := names[name]; ok {
				add(durableName, record, "has the name %s, which image %s has", name, other)
			}
			names[name] = i.ID
		}
	}
	for _, l := range db.layers.sorted {
		record := "layers " + string(l.ID)
		if err := l.check(); err != nil {
			add(durableName, record, "%v", err)
		}
		if l.Parent != "" && db.layers.rows[l.Parent] == nil {
			add(durableName, record, "refers to layer %s, which is not there", l.Parent)
		}
		// A chain longer than there are layers comes back to where it was.
		steps := 0
		for at := l; at != nil && at.Parent != ""; at = db.layers.rows[at.Parent] {
			if steps++; steps > len(db.layers.rows) {
				add(durableName, record, "its parents go in a circle")
				break
			}
		}
	}
}

// checkLive looks at live records and whether they have a durable one.
func checkLive[K ~string, R any](t *LiveTable[K], durable *table[K, R], add func(file, record, format string, args ...any)) {
	for _, r := range t.table.sorted {
		record := t.kind + " " + string(r.id)
		if err := checkID(t.kind, string(r.id)); err != nil {
			add(liveName, record, "%v", err)
		}
		if err := checkDigest("join key", r.JoinKey, true); err != nil {
			add(liveName, record, "%v", err)
		}
		open := make(map[string]bool)
		for i, s := range r.Steps {
			if s.Name == "" || s.EnteredAt.IsZero() {
				add(liveName, record, "step %d has no name or no time", i)
			}
			if s.Open() && open[s.Name] {
				add(liveName, record, "step %q is entered twice", s.Name)
			}
			open[s.Name] = open[s.Name] || s.Open()
		}
		if durable.rows[r.id] == nil && !slices.ContainsFunc(r.Steps, Step.Open) {
			add(liveName, record, "has no durable record, and no open step of a creation")
		}
	}
}
