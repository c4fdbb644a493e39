// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-cri/berth/store/content"
)

// Live is what is known of a pod or container for as long as the node is up. It is
// in live.db, on a tmpfs: it survives the death of berth and no reboot, and
// the values of environment variables, which are in Config, reach no disk.
//
// A Live that the store returns shares its slices with the store and with other
// readers: they must not be written to.
type Live struct {
	// PodID is the pod of a container; of a pod it is empty.
	PodID PodID
	// Config is the configuration as received, marshalled, with what this version
	// does not know of it.
	Config []byte
	// Effective is what was made of it: the changes of plugins, the resolved user,
	// updates.
	Effective []byte
	// JoinKey tells whether a request is the one that this was made for.
	JoinKey content.Digest
	// Steps is the ledger: what was entered, in that order, and not forgotten since.
	Steps []Step

	extra extra
}

// A Step is one entry of the ledger. It is open from Enter to Leave; while it is,
// there is something to undo, or may be.
type Step struct {
	Name      string          `json:"name"`
	EnteredAt time.Time       `json:"enteredAt"`
	DoneAt    time.Time       `json:"doneAt,omitzero"` // zero: was not done, or berth died before it could say so
	LeftAt    time.Time       `json:"leftAt,omitzero"` // zero: open
	Facts     json.RawMessage `json:"facts,omitempty"` // what undo must know, of the step's owner

	number uint32 // in the ledger of its record, the first entered is the lowest
	extra  extra
}

func (s *Step) unknown() *extra { return &s.extra }

// Open reports whether a step was entered and not left.
func (s Step) Open() bool { return s.LeftAt.IsZero() }

const (
	// maxFacts bounds the facts of a step: they are to be small, and are all kept in memory.
	maxFacts = 16 << 10
	// maxLeft is how many steps that were left are remembered for people to read. A pod whose network
	// fails to come up again and again must not grow.
	maxLeft = 32
)

// A LiveTable is the live records of all pods, or of all containers. Its writes
// cost microseconds; they fail when the state folder is full.
type LiveTable[K ~string] struct {
	db    *DB
	kind  string // "pod", "container"
	table *table[K, liveRow[K]]
	// The names of its buckets. What is written often, a step, is an entry of its own.
	config, effective, record, steps string
}

// liveRow is a live record with its id.
type liveRow[K ~string] struct {
	id K
	Live
}

// liveRecord is how the small parts of a Live are kept.
type liveRecord struct {
	PodID   PodID          `json:"podId,omitempty"`
	JoinKey content.Digest `json:"joinKey,omitempty"`

	extra extra
}

func (r *liveRecord) unknown() *extra { return &r.extra }

func newLiveTable[K ~string](db *DB, kind string) *LiveTable[K] {
	t := &LiveTable[K]{
		db: db, kind: kind,
		config: kind + "-config", effective: kind + "-effective", record: kind + "-record", steps: kind + "-steps",
	}
	t.table = newTable(
		func(r *liveRow[K]) K { return r.id },
		func(a, b *liveRow[K]) int { return cmp.Compare(a.id, b.id) },
		func(r *liveRow[K]) []put {
			puts, err := t.entries(r.id, nil, r)
			if err != nil {
				panic("store: record that had been encoded: " + err.Error())
			}
			return puts
		},
		nil,
	)
	return t
}

// Get returns a live record.
func (t *LiveTable[K]) Get(id K) (Live, bool) {
	t.db.mu.RLock()
	defer t.db.mu.RUnlock()
	if r := t.table.rows[id]; r != nil {
		return r.Live, true
	}
	return Live{}, false
}

// All goes through the records as they are when it begins, in the order of their
// ids.
func (t *LiveTable[K]) All() iter.Seq2[K, Live] {
	return func(yield func(K, Live) bool) {
		t.db.mu.RLock()
		rows := slices.Clone(t.table.sorted)
		t.db.mu.RUnlock()
		for _, r := range rows {
			if !yield(r.id, r.Live) {
				return
			}
		}
	}
}

// Put adds a record, or replaces all of it but the ledger: Steps is not looked at.
// Steps that are named to be entered are entered with it, as by Enter, so that
// there is no moment at which a crash leaves a record with nothing to undo.
func (t *LiveTable[K]) Put(ctx context.Context, id K, l Live, enter ...string) error {
	if err := checkID(t.kind, string(id)); err != nil {
		return err
	}
	if err := checkDigest("join key", l.JoinKey, true); err != nil {
		return err
	}
	l.Config, l.Effective = bytes.Clone(l.Config), bytes.Clone(l.Effective)
	return t.change(ctx, id, func(old *liveRow[K]) (*liveRow[K], error) {
		next := &liveRow[K]{id, l}
		next.Steps, next.extra = nil, nil
		if old != nil {
			next.Steps, next.extra = slices.Clone(old.Steps), old.extra
		}
		for _, step := range enter {
			if err := t.enter(next, step, nil); err != nil {
				return nil, err
			}
		}
		return next, nil
	})
}

// Delete forgets a record, with its steps, open or not; one that is not there is
// no error.
func (t *LiveTable[K]) Delete(ctx context.Context, id K) error {
	return t.change(ctx, id, func(*liveRow[K]) (*liveRow[K], error) { return nil, nil })
}

// Enter writes down that a step is about to be taken. Facts, which may be nil, is
// JSON of at most 16 KiB. It returns ErrNotFound if there is no record, and
// ErrInvalid if a step of that name is open.
func (t *LiveTable[K]) Enter(ctx context.Context, id K, step string, facts json.RawMessage) error {
	return t.changeSteps(ctx, id, facts, func(r *liveRow[K], facts json.RawMessage) error {
		return t.enter(r, step, facts)
	})
}

// enter adds a step to a record whose steps are its own.
func (t *LiveTable[K]) enter(r *liveRow[K], step string, facts json.RawMessage) error {
	if step == "" {
		return fmt.Errorf("%w: a step without a name", ErrInvalid)
	}
	if openStep(r.Steps, step) >= 0 {
		return fmt.Errorf("%w: %s %s has entered %q", ErrInvalid, t.kind, r.id, step)
	}
	next := Step{Name: step, EnteredAt: now(), Facts: facts}
	if len(r.Steps) > 0 {
		next.number = r.Steps[len(r.Steps)-1].number + 1
	}
	r.Steps = append(forget(r.Steps), next)
	return nil
}

// Done writes down that an open step was taken, and what has come of it; nil facts
// leave those of Enter. It returns ErrNotFound if the step is not open.
func (t *LiveTable[K]) Done(ctx context.Context, id K, step string, facts json.RawMessage) error {
	return t.changeSteps(ctx, id, facts, func(r *liveRow[K], facts json.RawMessage) error {
		i := openStep(r.Steps, step)
		if i < 0 {
			return fmt.Errorf("%w: %s %s has not entered %q", ErrNotFound, t.kind, id, step)
		}
		r.Steps[i].DoneAt = now()
		if facts != nil {
			r.Steps[i].Facts = facts
		}
		return nil
	})
}

// Leave writes down that an open step was undone. It returns ErrNotFound if the
// step is not open.
func (t *LiveTable[K]) Leave(ctx context.Context, id K, step string) error {
	return t.changeSteps(ctx, id, nil, func(r *liveRow[K], _ json.RawMessage) error {
		i := openStep(r.Steps, step)
		if i < 0 {
			return fmt.Errorf("%w: %s %s has not entered %q", ErrNotFound, t.kind, id, step)
		}
		r.Steps[i].LeftAt = now()
		return nil
	})
}

// changeSteps changes the ledger of a record. The steps and facts that fn gets are its own.
func (t *LiveTable[K]) changeSteps(ctx context.Context, id K, facts json.RawMessage, fn func(*liveRow[K], json.RawMessage) error) error {
	if facts != nil {
		var compact bytes.Buffer // as it will be in the file
		if err := json.Compact(&compact, facts); err != nil {
			return fmt.Errorf("%w: facts: %w", ErrInvalid, err)
		}
		if facts = compact.Bytes(); len(facts) > maxFacts {
			return fmt.Errorf("%w: facts of %d bytes", ErrInvalid, len(facts))
		}
	}
	return t.change(ctx, id, func(old *liveRow[K]) (*liveRow[K], error) {
		if old == nil {
			return nil, fmt.Errorf("%w: %s %s", ErrNotFound, t.kind, id)
		}
		next := *old
		next.Steps = slices.Clone(old.Steps)
		return &next, fn(&next, facts)
	})
}

// change replaces a record by what fn makes of it; nil is none.
func (t *LiveTable[K]) change(ctx context.Context, id K, fn func(old *liveRow[K]) (*liveRow[K], error)) error {
	return t.db.live.do(ctx, func() (*changes, error) {
		t.db.mu.RLock()
		old := t.table.newest(id, nil, true)
		t.db.mu.RUnlock()
		next, err := fn(old)
		if err != nil {
			return nil, err
		}
		puts, err := t.entries(id, old, next)
		if err != nil {
			return nil, err
		}
		return &changes{
			list:  []change{&rowChange[K, liveRow[K]]{t.table, id, next, puts}},
			valid: func(bool) error { return nil },
		}, nil
	})
}

// entries returns what is to be written to make one record out of another; nil is none.
func (t *LiveTable[K]) entries(key K, old, next *liveRow[K]) ([]put, error) {
	var puts []put
	add := func(bucket, key string, payload []byte) {
		var value []byte
		if payload != nil {
			value = frame(bucket, key, payload)
		}
		puts = append(puts, put{bucket, key, value})
	}
	id := string(key)
	made, gone := old == nil, next == nil
	old, next = cmp.Or(old, &liveRow[K]{}), cmp.Or(next, &liveRow[K]{})
	for _, part := range []struct {
		bucket    string
		old, next []byte
	}{
		{t.config, old.Config, next.Config},
		{t.effective, old.Effective, next.Effective},
	} {
		if !bytes.Equal(part.old, part.next) {
			add(part.bucket, id, part.next)
		}
	}
	if gone {
		add(t.record, id, nil)
	} else if made || old.PodID != next.PodID || old.JoinKey != next.JoinKey {
		b, err := encode(&liveRecord{PodID: next.PodID, JoinKey: next.JoinKey, extra: next.extra})
		if err != nil {
			return nil, err
		}
		add(t.record, id, b)
	}
	was := make(map[uint32]*Step, len(old.Steps))
	for i := range old.Steps {
		was[old.Steps[i].number] = &old.Steps[i]
	}
	for i := range next.Steps {
		s := &next.Steps[i]
		if o := was[s.number]; o == nil || o.DoneAt != s.DoneAt || o.LeftAt != s.LeftAt || !bytes.Equal(o.Facts, s.Facts) {
			b, err := encode(s)
			if err != nil {
				return nil, err
			}
			add(t.steps, stepKey(id, s.number), b)
		}
		delete(was, s.number)
	}
	for number := range was {
		add(t.steps, stepKey(id, number), nil)
	}
	return puts, nil
}

// stepKey is the key of a step: an id has no slash, and the numbers sort as they are.
func stepKey(id string, number uint32) string { return fmt.Sprintf("%s/%08x", id, number) }

// read takes an entry of the file into rows.
func (t *LiveTable[K]) read(rows map[K]*liveRow[K], bucket, key string, payload []byte) error {
	id, number, isStep := strings.Cut(key, "/")
	if isStep != (bucket == t.steps) {
		return errors.New("key of another form")
	}
	r := rows[K(id)]
	if r == nil {
		r = &liveRow[K]{id: K(id)}
		rows[K(id)] = r
	}
	switch bucket {
	case t.config:
		r.Config = bytes.Clone(payload)
	case t.effective:
		r.Effective = bytes.Clone(payload)
	case t.record:
		l, err := decode[liveRecord](payload)
		if err != nil {
			return err
		}
		r.PodID, r.JoinKey, r.extra = l.PodID, l.JoinKey, l.extra
	case t.steps:
		s, err := decode[Step](payload)
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(number, 16, 32)
		if err != nil {
			return err
		}
		s.number = uint32(n)
		r.Steps = append(r.Steps, *s) // entries come in the order of their keys
	}
	return nil
}

// openStep returns where the open step of a name is, or -1.
func openStep(steps []Step, name string) int {
	return slices.IndexFunc(steps, func(s Step) bool { return s.Name == name && s.Open() })
}

// forget drops the oldest of the steps that were left, if there are too many.
func forget(steps []Step) []Step {
	left := 0
	for _, s := range steps {
		if !s.Open() {
			left++
		}
	}
	return slices.DeleteFunc(steps, func(s Step) bool {
		if s.Open() || left < maxLeft {
			return false
		}
		left--
		return true
	})
}

// now is the time as it reads back from a file.
func now() time.Time { return time.Now().UTC().Round(0) }
