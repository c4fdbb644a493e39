// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/storetest"
)

// steps writes a ledger as one line: "cgroup+ network+! rootfs-" for one that is open, one that is open and
// done, and one that was left.
func steps(db *store.DB, id store.ContainerID) string {
	l, _ := db.LiveContainers().Get(id)
	var out []string
	for _, s := range l.Steps {
		word := s.Name + "-"
		if s.Open() {
			word = s.Name + "+"
		}
		if !s.DoneAt.IsZero() {
			word += "!"
		}
		out = append(out, word+string(s.Facts))
	}
	return strings.Join(out, " ")
}

func TestLedger(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
	ok(t, db.PutContainer(t.Context(), store.Container{ID: "c", PodID: "p"}))
	live := func() *store.LiveTable[store.ContainerID] { return db.LiveContainers() }
	facts := json.RawMessage(`{ "path": "<x>" }`)
	for _, c := range []struct {
		name string
		do   func() error
		err  error
		want string
	}{
		{"enter without a record", func() error { return live().Enter(t.Context(), "c", "a", nil) }, store.ErrNotFound, ""},
		{"done without a record", func() error { return live().Done(t.Context(), "c", "a", nil) }, store.ErrNotFound, ""},
		{"leave without a record", func() error { return live().Leave(t.Context(), "c", "a") }, store.ErrNotFound, ""},
		{"put, and enter", func() error {
			return live().Put(t.Context(), "c", store.Live{PodID: "p", Steps: []store.Step{{Name: "not looked at"}}}, "a", "b")
		}, nil, "a+ b+"},
		{"enter", func() error { return live().Enter(t.Context(), "c", "c", facts) }, nil, `a+ b+ c+{"path":"<x>"}`},
		{"enter again", func() error { return live().Enter(t.Context(), "c", "b", nil) }, store.ErrInvalid, `a+ b+ c+{"path":"<x>"}`},
		{"put, and enter again", func() error { return live().Put(t.Context(), "c", store.Live{PodID: "p"}, "b") }, store.ErrInvalid, `a+ b+ c+{"path":"<x>"}`},
		{"done keeps facts", func() error { return live().Done(t.Context(), "c", "c", nil) }, nil, `a+ b+ c+!{"path":"<x>"}`},
		{"done with facts", func() error { return live().Done(t.Context(), "c", "c", json.RawMessage(`[1,2]`)) }, nil, `a+ b+ c+![1,2]`},
		{"leave", func() error { return live().Leave(t.Context(), "c", "b") }, nil, `a+ b- c+![1,2]`},
		{"leave again", func() error { return live().Leave(t.Context(), "c", "b") }, store.ErrNotFound, `a+ b- c+![1,2]`},
		{"done after leave", func() error { return live().Done(t.Context(), "c", "b", nil) }, store.ErrNotFound, `a+ b- c+![1,2]`},
		{"enter after leave", func() error { return live().Enter(t.Context(), "c", "b", nil) }, nil, `a+ b- c+![1,2] b+`},
		{"leave the second", func() error { return live().Leave(t.Context(), "c", "b") }, nil, `a+ b- c+![1,2] b-`},
		{"a step without a name", func() error { return live().Enter(t.Context(), "c", "", nil) }, store.ErrInvalid, `a+ b- c+![1,2] b-`},
		{"facts that are no JSON", func() error { return live().Enter(t.Context(), "c", "d", []byte(`{`)) }, store.ErrInvalid, `a+ b- c+![1,2] b-`},
		{"facts that are too long", func() error {
			return live().Enter(t.Context(), "c", "d", []byte(`"`+strings.Repeat("x", 16<<10)+`"`))
		}, store.ErrInvalid, `a+ b- c+![1,2] b-`},
		{"put keeps the ledger", func() error { return live().Put(t.Context(), "c", store.Live{PodID: "p", Config: []byte("x")}) }, nil, `a+ b- c+![1,2] b-`},
		{"a wrong id", func() error { return live().Put(t.Context(), "../c", store.Live{}) }, store.ErrInvalid, `a+ b- c+![1,2] b-`},
		{"a wrong join key", func() error { return live().Put(t.Context(), "c", store.Live{JoinKey: "x"}) }, store.ErrInvalid, `a+ b- c+![1,2] b-`},
	} {
		wantErr(t, c.do(), c.err)
		if got := steps(db, "c"); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		// The daemon may die after each.
		storetest.Check(t, db)
		storetest.Crash(db)
		db = storetest.OpenAt(t, cfg)
		if got := steps(db, "c"); got != c.want {
			t.Errorf("%s, reopened: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestLedgerOrder holds that steps come in the order in which they were entered, also where there are many.
func TestLedgerOrder(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	var want []string
	ok(t, db.LiveContainers().Put(t.Context(), "c", store.Live{}, "first"))
	for n := range 300 {
		want = append(want, fmt.Sprintf("s%d+", n))
		ok(t, db.LiveContainers().Enter(t.Context(), "c", fmt.Sprintf("s%d", n), nil))
	}
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
	ok(t, db.LiveContainers().Put(t.Context(), "c", store.Live{PodID: "p"}))
	for range 2 {
		if got := steps(db, "c"); got != "first+ "+strings.Join(want, " ") {
			t.Errorf("%s", got)
		}
		db = reopen(t, db, cfg)
	}
}

// TestLedgerForgets holds that steps that were left do not pile up, and that no open one is forgotten.
func TestLedgerForgets(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
	ok(t, db.PutContainer(t.Context(), store.Container{ID: "c", PodID: "p"}))
	ok(t, db.LiveContainers().Put(t.Context(), "c", store.Live{PodID: "p"}, "open"))
	for n := range 100 {
		step := fmt.Sprintf("s%d", n)
		ok(t, db.LiveContainers().Enter(t.Context(), "c", step, nil))
		ok(t, db.LiveContainers().Leave(t.Context(), "c", step))
	}
	for range 2 {
		got := strings.Fields(steps(db, "c"))
		if got[0] != "open+" || len(got) != 33 || got[32] != "s99-" || got[1] != "s68-" {
			t.Errorf("%d steps, %q to %q", len(got), got[0], got[len(got)-1])
		}
		db = reopen(t, db, cfg)
	}
}

// TestLiveTables holds that pods and containers of one id are two.
func TestLiveTables(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "x"}))
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "a"}))
	ok(t, db.PutContainer(t.Context(), store.Container{ID: "x", PodID: "x"}))
	ok(t, db.LivePods().Put(t.Context(), "x", store.Live{Config: []byte("pod")}, "s"))
	ok(t, db.LivePods().Put(t.Context(), "a", store.Live{Config: []byte{}}))
	ok(t, db.LiveContainers().Put(t.Context(), "x", store.Live{PodID: "x", Config: []byte("container")}, "s"))
	ok(t, db.LiveContainers().Leave(t.Context(), "x", "s"))
	for range 2 {
		p, _ := db.LivePods().Get("x")
		c, _ := db.LiveContainers().Get("x")
		if string(p.Config) != "pod" || string(c.Config) != "container" || !p.Steps[0].Open() || c.Steps[0].Open() {
			t.Errorf("%+v and %+v", p, c)
		}
		var got []store.PodID
		for id := range db.LivePods().All() {
			got = append(got, id)
		}
		if !slices.Equal(got, []store.PodID{"a", "x"}) {
			t.Errorf("pods %q", got)
		}
		for range db.LivePods().All() {
			break
		}
		db = reopen(t, db, cfg)
	}
	// What was there goes, also its parts.
	ok(t, db.LivePods().Put(t.Context(), "x", store.Live{}))
	if p, _ := db.LivePods().Get("x"); p.Config != nil || !p.Steps[0].Open() {
		t.Errorf("%+v", p)
	}
	ok(t, db.LivePods().Delete(t.Context(), "x"))
	db = reopen(t, db, cfg)
	if _, found := db.LivePods().Get("x"); found {
		t.Error("still there")
	}
}
