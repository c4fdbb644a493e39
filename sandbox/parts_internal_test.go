// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
)

// These suites hold what lifecycles rely on. Each is run with the simulated part here,
// and with the real one by the tests that need root: so the simulation cannot drift.

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// errEnded is the cause with which tests end contexts.
var errEnded = errors.New("the caller has gone")

func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errEnded)
	return ctx
}

// namespacesPart is Namespaces under test.
type namespacesPart struct {
	Namespaces
	// unfinish leaves what a Make leaves that was killed before it had pinned anything.
	unfinish func(t *testing.T, id store.PodID)
}

// testNamespaces is the suite of Namespaces, of which there are none yet.
func testNamespaces(t *testing.T, part namespacesPart) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(id store.PodID, pinned bool, list ...string) {
		t.Helper()
		if is, err := part.Pinned(id); err != nil || is != pinned {
			t.Errorf("%s: pinned: %v, %v; want %v", id, is, err, pinned)
		}
		if ids, err := part.List(); err != nil || !slices.Equal(ids, list) {
			t.Errorf("list: %q, %v; want %q", ids, err, list)
		}
	}
	request := func(id string) ns.Request {
		return ns.Request{ID: id, Net: true, IPC: true, UTS: true, Hostname: "pod-" + id}
	}
	makes := func(r ns.Request) {
		t.Helper()
		made, err := part.Make(ctx, r)
		must(err)
		defer made.Close()
		if (made.Net != nil) != r.Net || (made.IPC != nil) != r.IPC || (made.UTS != nil) != r.UTS {
			t.Errorf("made %+v for %+v", made, r)
		}
	}

	// Nothing is there, not even a folder for pins.
	want("a", false)
	must(part.Remove("a"))
	want("a", false)

	makes(request("b"))
	makes(request("a"))
	want("a", true, "a", "b")
	makes(request("a")) // again
	want("a", true, "a", "b")
	must(part.Remove("a"))
	want("a", false, "b")
	must(part.Remove("a"))
	makes(request("a"))
	want("a", true, "a", "b")

	// What has no network of its own has no pin.
	makes(ns.Request{ID: "host", IPC: true})
	makes(ns.Request{ID: "nothing"})
	want("host", false, "a", "b")
	must(part.Remove("host"))

	// A Make that was killed is taken back, or done again.
	for _, then := range []func(){func() { must(part.Remove("c")) }, func() { makes(request("c")) }} {
		part.unfinish(t, "c")
		want("c", false, "a", "b", "c")
		then()
	}
	want("c", true, "a", "b", "c")

	if _, err := part.Make(ctx, ns.Request{ID: "../a", Net: true}); !errors.Is(err, ns.ErrInvalid) {
		t.Errorf("make for a bad id: %v, want ErrInvalid", err)
	}
	if _, err := part.Make(ended(t), request("d")); !errors.Is(err, errEnded) {
		t.Errorf("make when the caller has gone: %v, want the context's cause", err)
	}
	want("d", false, "a", "b", "c")
	for _, id := range []store.PodID{"a", "b", "c"} {
		must(part.Remove(id))
	}
	want("a", false)
}

// networkPart is a Network under test.
type networkPart struct {
	Network
	Namespaces Namespaces
	// pod returns what the network is told of a pod.
	pod func(id store.PodID) PodNetwork
}

// testNetwork is the suite of Network.
func testNetwork(t *testing.T, part networkPart) {
	ctx := t.Context()
	attach := func(p PodNetwork) {
		t.Helper()
		a, err := part.Attach(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if a.Interface == "" || len(a.IPs) == 0 || !a.IPs[0].IsValid() || a.IPs[0].IsUnspecified() {
			t.Errorf("attached by %+v, want an interface and an address", a)
		}
	}
	detach := func(p PodNetwork) {
		t.Helper()
		if err := part.Detach(ctx, p); err != nil {
			t.Errorf("detach: %v", err)
		}
	}
	p := part.pod(store.NewPodID())
	detach(p) // never attached, and no namespace
	if _, err := part.Attach(ctx, p); err == nil {
		t.Error("a pod without a namespace was attached")
	}
	detach(p) // attached in part
	made, err := part.Namespaces.Make(ctx, ns.Request{ID: string(p.ID), Net: true, PinDir: filepath.Dir(p.NetNS)})
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	attach(p)
	attach(p) // what the first has left is no hindrance
	detach(p)
	detach(p)
	if _, err := part.Attach(ended(t), p); !errors.Is(err, errEnded) {
		t.Errorf("attach when the caller has gone: %v, want the context's cause", err)
	}
	detach(p)
	attach(p)
	detach(PodNetwork{ID: p.ID, Name: p.Name, Namespace: p.Namespace, UID: p.UID, NetNS: p.NetNS}) // as after a reboot
	if err := part.Namespaces.Remove(p.ID); err != nil {
		t.Fatal(err)
	}
	detach(p) // the namespace has gone
}

// imagesPart is Images under test.
type imagesPart struct {
	Images
	name       string // of an image that is there
	file, text string // a file in it, and what it has
}

// testImages is the suite of Images.
func testImages(t *testing.T, part imagesPart) {
	ctx := t.Context()
	if _, err := part.Resolve(ctx, "no-such-image"); !errors.Is(err, ErrNotFound) {
		t.Errorf("resolve of what is not there: %v, want ErrNotFound", err)
	}
	image, err := part.Resolve(ctx, part.name)
	if err != nil {
		t.Fatal(err)
	}
	if image.ID == "" || image.Name == "" || image.Ref == "" {
		t.Errorf("resolved to %+v, want id, name and reference", image)
	}
	id := store.NewContainerID()
	remove := func() {
		t.Helper()
		if err := part.RemoveRootfs(ctx, id); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	remove() // never made
	for range 2 {
		first, err := part.Rootfs(ctx, id, image.ID)
		if err != nil {
			t.Fatal(err)
		}
		again, err := part.Rootfs(ctx, id, image.ID)
		if err != nil || first.Bind != again.Bind || first.Upper != again.Upper || !slices.Equal(first.Lower, again.Lower) {
			t.Errorf("root file system is %+v, again %+v, %v", first, again, err)
		}
		remove()
		remove()
	}
	for limit, want := range map[int64]string{1 << 20: part.text, 4: part.text[:4], int64(len(part.text)): part.text} {
		if b, err := part.ReadFile(ctx, image.ID, part.file, limit); err != nil || string(b) != want {
			t.Errorf("%s up to %d bytes: %q, %v; want %q", part.file, limit, b, err, want)
		}
	}
	if _, err := part.ReadFile(ctx, image.ID, "/no/such/file", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v, want fs.ErrNotExist", err)
	}
}

// TestSimulatedParts runs the suites with what all other tests of this package stand on.
func TestSimulatedParts(t *testing.T) {
	boot := func(t *testing.T) *life {
		l := newNode(t).boot(-1, nil)
		t.Cleanup(l.end)
		return l
	}
	t.Run("executor", func(t *testing.T) {
		l := boot(t)
		testExecutor(t, executorPart{
			Executor: l, Exits: l,
			request: func(_ *testing.T, pod, id string) wire.Create {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.rootfs[id] = true
				return wire.Create{ID: id, Pod: pod}
			},
			shared: func(t *testing.T, pod string) (wire.PodCreate, []*os.File) {
				made, err := simNamespaces{l}.Make(t.Context(), ns.Request{ID: pod, IPC: true, UTS: true})
				if err != nil {
					t.Fatal(err)
				}
				return wire.PodCreate{ID: pod, Namespaces: []string{"ipc", "uts"}}, []*os.File{made.IPC, made.UTS}
			},
		})
	})
	t.Run("namespaces", func(t *testing.T) {
		l := boot(t)
		testNamespaces(t, namespacesPart{Namespaces: simNamespaces{l}, unfinish: func(_ *testing.T, id store.PodID) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.pins[string(id)] = false
		}})
	})
	t.Run("network", func(t *testing.T) {
		l := boot(t)
		testNetwork(t, networkPart{
			Network: simNetwork{l}, Namespaces: simNamespaces{l},
			pod: func(id store.PodID) PodNetwork { return PodNetwork{ID: id, NetNS: ns.Pin("", string(id))} },
		})
	})
	t.Run("images", func(t *testing.T) {
		const file = "/etc/os-release"
		testImages(t, imagesPart{Images: simImages{boot(t)}, name: "img", file: file, text: simFiles[file]})
	})
}
