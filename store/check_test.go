// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"slices"
	"testing"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/storetest"
)

// TestCheck writes what the store would have refused into files that are not open, and holds that each is
// found, by name, and nothing else.
func TestCheck(t *testing.T) {
	const step = `{"name":"s","enteredAt":"2026-05-01T00:00:00Z"}`
	const left = `{"name":"s","enteredAt":"2026-05-01T00:00:00Z","leftAt":"2026-05-01T00:00:00Z"}`
	l := func(word string) string { return string(digest(word)) }
	type entry struct{ file, bucket, key, json string }
	for _, c := range []struct {
		name    string
		entries []entry
		want    []string
	}{
		{"in order", nil, nil},
		{
			"container without pod",
			[]entry{{"berth.db", "containers", "d", `{"id":"d","podId":"gone"}`}},
			[]string{"berth.db: containers d: refers to pod gone, which is not there"},
		},
		{
			"pod with a wrong id",
			[]entry{{"berth.db", "pods", "../p", `{"id":"../p"}`}},
			[]string{`berth.db: pods ../p: invalid record: pod id "../p"`},
		},
		{
			"container with a wrong image id",
			[]entry{{"berth.db", "containers", "d", `{"id":"d","podId":"p","imageId":"x"}`}},
			[]string{`berth.db: containers d: invalid record: image id of container d: bad digest: "x"`},
		},
		{
			"image without layer",
			[]entry{{"berth.db", "images", l("j"), `{"id":"` + l("j") + `","layers":["` + l("gone") + `"],"size":1}`}},
			[]string{"berth.db: images " + l("j") + ": refers to layer " + l("gone") + ", which is not there"},
		},
		{
			"image with a name of another",
			[]entry{{"berth.db", "images", l("j"), `{"id":"` + l("j") + `","names":["n"],"size":1}`}},
			[]string{"berth.db: images " + max(l("i"), l("j")) + ": has the name n, which image " + min(l("i"), l("j")) + " has"},
		},
		{
			"image with a wrong id",
			[]entry{{"berth.db", "images", "j", `{"id":"j","size":1}`}},
			[]string{`berth.db: images j: invalid record: image id: bad digest: "j"`},
		},
		{
			"layer without parent",
			[]entry{{"berth.db", "layers", l("l"), `{"id":"` + l("l") + `","diffId":"` + l("l") + `","parent":"` + l("gone") + `","bytes":0,"inodes":0}`}},
			[]string{"berth.db: layers " + l("l") + ": refers to layer " + l("gone") + ", which is not there"},
		},
		{
			"layer with a wrong diff id",
			[]entry{{"berth.db", "layers", l("l"), `{"id":"` + l("l") + `","diffId":"x","bytes":0,"inodes":0}`}},
			[]string{"berth.db: layers " + l("l") + ": invalid record: diff id of layer " + l("l") + `: bad digest: "x"`},
		},
		{
			"layers in a circle",
			[]entry{
				{"berth.db", "layers", l("l"), `{"id":"` + l("l") + `","diffId":"` + l("l") + `","parent":"` + l("m") + `","bytes":0,"inodes":0}`},
				{"berth.db", "layers", l("m"), `{"id":"` + l("m") + `","diffId":"` + l("m") + `","parent":"` + l("l") + `","bytes":0,"inodes":0}`},
			},
			[]string{
				"berth.db: layers " + min(l("l"), l("m")) + ": its parents go in a circle",
				"berth.db: layers " + max(l("l"), l("m")) + ": its parents go in a circle",
			},
		},
		{
			"live pod without pod",
			[]entry{{"live.db", "pod-record", "q", `{}`}},
			[]string{"live.db: pod q: has no durable record, and no open step of a creation"},
		},
		{
			"live pod without pod, unwound",
			[]entry{{"live.db", "pod-record", "q", `{}`}, {"live.db", "pod-steps", "q/00000000", left}},
			[]string{"live.db: pod q: has no durable record, and no open step of a creation"},
		},
		{"live pod of a creation", []entry{{"live.db", "pod-record", "q", `{}`}, {"live.db", "pod-steps", "q/00000000", step}}, nil},
		{
			"live container without container",
			[]entry{{"live.db", "container-record", "d", `{"podId":"p"}`}},
			[]string{"live.db: container d: has no durable record, and no open step of a creation"},
		},
		{
			"live container of nobody's pod",
			[]entry{
				{"live.db", "container-record", "d", `{"podId":"gone"}`}, {"live.db", "container-steps", "d/00000000", step},
			},
			[]string{`live.db: container d: refers to pod "gone", which is not there`},
		},
		{"live container of a pod of a creation", []entry{
			{"live.db", "pod-record", "q", `{}`},
			{"live.db", "pod-steps", "q/00000000", step},
			{"live.db", "container-record", "d", `{"podId":"q"}`},
			{"live.db", "container-steps", "d/00000000", step},
		}, nil},
		{
			"a step twice",
			[]entry{{"live.db", "pod-steps", "p/00000007", step}, {"live.db", "pod-steps", "p/00000008", step}},
			[]string{`live.db: pod p: step "s" is entered twice`},
		},
		{"a step again after it was left", []entry{{"live.db", "pod-steps", "p/00000007", left}, {"live.db", "pod-steps", "p/00000008", step}}, nil},
		{
			"a step without a name",
			[]entry{{"live.db", "pod-steps", "p/00000007", `{"name":"","enteredAt":"2026-05-01T00:00:00Z"}`}},
			[]string{"live.db: pod p: step 0 has no name or no time"},
		},
		{
			"a step without a time",
			[]entry{{"live.db", "pod-steps", "p/00000007", `{"name":"s","enteredAt":"0001-01-01T00:00:00Z"}`}},
			[]string{"live.db: pod p: step 0 has no name or no time"},
		},
		{
			"a wrong join key",
			[]entry{{"live.db", "pod-record", "p", `{"joinKey":"x"}`}},
			[]string{`live.db: pod p: invalid record: join key: bad digest: "x"`},
		},
		{
			"a step of no record",
			[]entry{{"live.db", "pod-steps", "p2/00000000", step}},
			[]string{"live.db: pod-record p2: is in memory, not in the file"},
		},
		{"records in the form of another version", []entry{
			{"berth.db", "pods", "p", `{ "uid":"x", "colour": "red", "id":"p" }`},
			{"berth.db", "containers", "c", `{"podId":"p","id":"c"}`},
			{"berth.db", "images", l("i"), `{"size":1, "names":["n"], "id":"` + l("i") + `"}`},
			{"berth.db", "layers", l("l"), `{"diffId":"` + l("l") + `","id":"` + l("l") + `"}`},
			{"berth.db", "meta", "run", `{"clean": true,"run":7,"x":1}`},
			{"live.db", "pod-record", "p", `{"x":1,"podId":""}`},
			{"live.db", "pod-steps", "p/00000007", `{"x":1,"enteredAt":"2026-05-01T00:00:00Z","name":"s"}`},
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := storetest.Folders(t)
			db := storetest.OpenAt(t, cfg)
			ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
			ok(t, db.PutContainer(t.Context(), store.Container{ID: "c", PodID: "p"}))
			ok(t, db.PutImage(t.Context(), store.Image{ID: image("i"), Names: []string{"n"}}))
			ok(t, db.LivePods().Put(t.Context(), "p", store.Live{}))
			ok(t, db.Close())
			for _, e := range c.entries {
				path := durablePath(cfg)
				if e.file == "live.db" {
					path = livePath(cfg)
				}
				ok(t, store.RawPut(path, e.bucket, e.key, store.Frame(e.bucket, e.key, []byte(e.json))))
			}
			db, err := store.Open(t.Context(), cfg)
			ok(t, err)
			defer db.Close()
			for range 2 {
				problems, err := db.Check(t.Context())
				ok(t, err)
				var got []string
				for _, p := range problems {
					got = append(got, p.String())
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("found %q\n want %q", got, c.want)
				}
			}
		})
	}
}

// TestCheckReadsTheFile changes a file under the store.
func TestCheckReadsTheFile(t *testing.T) {
	cfg := storetest.Folders(t)
	db, err := store.Open(t.Context(), cfg)
	ok(t, err)
	defer db.Close()
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
	ok(t, store.Unlocked(durablePath(cfg), func(path string) error {
		return store.RawPut(path, "pods", "q", store.Frame("pods", "q", []byte(`{"id":"q"}`)))
	}))
	problems, err := db.Check(t.Context())
	ok(t, err)
	if len(problems) != 1 || problems[0].String() != "berth.db: pods q: is in the file, not in memory" {
		t.Errorf("found %v", problems)
	}
	ok(t, store.Unlocked(durablePath(cfg), func(path string) error { return store.RawPut(path, "pods", "p", nil) }))
	problems, err = db.Check(t.Context())
	ok(t, err)
	if len(problems) != 2 || problems[0].String() != "berth.db: pods p: is in memory, not in the file" {
		t.Errorf("found %v", problems)
	}
}

// TestStoretest holds that a test fails whose store is not in order at its end.
func TestStoretest(t *testing.T) {
	spy := &spyTB{TB: t}
	db := storetest.Open(spy)
	ok(t, db.PutPod(t.Context(), fullPod()))
	p, _ := db.Pod(fullPod().ID)
	p.Labels["app"] = "changed"
	spy.cleanup()
	if spy.errors != 1 {
		t.Errorf("%d errors", spy.errors)
	}
	wantErr(t, db.PutPod(t.Context(), fullPod()), store.ErrClosed)
}

// spyTB is a test that notes its errors.
type spyTB struct {
	testing.TB
	errors   int
	cleanups []func()
}

func (s *spyTB) Error(...any)      { s.errors++ }
func (s *spyTB) Cleanup(fn func()) { s.cleanups = append(s.cleanups, fn) }
func (s *spyTB) cleanup() {
	for _, fn := range slices.Backward(s.cleanups) {
		fn()
	}
}
