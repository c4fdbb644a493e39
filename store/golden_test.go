// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
	"github.com/berth-cri/berth/store/storetest"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files of the current release anew; commit the changes only if you understand what caused them")

// current is the folder of the release that is being made. Those before it stay as they are.
const current = "testdata/v1"

// The records in testdata, with no field left empty: what a release adds to a record it adds here, and
// writes to a new folder below testdata.

func fullPod() store.Pod {
	return store.Pod{
		ID: "3c5ddbdf543f8c4d3a8b0e4a3c9d577c5ddbdf543f8c4d3a8b0e4a3c9d57aaaa", Name: "web-0", Namespace: "default", UID: "3f8c4d3a-8b0e", Attempt: 2,
		Handler: "gvisor", Labels: map[string]string{"app": "web", "": "<&>"}, Annotations: map[string]string{"note": "one\ntwo"},
		CreatedAt: stamp(1), LogDirectory: "/var/log/pods/default_web-0_3f8c4d3a-8b0e", State: "NOTREADY", EndedAt: stamp(2),
		Reason: "Stopped", Message: "by request",
		Network: store.Network{
			Host: true, Namespace: "/run/netns/berth-1",
			Attachment: &store.Attachment{
				Network: "bridge", Interface: "eth0", Result: []byte(`{"cniVersion":"1.1.0"}`),
				IPs: []netip.Addr{netip.MustParseAddr("fd00::2"), netip.MustParseAddr("10.88.0.2")},
			},
		},
	}
}

func fullContainer() store.Container {
	return store.Container{
		ID: "4c5ddbdf543f8c4d3a8b0e4a3c9d577c5ddbdf543f8c4d3a8b0e4a3c9d57bbbb", PodID: fullPod().ID, Name: "web", Attempt: 3,
		Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"note": "x"},
		Image: "busybox:1.36", UserImage: "busybox", ImageID: fullImage().ID, ImageRef: fullImage().RepoDigests[0],
		LogPath: "web/3.log", StopSignal: "SIGUSR1", CreatedAt: stamp(3), StartedAt: stamp(4), FinishedAt: stamp(5),
		State: "EXITED", ExitCode: 137, Reason: "OOMKilled", Message: "container limit",
	}
}

func fullImage() store.Image {
	uid := int64(1000)
	return store.Image{
		ID: "sha256:1111111111111111111111111111111111111111111111111111111111111111", Names: []string{"docker.io/library/busybox:1.36"},
		RepoDigests: []string{"docker.io/library/busybox@sha256:2222222222222222222222222222222222222222222222222222222222222222"},
		Manifest:    "sha256:2222222222222222222222222222222222222222222222222222222222222222",
		Config:      "sha256:1111111111111111111111111111111111111111111111111111111111111111", ConfigBytes: []byte("{ \"a\": 1 }\n"),
		Layers: []store.LayerID{layer("base"), fullLayer().ID}, Size: 4_200_000, Pinned: true, UID: &uid, Username: "web", PulledAt: stamp(6),
	}
}

func fullLayer() store.Layer {
	return store.Layer{
		ID: "sha256:3333333333333333333333333333333333333333333333333333333333333333", DiffID: "sha256:4444444444444444444444444444444444444444444444444444444444444444",
		Parent: layer("base"), Blob: content.Digest("sha256:5555555555555555555555555555555555555555555555555555555555555555"), Bytes: 4_100_000, Inodes: 420,
		ImplicitParents: true, ForeignLinks: true, CommittedAt: stamp(7), Run: 9, Verified: true,
	}
}

func stamp(n int64) time.Time { return time.Unix(1_780_000_000, n).UTC() }

// TestFull holds that the records above have no field left empty.
func TestFull(t *testing.T) {
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		if v.Type().PkgPath() != reflect.TypeFor[store.Pod]().PkgPath() || v.Kind() != reflect.Struct {
			if v.IsZero() {
				t.Errorf("%s is empty", path)
			}
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				walk(path+"."+f.Name, v.Field(i))
			}
		}
	}
	for _, r := range []any{fullPod(), fullContainer(), fullImage(), fullLayer()} {
		walk(reflect.TypeOf(r).Name(), reflect.ValueOf(r))
	}
}

// TestGolden holds that records are written as the current release writes them, and that those of all
// releases are read.
func TestGolden(t *testing.T) {
	golden(t, "pod.json", fullPod())
	golden(t, "container.json", fullContainer())
	golden(t, "image.json", fullImage())
	golden(t, "layer.json", fullLayer())
	golden(t, "step.json", store.Step{Name: "network", EnteredAt: stamp(1), DoneAt: stamp(2), LeftAt: stamp(3), Facts: []byte(`{"pid":7}`)})
}

func golden[R any](t *testing.T, name string, r R) {
	t.Helper()
	b, err := store.Encode(&r)
	ok(t, err)
	var pretty bytes.Buffer
	ok(t, json.Indent(&pretty, b, "", "  "))
	pretty.WriteByte('\n')
	path := filepath.Join(current, name)
	if *rewrite {
		ok(t, os.MkdirAll(current, 0o755))
		ok(t, os.WriteFile(path, pretty.Bytes(), 0o644))
	}
	want, err := os.ReadFile(path)
	ok(t, err)
	if !bytes.Equal(pretty.Bytes(), want) {
		t.Errorf("%s: written as\n%s\nnot as\n%s", name, pretty.Bytes(), want)
	}
	older, err := filepath.Glob("testdata/v*/" + name)
	ok(t, err)
	for _, path := range older {
		old, err := os.ReadFile(path)
		ok(t, err)
		got, err := store.Decode[R](old)
		ok(t, err)
		again, err := store.Encode(got)
		ok(t, err)
		// A field that this release does not know would come out at the end.
		if path == filepath.Join(current, name) && !bytes.Equal(again, b) {
			t.Errorf("%s: read as %+v", path, *got)
		}
		for key := range keys(t, old) {
			if !keys(t, again)[key] {
				t.Errorf("%s: the field %s is gone", path, key)
			}
		}
	}
}

func keys(t *testing.T, b []byte) map[string]bool {
	t.Helper()
	var fields map[string]json.RawMessage
	ok(t, json.Unmarshal(b, &fields))
	out := make(map[string]bool)
	for key := range fields {
		out[key] = true
	}
	return out
}

// TestGoldenFiles opens the files that releases have left.
func TestGoldenFiles(t *testing.T) {
	const boot = "golden"
	if *rewrite {
		cfg := storetest.Folders(t)
		cfg.BootID = boot
		db := storetest.OpenAt(t, cfg)
		everything(t, db)
		ok(t, db.Close())
		for _, path := range []string{filepath.Join(cfg.Root, "berth.db"), filepath.Join(cfg.State, "live.db")} {
			b, err := os.ReadFile(path)
			ok(t, err)
			ok(t, os.WriteFile(filepath.Join(current, filepath.Base(path)), b, 0o644))
		}
	}
	releases, err := filepath.Glob("testdata/v*/berth.db")
	ok(t, err)
	if len(releases) == 0 {
		t.Fatal("no golden files")
	}
	for _, path := range releases {
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			cfg := storetest.Folders(t)
			cfg.BootID = boot
			for name, folder := range map[string]string{"berth.db": cfg.Root, "live.db": cfg.State} {
				b, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
				ok(t, err)
				ok(t, os.MkdirAll(folder, 0o700))
				ok(t, os.WriteFile(filepath.Join(folder, name), b, 0o600))
			}
			db := storetest.OpenAt(t, cfg)
			p, _ := db.Pod(fullPod().ID)
			c, _ := db.Container(fullContainer().ID)
			i, _ := db.ImageNamed(fullImage().Names[0])
			l, _ := db.Layer(fullLayer().ID)
			if p.Name != fullPod().Name || c.ExitCode != fullContainer().ExitCode || i.ID != fullImage().ID || l.Bytes != fullLayer().Bytes {
				t.Errorf("read as %+v %+v %+v %+v", p, c, i, l)
			}
			live, _ := db.LivePods().Get(p.ID)
			if string(live.Config) != "config\x00\xff" || len(live.Steps) != 2 || live.Steps[0].Name != "cgroup" || live.Steps[1].Open() {
				t.Errorf("live record read as %+v", live)
			}
			if !db.CleanShutdown() || db.Run() != 2 {
				t.Errorf("clean %v, run %d", db.CleanShutdown(), db.Run())
			}
		})
	}
}

// TestUnknownFields has records of a later release pass through this one.
func TestUnknownFields(t *testing.T) {
	b, err := store.Encode(&store.Pod{ID: "p", Name: "n"})
	ok(t, err)
	later := strings.TrimSuffix(string(b), "}") + `,"colour":{"deep":["<&>",1.50,null]},"Zeta":"z"}`
	p, err := store.Decode[store.Pod]([]byte(later))
	ok(t, err)
	p.State = "READY"
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	ok(t, db.PutPod(t.Context(), *p))
	db = reopen(t, db, cfg)
	got, _ := db.Pod("p")
	got.State = "NOTREADY"
	ok(t, db.PutPodAsync(got))
	db = reopen(t, db, cfg)
	got, _ = db.Pod("p")
	if got.Name != "n" || got.State != "NOTREADY" {
		t.Errorf("read as %+v", got)
	}
	b, err = store.Encode(&got)
	ok(t, err)
	var fields map[string]json.RawMessage
	ok(t, json.Unmarshal(b, &fields))
	if string(fields["colour"]) != `{"deep":["<&>",1.50,null]}` || string(fields["Zeta"]) != `"z"` {
		t.Errorf("written as %s", b)
	}
}
