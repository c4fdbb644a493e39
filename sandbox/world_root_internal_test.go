// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2/textlogger"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/oci/ocitest"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/content"
	"github.com/berth-cri/berth/store/storetest"
)

// realNode is what outlives berth: an executor with its keeper, namespaces, and what
// stands for images and network.
type realNode struct {
	*ocitest.Node
	tb         testing.TB
	cfg        store.Config
	pins, logs string
	namespaces KernelNamespaces
	images     *folderImages
	network    *recordingNetwork
	features   spec.Features
	nodeName   string
	said       *syncBuffer // what berth has logged
}

func newRealNode(tb testing.TB) *realNode {
	tb.Helper()
	base := tb.TempDir() // on a disk, as overlays and logs are
	node := ocitest.New(tb, built.executor, leak.Under(base), leak.Mounts(base))
	n := &realNode{
		Node: node, tb: tb, pins: filepath.Join(node.Folder, "netns"), logs: filepath.Join(base, "logs"),
		cfg: store.Config{
			Root: filepath.Join(base, "root"), State: filepath.Join(node.Folder, "berth"),
			OnFault: func(err error) { tb.Errorf("store: %v", err) },
		},
		images:  newFolderImages(tb, base),
		said:    new(syncBuffer),
		network: &recordingNetwork{attached: make(map[store.PodID]netip.Addr)},
	}
	n.namespaces = KernelNamespaces{PinDir: n.pins}
	var err error
	if n.features, err = spec.Probe(); err != nil {
		tb.Fatal(err)
	}
	if n.nodeName, err = os.Hostname(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("berth said:\n%s", n.said)
		}
		// The folder of the pins is a mount of itself, and would be everybody's.
		err := unix.Unmount(n.pins, unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			tb.Errorf("clean up: %v", err)
		}
	})
	return n
}

// syncBuffer is a buffer for many writers.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// realLife is one process of berth on a realNode.
type realLife struct {
	*realNode
	executor *oci.Executor
	db       *store.DB
	rt       *Runtime

	// alive is held while something is done to the node, and taken for good by death: so
	// nothing is done after it.
	alive sync.RWMutex
	dead  bool // under alive
	// gone is the context of its callers: a connection to a dead process is broken.
	gone context.Context //nolint:containedctx // it is the process
	die  context.CancelCauseFunc

	// changed has an element when something may have happened.
	changed chan struct{}
}

// boot starts a process.
func (n *realNode) boot() *realLife {
	n.tb.Helper()
	cgroups, cerr := cgroup.Open("/sys/fs/cgroup")
	if cerr != nil {
		n.tb.Fatal(cerr)
	}
	l := &realLife{realNode: n, changed: make(chan struct{}, 1)}
	l.gone, l.die = context.WithCancelCause(n.tb.Context())
	var err error
	if l.executor, err = oci.Open(n.tb.Context(), n.Config.State); err != nil {
		n.tb.Fatal(err)
	}
	if l.db, err = store.Open(n.tb.Context(), n.cfg); err != nil {
		n.tb.Fatal(err)
	}
	l.rt = New(Config{
		Store: l.db, Executor: l.executor, Exits: l.executor, Streams: l.executor,
		Network: mortalNetwork{n.network, l}, Images: mortalImages{n.images, l}, Namespaces: mortalNamespaces{n.namespaces, l},
		State: n.cfg.State, Root: n.cfg.Root, Features: n.features, Cgroups: cgroups, Driver: cgroup.Cgroupfs, CgroupPrefix: "berth",
		Handlers: map[string]spec.Handler{"": {}}, NodeHostname: n.nodeName, PinDir: n.pins,
		Log: textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(n.said), textlogger.Verbosity(2))),
	})
	l.rt.at = func(string) error { return l.do(func() error { return nil }) }
	go func() {
		_ = l.rt.Events(context.Background(), func(Event) error {
			select {
			case l.changed <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	n.tb.Cleanup(l.kill) // unless it has ended
	return l
}

// do does something to the node, if the process lives.
func (l *realLife) do(fn func() error) error {
	l.alive.RLock()
	defer l.alive.RUnlock()
	if l.dead {
		return errDead
	}
	return fn()
}

// kill ends the process as kill -9 would: what it was doing to the node may be done in
// part, and nothing follows.
func (l *realLife) kill() {
	l.alive.Lock()
	defer l.alive.Unlock()
	if l.dead {
		return
	}
	l.dead = true
	l.die(errDead)        // first: what its callers get from here on is no answer
	storetest.Crash(l.db) // then: what it would write of all that follows is not written
	l.executor.Close()
	l.rt.cancel()
	l.rt.feed.close()
}

// end ends the process in order.
func (l *realLife) end() {
	l.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.rt.Close(ctx); err != nil {
		l.tb.Error(err)
	}
	l.alive.Lock()
	l.dead = true
	l.alive.Unlock()
	l.die(ErrClosed)
	l.executor.Close()
	storetest.Check(l.tb, l.db)
	if err := l.db.Close(); err != nil {
		l.tb.Error(err)
	}
}

// until waits until something is so.
func (l *realLife) until(what string, so func() bool) {
	l.tb.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for wait := time.Millisecond; !so(); wait = min(2*wait, 100*time.Millisecond) {
		select {
		case <-l.changed:
		case <-time.After(wait): // not everything is an event
		case <-late.C:
			l.tb.Fatalf("%s: not so after %v", what, patience)
		}
	}
}

// status returns a container's status.
func (l *realLife) status(id store.ContainerID) *cri.ContainerStatus {
	l.tb.Helper()
	s, err := l.rt.ContainerStatus(string(id))
	if err != nil {
		l.tb.Fatal(err)
	}
	return s
}

// waitExit waits for a container's end, and returns its status.
func (l *realLife) waitExit(id store.ContainerID) *cri.ContainerStatus {
	l.tb.Helper()
	l.until("end of a container", func() bool { return l.status(id).State == cri.ContainerState_CONTAINER_EXITED })
	return l.status(id)
}

// process returns a container's first process, as the executor has it.
func (n *realNode) process(id store.ContainerID) wire.Created {
	n.tb.Helper()
	o, err := n.Observe(n.tb.Context())
	if err != nil {
		n.tb.Fatal(err)
	}
	for _, c := range o.Containers {
		if c.ID == string(id) {
			return c.Process
		}
	}
	return wire.Created{}
}

// ended waits until the executor knows of a container's end.
func (n *realNode) ended(id store.ContainerID) error {
	ctx, cancel := context.WithTimeout(n.tb.Context(), patience)
	defer cancel()
	done := errors.New("ended")
	err := n.Events(ctx, func(x wire.Exit) error {
		if x.ID == string(id) {
			return done
		}
		return nil
	})
	if errors.Is(err, done) {
		return nil
	}
	return err
}

// lines returns what a container has written, by stream.
func (l *realLife) lines(id store.ContainerID) map[crilog.Stream][]string {
	l.tb.Helper()
	b, err := os.ReadFile(l.status(id).LogPath)
	if err != nil {
		l.tb.Fatal(err)
	}
	lines := make(map[crilog.Stream][]string)
	for line, err := range crilog.Lines(bytes.NewReader(b), 1<<20) {
		if err != nil {
			l.tb.Fatalf("log of %s: %v", id, err)
		}
		lines[line.Stream] = append(lines[line.Stream], string(line.Content))
	}
	return lines
}

// remains returns what berth has left on the node.
func (n *realNode) remains() (list []string) {
	n.tb.Helper()
	o, err := n.Observe(n.tb.Context())
	if err != nil {
		n.tb.Fatal(err)
	}
	for _, id := range o.Pods {
		list = append(list, "pod in executor "+id)
	}
	for _, c := range o.Containers {
		list = append(list, "container in executor "+c.ID)
	}
	pins, err := n.namespaces.List()
	if err != nil {
		n.tb.Fatal(err)
	}
	for _, id := range pins {
		list = append(list, "pin "+id)
	}
	list = append(list, n.network.remains()...)
	for _, dir := range []string{filepath.Join(n.cfg.State, "pods"), filepath.Join(n.cfg.Root, "volumes"), n.images.base} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.tb.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, "file "+filepath.Join(dir, e.Name()))
		}
	}
	return append(list, n.cgroups()...)
}

// cgroups returns those of containers and pause processes.
func (n *realNode) cgroups() (list []string) {
	tops, err := filepath.Glob("/sys/fs/cgroup/*/" + n.Name)
	if err != nil {
		n.tb.Fatal(err)
	}
	for _, top := range append(tops, "/sys/fs/cgroup/"+n.Name) {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			// /NAME/POD/ID; what is above is the kubelet's.
			rel := strings.TrimPrefix(path, top+"/")
			if err == nil && d.IsDir() && path != top && strings.Count(rel, "/") == 1 {
				list = append(list, "cgroup "+path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			n.tb.Error(err)
		}
	}
	return list
}

// nothingLeft removes what is listed, as a kubelet does in the end, and holds that
// nothing is left of anything.
func (l *realLife) nothingLeft() {
	l.tb.Helper()
	ctx := l.tb.Context()
	for _, p := range l.rt.Pods(nil) {
		if err := errors.Join(l.rt.StopPod(ctx, p.Id), l.rt.RemovePod(ctx, p.Id)); err != nil {
			l.tb.Errorf("clean up of %s: %v", p.Id, err)
		}
	}
	if err := l.rt.cfg.Store.Flush(ctx); err != nil {
		l.tb.Error(err)
	}
	left := func() []string { return slices.Concat(l.remains(), leftInStore(l.db)) }
	late := time.Now().Add(patience)
	for wait := time.Millisecond; len(left()) > 0 && time.Now().Before(late); wait = min(2*wait, 100*time.Millisecond) {
		select {
		case <-time.After(wait): // what follows by itself has no event
		case <-ctx.Done():
			l.tb.Fatal(ctx.Err())
		}
	}
	for _, what := range left() {
		l.tb.Error("left: ", what)
	}
}

// mortalNamespaces are the real ones as far as their user lives.
type mortalNamespaces struct {
	Namespaces
	l *realLife
}

func (m mortalNamespaces) Make(ctx context.Context, r ns.Request) (made *ns.Namespaces, err error) {
	err = m.l.do(func() (err error) { made, err = m.Namespaces.Make(ctx, r); return err })
	return made, err
}

func (m mortalNamespaces) Pinned(id store.PodID) (is bool, err error) {
	err = m.l.do(func() (err error) { is, err = m.Namespaces.Pinned(id); return err })
	return is, err
}

func (m mortalNamespaces) Remove(id store.PodID) error {
	return m.l.do(func() error { return m.Namespaces.Remove(id) })
}

func (m mortalNamespaces) List() (ids []string, err error) {
	err = m.l.do(func() (err error) { ids, err = m.Namespaces.List(); return err })
	return ids, err
}

type mortalNetwork struct {
	Network
	l *realLife
}

func (m mortalNetwork) Attach(ctx context.Context, p PodNetwork) (a store.Attachment, err error) {
	err = m.l.do(func() (err error) { a, err = m.Network.Attach(ctx, p); return err })
	return a, err
}

func (m mortalNetwork) Detach(ctx context.Context, p PodNetwork) error {
	return m.l.do(func() error { return m.Network.Detach(ctx, p) })
}

type mortalImages struct {
	Images
	l *realLife
}

func (m mortalImages) Resolve(ctx context.Context, name string) (i Image, err error) {
	err = m.l.do(func() (err error) { i, err = m.Images.Resolve(ctx, name); return err })
	return i, err
}

func (m mortalImages) Rootfs(ctx context.Context, id store.ContainerID, image store.ImageID) (r wire.Rootfs, err error) {
	err = m.l.do(func() (err error) { r, err = m.Images.Rootfs(ctx, id, image); return err })
	return r, err
}

func (m mortalImages) RemoveRootfs(ctx context.Context, id store.ContainerID) error {
	return m.l.do(func() error { return m.Images.RemoveRootfs(ctx, id) })
}

func (m mortalImages) ReadFile(ctx context.Context, image store.ImageID, path string, limit int64) (b []byte, err error) {
	err = m.l.do(func() (err error) { b, err = m.Images.ReadFile(ctx, image, path, limit); return err })
	return b, err
}

// recordingNetwork connects nothing, and remembers who is connected.
type recordingNetwork struct {
	mu       sync.Mutex
	attached map[store.PodID]netip.Addr
	last     netip.Addr
}

func (r *recordingNetwork) Attach(ctx context.Context, p PodNetwork) (store.Attachment, error) {
	if err := context.Cause(ctx); err != nil {
		return store.Attachment{}, err
	}
	f, err := ns.Open(p.NetNS)
	if err != nil {
		return store.Attachment{}, err
	}
	defer f.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.last.IsValid() {
		r.last = netip.MustParseAddr("10.88.0.1")
	}
	r.last = r.last.Next()
	r.attached[p.ID] = r.last
	return store.Attachment{Network: "recorded", Interface: "eth0", IPs: []netip.Addr{r.last}}, nil
}

func (r *recordingNetwork) Detach(_ context.Context, p PodNetwork) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.attached, p.ID)
	return nil
}

// Attachments returns the pods that are connected.
func (r *recordingNetwork) Attachments() ([]store.PodID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.attached)), nil
}

// Dial connects to the node, whichever pod is meant.
func (r *recordingNetwork) Dial(ctx context.Context, _ string, port int32) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

func (r *recordingNetwork) remains() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, ip := range r.attached {
		list = append(list, fmt.Sprintf("attachment %s %s", id, ip))
	}
	return list
}

// motd is what the image of folderImages has in /etc/motd.
const motd = "an image of one program\n"

// folderImages has one image: a folder with the guest.
type folderImages struct{ layer, base string }

func newFolderImages(tb testing.TB, base string) *folderImages {
	tb.Helper()
	f := &folderImages{layer: filepath.Join(base, "image"), base: filepath.Join(base, "containers")}
	for _, d := range []string{"proc", "dev", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(f.layer, d), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	program, err := os.ReadFile(built.guest)
	if err != nil {
		tb.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"guest": program, "etc/motd": []byte(motd),
		"etc/passwd": []byte("root:x:0:0:root:/:/guest\nworker:x:1000:1000::/tmp:/guest\n"),
	} {
		if err := os.WriteFile(filepath.Join(f.layer, name), b, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	return f
}

func (f *folderImages) Resolve(_ context.Context, name string) (Image, error) {
	if name != "guest" {
		return Image{}, fmt.Errorf("image %s: %w", name, ErrNotFound)
	}
	id := store.ImageID(content.FromBytes([]byte(name)))
	return Image{ID: id, Name: "guest:latest", Ref: "guest@" + string(id), Config: imagespec.ImageConfig{
		Entrypoint: []string{"/guest"}, Env: []string{"PATH=/"}, Volumes: map[string]struct{}{"/data": {}},
	}}, nil
}

func (f *folderImages) Rootfs(_ context.Context, id store.ContainerID, _ store.ImageID) (wire.Rootfs, error) {
	dir := filepath.Join(f.base, string(id))
	r := wire.Rootfs{Lower: []string{f.layer}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Volatile: true}
	return r, errors.Join(os.MkdirAll(r.Upper, 0o755), os.MkdirAll(r.Work, 0o755))
}

func (f *folderImages) RemoveRootfs(_ context.Context, id store.ContainerID) error {
	return os.RemoveAll(filepath.Join(f.base, string(id)))
}

func (f *folderImages) ReadFile(_ context.Context, _ store.ImageID, path string, limit int64) ([]byte, error) {
	root, err := os.OpenRoot(f.layer)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	file, err := root.Open(strings.TrimPrefix(path, "/"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit))
}

// Usage counts nothing.
func (f *folderImages) Usage(context.Context, store.ContainerID) (Usage, error) {
	return Usage{Mountpoint: f.base, At: time.Now()}, nil
}
