// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
	"github.com/berth-cri/berth/store/storetest"
)

func TestMain(m *testing.M) {
	if os.Getenv(writerRoot) != "" {
		writeUntilKilled()
	}
	os.Exit(m.Run())
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// digest makes a digest of a word.
func digest(word string) content.Digest { return content.FromBytes([]byte(word)) }

func layer(word string) store.LayerID { return store.LayerID(digest(word)) }
func image(word string) store.ImageID { return store.ImageID(digest(word)) }

// reopen closes a store and opens it again.
func reopen(t *testing.T, db *store.DB, cfg store.Config) *store.DB {
	t.Helper()
	storetest.Check(t, db)
	ok(t, db.Close())
	return storetest.OpenAt(t, cfg)
}

// everything puts one of each sort of record, with no field left empty.
func everything(t *testing.T, db *store.DB) {
	t.Helper()
	ok(t, db.Update(t.Context(), func(tx *store.Tx) error {
		return errors.Join(
			tx.PutPod(fullPod()), tx.PutContainer(fullContainer()),
			tx.PutLayer(store.Layer{ID: layer("base"), DiffID: digest("base")}),
			tx.PutLayer(fullLayer()), tx.PutImage(fullImage()),
		)
	}))
	live := store.Live{Config: []byte("config\x00\xff"), Effective: []byte("effective"), JoinKey: digest("join")}
	ok(t, db.LivePods().Put(t.Context(), fullPod().ID, live))
	live.PodID = fullPod().ID
	ok(t, db.LiveContainers().Put(t.Context(), fullContainer().ID, live))
	for _, step := range []string{"cgroup", "network"} {
		ok(t, db.LivePods().Enter(t.Context(), fullPod().ID, step, []byte(`{"path":"/<a>"}`)))
		ok(t, db.LiveContainers().Enter(t.Context(), fullContainer().ID, step, nil))
	}
	ok(t, db.LivePods().Done(t.Context(), fullPod().ID, "cgroup", nil))
	ok(t, db.LivePods().Leave(t.Context(), fullPod().ID, "network"))
}

func collect(db *store.DB) []any {
	var out []any
	for p := range db.Pods() {
		out = append(out, p)
	}
	for c := range db.Containers() {
		out = append(out, c)
	}
	for i := range db.Images() {
		out = append(out, i)
	}
	for l := range db.Layers() {
		out = append(out, l)
	}
	for id, l := range db.LivePods().All() {
		out = append(out, id, l)
	}
	for id, l := range db.LiveContainers().All() {
		out = append(out, id, l)
	}
	return out
}

// TestReopen holds that all fields of all records read back as they were put.
func TestReopen(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	everything(t, db)
	before := collect(db)
	p, _ := db.Pod(fullPod().ID)
	c, _ := db.Container(fullContainer().ID)
	i, _ := db.Image(fullImage().ID)
	l, _ := db.Layer(fullLayer().ID)
	for _, pair := range [][2]any{{p, fullPod()}, {c, fullContainer()}, {i, fullImage()}, {l, fullLayer()}} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("got  %+v\nwant %+v", pair[0], pair[1])
		}
	}
	db = reopen(t, db, cfg)
	if after := collect(db); !reflect.DeepEqual(before, after) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
}

// TestPutCopies holds that what was put is not the caller's any more.
func TestPutCopies(t *testing.T) {
	db := storetest.Open(t)
	p := fullPod()
	ok(t, db.PutPod(t.Context(), p))
	p.Labels["app"] = "changed"
	p.Network.Attachment.Result[0] ^= 1
	if got, _ := db.Pod(p.ID); !reflect.DeepEqual(got, fullPod()) {
		t.Errorf("the store has %+v", got)
	}
	live := store.Live{Config: []byte("config"), Effective: []byte("effective")}
	ok(t, db.LivePods().Put(t.Context(), p.ID, live))
	facts := []byte(`{"a":1}`)
	ok(t, db.LivePods().Enter(t.Context(), p.ID, "step", facts))
	live.Config[0], live.Effective[0], facts[5] = 'X', 'X', '2'
	got, _ := db.LivePods().Get(p.ID)
	if string(got.Config) != "config" || string(got.Effective) != "effective" || string(got.Steps[0].Facts) != `{"a":1}` {
		t.Errorf("the store has %s", got.Config)
	}
}

// TestReturnedIsACopy holds that the fields of what was read are the caller's, and that writing to a
// map of it, which is not, is found out.
func TestReturnedIsACopy(t *testing.T) {
	db := storetest.Open(t)
	ok(t, db.PutPod(t.Context(), fullPod()))
	p, _ := db.Pod(fullPod().ID)
	p.State = "changed"
	if got, _ := db.Pod(p.ID); got.State == "changed" {
		t.Error("the record in the store has changed")
	}
	p.Labels["app"] = "changed"
	problems, err := db.Check(t.Context())
	ok(t, err)
	if len(problems) != 1 || !strings.Contains(problems[0].String(), "pods "+string(p.ID)+": the file holds something else") {
		t.Errorf("problems %v", problems)
	}
	p.Labels["app"] = fullPod().Labels["app"]
}

func TestDelete(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	everything(t, db)
	for range 2 {
		ok(t, db.LiveContainers().Delete(t.Context(), fullContainer().ID))
		ok(t, db.LivePods().Delete(t.Context(), fullPod().ID))
		ok(t, db.DeleteContainer(t.Context(), fullContainer().ID))
		ok(t, db.DeletePod(t.Context(), fullPod().ID))
		ok(t, db.DeleteImage(t.Context(), fullImage().ID))
		ok(t, db.DeleteLayer(t.Context(), fullLayer().ID))
		ok(t, db.DeleteLayer(t.Context(), layer("base")))
		if rest := collect(db); len(rest) != 0 {
			t.Errorf("left %v", rest)
		}
	}
	if _, found := db.Pod(fullPod().ID); found {
		t.Error("the pod is still found")
	}
	db = reopen(t, db, cfg)
	if rest := collect(db); len(rest) != 0 {
		t.Errorf("left after reopening: %v", rest)
	}
}

// TestLists holds order and indexes, which follow every change.
func TestLists(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	at := func(s int) time.Time { return time.Unix(int64(s), 0).UTC() }
	for _, p := range []store.Pod{
		{ID: "c", State: "READY", CreatedAt: at(3)},
		{ID: "b", State: "READY", CreatedAt: at(1)},
		{ID: "a", State: "READY", CreatedAt: at(3)},
		{ID: "d", State: "NOTREADY", CreatedAt: at(2)},
	} {
		ok(t, db.PutPod(t.Context(), p))
	}
	for _, c := range []store.Container{
		{ID: "c1", PodID: "a", State: "RUNNING", CreatedAt: at(5)},
		{ID: "c2", PodID: "b", State: "RUNNING", CreatedAt: at(6)},
		{ID: "c3", PodID: "a", State: "EXITED", CreatedAt: at(4)},
	} {
		ok(t, db.PutContainer(t.Context(), c))
	}
	want := func(db *store.DB, what string, want ...string) {
		t.Helper()
		var got []string
		switch what, arg, _ := strings.Cut(what, " "); what {
		case "pods":
			for p := range db.Pods() {
				got = append(got, string(p.ID))
			}
		case "podsIn":
			for p := range db.PodsIn(arg) {
				got = append(got, string(p.ID))
			}
		case "containers":
			for c := range db.Containers() {
				got = append(got, string(c.ID))
			}
		case "containersIn":
			for c := range db.ContainersIn(arg) {
				got = append(got, string(c.ID))
			}
		case "containersOf":
			for c := range db.ContainersOf(store.PodID(arg)) {
				got = append(got, string(c.ID))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	for again := range 2 {
		if again == 1 {
			db = reopen(t, db, cfg)
		}
		want(db, "pods", "b", "d", "a", "c")
		want(db, "podsIn READY", "b", "a", "c")
		want(db, "podsIn NOTREADY", "d")
		want(db, "podsIn nothing")
		want(db, "containers", "c3", "c1", "c2")
		want(db, "containersOf a", "c3", "c1")
		want(db, "containersOf b", "c2")
		want(db, "containersOf d")
		want(db, "containersIn RUNNING", "c1", "c2")
		want(db, "containersIn EXITED", "c3")
	}
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "b", State: "NOTREADY", CreatedAt: at(4)}))
	ok(t, db.DeleteContainerAsync("c2"))
	ok(t, db.PutContainerAsync(store.Container{ID: "c1", PodID: "b", State: "EXITED", CreatedAt: at(5)}))
	want(db, "pods", "d", "a", "c", "b")
	want(db, "podsIn READY", "a", "c")
	want(db, "podsIn NOTREADY", "d", "b")
	want(db, "containersOf a", "c3")
	want(db, "containersOf b", "c1")
	want(db, "containersIn RUNNING")
	want(db, "containersIn EXITED", "c3", "c1")
	n := 0
	for range db.Pods() {
		n++
		break
	}
	if n != 1 {
		t.Error("a list does not end when its reader does")
	}
}

func TestFind(t *testing.T) {
	db := storetest.Open(t)
	for _, id := range []store.PodID{"abc", "abd", "ab", "x1"} {
		ok(t, db.PutPod(t.Context(), store.Pod{ID: id}))
		ok(t, db.PutContainer(t.Context(), store.Container{ID: store.ContainerID(id), PodID: id}))
	}
	for _, c := range []struct {
		prefix string
		want   store.PodID
		err    error
	}{
		{"abc", "abc", nil},
		{"ab", "ab", nil}, // the whole of one, and the beginning of others
		{"a", "", store.ErrAmbiguous},
		{"x", "x1", nil},
		{"x12", "", store.ErrNotFound},
		{"", "", store.ErrNotFound},
	} {
		got, err := db.FindPod(c.prefix)
		wantErr(t, err, c.err)
		if got != c.want {
			t.Errorf("%q: %q", c.prefix, got)
		}
		ctr, err := db.FindContainer(c.prefix)
		wantErr(t, err, c.err)
		if string(ctr) != string(c.want) {
			t.Errorf("%q: %q", c.prefix, ctr)
		}
	}
}

func TestImages(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	ok(t, db.PutLayer(t.Context(), store.Layer{ID: layer("l1"), DiffID: digest("l1")}))
	ok(t, db.PutImage(t.Context(), store.Image{ID: image("old"), Names: []string{"a:1", "a:latest"}, Layers: []store.LayerID{layer("l1")}}))
	// A tag moves: both images in one write.
	ok(t, db.Update(t.Context(), func(tx *store.Tx) error {
		old, found := tx.ImageNamed("a:latest")
		if !found {
			return errors.New("no a:latest")
		}
		old.Names = []string{"a:1"}
		if err := tx.PutImage(store.Image{ID: image("new"), Names: []string{"a:latest"}}); err != nil {
			return err
		}
		if i, _ := tx.ImageNamed("a:latest"); i.ID != image("old") && i.ID != image("new") {
			return fmt.Errorf("a:latest is %s", i.ID)
		}
		if err := tx.PutImage(old); err != nil {
			return err
		}
		if i, _ := tx.ImageNamed("a:latest"); i.ID != image("new") {
			return fmt.Errorf("a:latest is still %s", i.ID)
		}
		return nil
	}))
	for again := range 2 {
		if again == 1 {
			db = reopen(t, db, cfg)
		}
		for name, want := range map[string]store.ImageID{"a:1": image("old"), "a:latest": image("new")} {
			if i, found := db.ImageNamed(name); !found || i.ID != want {
				t.Errorf("%s is %s", name, i.ID)
			}
		}
		if _, found := db.ImageNamed("a"); found {
			t.Error("a is found")
		}
		n := 0
		for i := range db.ImagesOf(layer("l1")) {
			if n++; i.ID != image("old") {
				t.Errorf("l1 is in %s", i.ID)
			}
		}
		if n != 1 {
			t.Errorf("l1 is in %d images", n)
		}
	}
}

// TestInvariants lists what is refused, each on a store with pod p, container c of it, layers base and
// top (on base), and image i of both, named n.
func TestInvariants(t *testing.T) {
	for _, c := range []struct {
		name string
		fn   func(*store.Tx) error
		want error
	}{
		{"container without pod", func(tx *store.Tx) error { return tx.PutContainer(store.Container{ID: "d", PodID: "q"}) }, store.ErrDangling},
		{"container with a pod of the same write", func(tx *store.Tx) error {
			return errors.Join(tx.PutContainer(store.Container{ID: "d", PodID: "q"}), tx.PutPod(store.Pod{ID: "q"}))
		}, nil},
		{"container moves to no pod", func(tx *store.Tx) error { return tx.PutContainer(store.Container{ID: "c", PodID: "q"}) }, store.ErrDangling},
		{"pod with container", func(tx *store.Tx) error { tx.DeletePod("p"); return nil }, store.ErrInUse},
		{"pod after its container", func(tx *store.Tx) error { tx.DeletePod("p"); tx.DeleteContainer("c"); return nil }, nil},
		{"pod whose container moves away", func(tx *store.Tx) error {
			tx.DeletePod("p")
			return errors.Join(tx.PutPod(store.Pod{ID: "q"}), tx.PutContainer(store.Container{ID: "c", PodID: "q"}))
		}, nil},
		{"pod with a container of the same write", func(tx *store.Tx) error {
			tx.DeleteContainer("c")
			tx.DeletePod("p")
			return tx.PutContainer(store.Container{ID: "d", PodID: "p"})
		}, store.ErrInUse},
		{"image without layer", func(tx *store.Tx) error {
			return tx.PutImage(store.Image{ID: image("j"), Layers: []store.LayerID{layer("base"), layer("none")}})
		}, store.ErrDangling},
		{"image with a layer of the same write", func(tx *store.Tx) error {
			return errors.Join(
				tx.PutImage(store.Image{ID: image("j"), Layers: []store.LayerID{layer("new")}}),
				tx.PutLayer(store.Layer{ID: layer("new"), DiffID: digest("new")}))
		}, nil},
		{"image with the name of another", func(tx *store.Tx) error {
			return tx.PutImage(store.Image{ID: image("j"), Names: []string{"m", "n"}})
		}, store.ErrNameTaken},
		{"two images of one write with a name", func(tx *store.Tx) error {
			return errors.Join(tx.PutImage(store.Image{ID: image("j"), Names: []string{"m"}}), tx.PutImage(store.Image{ID: image("k"), Names: []string{"m"}}))
		}, store.ErrNameTaken},
		{"a name that is given up in the same write", func(tx *store.Tx) error {
			tx.DeleteImage(image("i"))
			return tx.PutImage(store.Image{ID: image("j"), Names: []string{"n"}})
		}, nil},
		{"image again with its name", func(tx *store.Tx) error { return tx.PutImage(store.Image{ID: image("i"), Names: []string{"n"}}) }, nil},
		{"layer in use", func(tx *store.Tx) error { tx.DeleteLayer(layer("top")); return nil }, store.ErrInUse},
		{"layer with a layer on it", func(tx *store.Tx) error {
			tx.DeleteImage(image("i"))
			tx.DeleteLayer(layer("base"))
			return nil
		}, store.ErrInUse},
		{"layers with their image", func(tx *store.Tx) error {
			tx.DeleteLayer(layer("base"))
			tx.DeleteLayer(layer("top"))
			tx.DeleteImage(image("i"))
			return nil
		}, nil},
		{"layer without parent", func(tx *store.Tx) error {
			return tx.PutLayer(store.Layer{ID: layer("l"), DiffID: digest("l"), Parent: layer("none")})
		}, store.ErrDangling},

		{"pod without id", func(tx *store.Tx) error { return tx.PutPod(store.Pod{}) }, store.ErrInvalid},
		{"pod id that is a path", func(tx *store.Tx) error { return tx.PutPod(store.Pod{ID: "../x"}) }, store.ErrInvalid},
		{"pod id that is hidden", func(tx *store.Tx) error { return tx.PutPod(store.Pod{ID: ".x"}) }, store.ErrInvalid},
		{"pod id with a slash", func(tx *store.Tx) error { return tx.PutPod(store.Pod{ID: "x/y"}) }, store.ErrInvalid},
		{"pod id in capitals", func(tx *store.Tx) error { return tx.PutPod(store.Pod{ID: "ABC"}) }, store.ErrInvalid},
		{"pod id that is too long", func(tx *store.Tx) error { return tx.PutPod(store.Pod{ID: store.PodID(strings.Repeat("a", 129))}) }, store.ErrInvalid},
		{"container without id", func(tx *store.Tx) error { return tx.PutContainer(store.Container{PodID: "p"}) }, store.ErrInvalid},
		{"container with a wrong pod id", func(tx *store.Tx) error { return tx.PutContainer(store.Container{ID: "d"}) }, store.ErrInvalid},
		{"container with a wrong image id", func(tx *store.Tx) error {
			return tx.PutContainer(store.Container{ID: "d", PodID: "p", ImageID: "busybox"})
		}, store.ErrInvalid},
		{"image with a wrong id", func(tx *store.Tx) error { return tx.PutImage(store.Image{ID: "x"}) }, store.ErrInvalid},
		{"image with a wrong manifest", func(tx *store.Tx) error { return tx.PutImage(store.Image{ID: image("j"), Manifest: "x"}) }, store.ErrInvalid},
		{"image with a wrong config", func(tx *store.Tx) error { return tx.PutImage(store.Image{ID: image("j"), Config: "x"}) }, store.ErrInvalid},
		{"image with a wrong layer", func(tx *store.Tx) error {
			return tx.PutImage(store.Image{ID: image("j"), Layers: []store.LayerID{""}})
		}, store.ErrInvalid},
		{"image with a name twice", func(tx *store.Tx) error {
			return tx.PutImage(store.Image{ID: image("j"), Names: []string{"m", "m"}})
		}, store.ErrInvalid},
		{"image with an empty name", func(tx *store.Tx) error { return tx.PutImage(store.Image{ID: image("j"), Names: []string{""}}) }, store.ErrInvalid},
		{"layer with a wrong id", func(tx *store.Tx) error { return tx.PutLayer(store.Layer{ID: "x", DiffID: digest("x")}) }, store.ErrInvalid},
		{"layer without diff id", func(tx *store.Tx) error { return tx.PutLayer(store.Layer{ID: layer("l")}) }, store.ErrInvalid},
		{"layer with a wrong blob", func(tx *store.Tx) error {
			return tx.PutLayer(store.Layer{ID: layer("l"), DiffID: digest("l"), Blob: "x"})
		}, store.ErrInvalid},
		{"layer with a wrong parent", func(tx *store.Tx) error {
			return tx.PutLayer(store.Layer{ID: layer("l"), DiffID: digest("l"), Parent: "x"})
		}, store.ErrInvalid},
		{"layer that is its own parent", func(tx *store.Tx) error {
			return tx.PutLayer(store.Layer{ID: layer("l"), DiffID: digest("l"), Parent: layer("l")})
		}, store.ErrInvalid},
		{"time that JSON does not have", func(tx *store.Tx) error {
			return tx.PutPod(store.Pod{ID: "q", CreatedAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)})
		}, store.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := storetest.Open(t)
			ok(t, db.Update(t.Context(), func(tx *store.Tx) error {
				return errors.Join(
					tx.PutPod(store.Pod{ID: "p"}), tx.PutContainer(store.Container{ID: "c", PodID: "p"}),
					tx.PutLayer(store.Layer{ID: layer("base"), DiffID: digest("base")}),
					tx.PutLayer(store.Layer{ID: layer("top"), DiffID: digest("top"), Parent: layer("base")}),
					tx.PutImage(store.Image{ID: image("i"), Names: []string{"n"}, Layers: []store.LayerID{layer("base"), layer("top")}}),
				)
			}))
			before := collect(db)
			err := db.Update(t.Context(), c.fn)
			wantErr(t, err, c.want)
			if c.want != nil && !reflect.DeepEqual(before, collect(db)) {
				t.Error("it has changed something all the same")
			}
		})
	}
}

// TestAsyncInvariants holds that what is visible at once is refused at once.
func TestAsyncInvariants(t *testing.T) {
	db := storetest.Open(t)
	wantErr(t, db.PutContainerAsync(store.Container{ID: "c", PodID: "p"}), store.ErrDangling)
	wantErr(t, db.PutPodAsync(store.Pod{}), store.ErrInvalid)
	ok(t, db.PutPodAsync(store.Pod{ID: "p"}))
	ok(t, db.PutContainerAsync(store.Container{ID: "c", PodID: "p"}))
	wantErr(t, db.DeletePodAsync("p"), store.ErrInUse)
	ok(t, db.DeleteContainerAsync("c"))
	ok(t, db.DeletePodAsync("p"))
	if rest := collect(db); len(rest) != 0 {
		t.Errorf("left %v", rest)
	}
}

func TestTx(t *testing.T) {
	db := storetest.Open(t)
	everything(t, db)
	stop := errors.New("stop")
	before := collect(db)
	err := db.Update(t.Context(), func(tx *store.Tx) error {
		p, found := tx.Pod(fullPod().ID)
		if !found || !reflect.DeepEqual(p, fullPod()) {
			t.Errorf("pod %+v", p)
		}
		if c, found := tx.Container(fullContainer().ID); !found || c.Name != fullContainer().Name {
			t.Errorf("container %+v", c)
		}
		if i, found := tx.Image(fullImage().ID); !found || i.Size != fullImage().Size {
			t.Errorf("image %+v", i)
		}
		if l, found := tx.Layer(fullLayer().ID); !found || l.Bytes != fullLayer().Bytes {
			t.Errorf("layer %+v", l)
		}
		p.State = "of this write"
		ok(t, tx.PutPod(p))
		if p, _ := tx.Pod(p.ID); p.State != "of this write" {
			t.Errorf("does not see its own: %s", p.State)
		}
		tx.DeleteContainer(fullContainer().ID)
		if _, found := tx.Container(fullContainer().ID); found {
			t.Error("sees what it has deleted")
		}
		if p, _ := db.Pod(p.ID); p.State == "of this write" {
			t.Error("others see it")
		}
		return stop
	})
	wantErr(t, err, stop)
	if !reflect.DeepEqual(before, collect(db)) {
		t.Error("a write that failed has changed something")
	}
}

// TestPanicIsTheCallers holds that a panic in a function comes out where the function was given in, and
// that the store goes on.
func TestPanicIsTheCallers(t *testing.T) {
	db := storetest.Open(t)
	func() {
		defer func() {
			p := recover()
			if p == nil || !strings.Contains(fmt.Sprint(p), "the caller's") {
				t.Errorf("recovered %v", p)
			}
		}()
		_ = db.Update(t.Context(), func(*store.Tx) error { panic("the caller's") })
		t.Error("returned")
	}()
	ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
}

func TestContextEnded(t *testing.T) {
	db := storetest.Open(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, db.PutPod(ended, store.Pod{ID: "p"}), context.Canceled)
	wantErr(t, db.Update(ended, func(*store.Tx) error { t.Error("called"); return nil }), context.Canceled)
	wantErr(t, db.LivePods().Put(ended, "p", store.Live{}), context.Canceled)
	_, err := db.Check(ended)
	wantErr(t, err, context.Canceled)
	if n := len(collect(db)); n != 0 {
		t.Errorf("%d records", n)
	}
	_, err = store.Open(ended, storetest.Folders(t))
	wantErr(t, err, context.Canceled)
}

func TestClosed(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	ok(t, db.PutPodAsync(store.Pod{ID: "p"}))
	for range 2 {
		ok(t, db.Close())
	}
	wantErr(t, db.PutPod(t.Context(), store.Pod{ID: "q"}), store.ErrClosed)
	wantErr(t, db.PutPodAsync(store.Pod{ID: "q"}), store.ErrClosed)
	wantErr(t, db.DeletePodAsync("p"), store.ErrClosed)
	wantErr(t, db.LivePods().Put(t.Context(), "q", store.Live{}), store.ErrClosed)
	wantErr(t, db.Flush(t.Context()), store.ErrClosed)
	_, err := db.Check(t.Context())
	wantErr(t, err, store.ErrClosed)
	if _, found := db.Pod("p"); !found {
		t.Error("reads end with Close")
	}
	if db = storetest.OpenAt(t, cfg); len(collect(db)) != 1 {
		t.Errorf("what was queued before Close is lost: %v", collect(db))
	}
}

// TestSecrets writes markers where secrets are and looks for them in every file below the root.
func TestSecrets(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	const marker = "S3CR3T-M4RKER"
	secret := []byte(strings.Repeat("PASSWORD="+marker+"\x00", 50))
	for n := range 20 {
		p, c := aPod(n), aContainer(n, aPod(n).ID)
		ok(t, db.PutPod(t.Context(), p))
		ok(t, db.PutContainer(t.Context(), c))
		ok(t, db.LivePods().Put(t.Context(), p.ID, store.Live{Config: secret, Effective: secret}))
		ok(t, db.LiveContainers().Put(t.Context(), c.ID, store.Live{PodID: p.ID, Config: secret, Effective: secret}))
		ok(t, db.LivePods().Enter(t.Context(), p.ID, "step", []byte(`{"env":"`+marker+`"}`)))
		c.State, p.State = "EXITED", "NOTREADY"
		ok(t, db.PutContainerAsync(c))
		ok(t, db.PutPodAsync(p))
	}
	count := func(folder string) (found, files int) {
		ok(t, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			files++
			// As it is, and as JSON would have it.
			for _, form := range [][]byte{[]byte(marker), []byte("UzNDUjNULU00UktFU"), []byte("MzQ1IzVC1NNFJLRV"), []byte("TM0NSM1QtTTRSS0VS")} {
				found += bytes.Count(b, form)
			}
			return err
		}))
		return found, files
	}
	look := func(when string) {
		t.Helper()
		if found, files := count(cfg.Root); found != 0 || files == 0 {
			t.Errorf("%s: %d secrets in %d files below the root", when, found, files)
		}
		if found, _ := count(cfg.State); found == 0 {
			t.Errorf("%s: no secret in the state folder: the test looks for the wrong thing", when)
		}
	}
	look("open")
	db = reopen(t, db, cfg)
	look("reopened")
	storetest.Crash(db)
	db = storetest.OpenAt(t, cfg)
	look("crashed")
	ok(t, db.Close())
	look("closed")
}

// TestParallel has everything at once; the race detector and Check do the looking.
func TestParallel(t *testing.T) {
	db := storetest.Open(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := range 25 {
				p := aPod(g*1000 + n)
				c := aContainer(g*1000+n, p.ID)
				live := db.LiveContainers()
				for _, err := range []error{
					db.PutPod(t.Context(), p),
					live.Put(t.Context(), c.ID, store.Live{PodID: p.ID, Config: []byte("config")}),
					live.Enter(t.Context(), c.ID, "rootfs", nil),
					db.PutContainer(t.Context(), c),
					live.Done(t.Context(), c.ID, "rootfs", []byte(`{}`)),
					db.Update(t.Context(), func(tx *store.Tx) error {
						c, _ := tx.Container(c.ID)
						c.State = "STOPPING"
						return tx.PutContainer(c)
					}),
				} {
					if err != nil {
						t.Error(err)
					}
				}
				c.State = "EXITED"
				if err := db.PutContainerAsync(c); err != nil {
					t.Error(err)
				}
				if n%2 == 0 {
					for _, err := range []error{
						live.Leave(t.Context(), c.ID, "rootfs"), live.Delete(t.Context(), c.ID),
						db.DeleteContainerAsync(c.ID), db.DeletePodAsync(p.ID),
					} {
						if err != nil {
							t.Error(err)
						}
					}
				}
				if _, found := db.Pod(p.ID); found != (n%2 == 1) {
					t.Errorf("pod %d found: %v", n, found)
				}
			}
		})
		wg.Go(func() {
			for range 50 {
				for c := range db.Containers() {
					if _, found := c.Labels["app"]; !found {
						t.Error("no label")
					}
				}
				for range db.ContainersIn("EXITED") {
				}
				for range db.LiveContainers().All() {
				}
				if _, err := db.FindPod("0"); err == nil {
					continue
				}
			}
		})
	}
	wg.Wait()
	n := 0
	for c := range db.Containers() {
		if n++; c.State != "EXITED" {
			t.Errorf("container %s is %s", c.ID, c.State)
		}
	}
	if n != 8*12 {
		t.Errorf("%d containers", n)
	}
}

func TestNewIDs(t *testing.T) {
	seen := make(map[string]bool)
	for range 100 {
		for _, id := range []string{string(store.NewPodID()), string(store.NewContainerID())} {
			if len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" || seen[id] {
				t.Errorf("id %q", id)
			}
			seen[id] = true
		}
	}
}
