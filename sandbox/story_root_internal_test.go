// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/crilog"
	"github.com/berth-cri/berth/store"
)

// pod returns what a kubelet would ask for.
func (n *realNode) pod(name string, edit ...func(*cri.PodSandboxConfig)) *cri.PodSandboxConfig {
	n.tb.Helper()
	cfg := podConfig(name, 0)
	cfg.LogDirectory = filepath.Join(n.logs, name)
	cfg.DnsConfig = &cri.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"ns.svc.cluster.local"}, Options: []string{"ndots:5"}}
	cfg.Linux.CgroupParent = "/" + n.Name + "/" + name
	cfg.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
	}
	for _, e := range edit {
		e(cfg)
	}
	return cfg
}

func sharedPID(cfg *cri.PodSandboxConfig) {
	cfg.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
}

func onHostNetwork(cfg *cri.PodSandboxConfig) {
	cfg.Hostname, cfg.DnsConfig = "", nil
	cfg.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
}

// box returns what a kubelet would ask for, with the container's log folder made. A
// container is where its pod is, as far as a kubelet says.
func (n *realNode) box(pod *cri.PodSandboxConfig, name string, args ...string) *cri.ContainerConfig {
	n.tb.Helper()
	cfg := containerConfig(name)
	cfg.Image.Image, cfg.Args = "guest", args
	o := pod.Linux.SecurityContext.NamespaceOptions
	cfg.Linux = &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{Network: o.Network, Pid: o.Pid},
	}}
	if err := os.MkdirAll(filepath.Join(pod.LogDirectory, name), 0o755); err != nil {
		n.tb.Fatal(err)
	}
	return cfg
}

func (l *realLife) run(cfg *cri.PodSandboxConfig) store.PodID {
	l.tb.Helper()
	id, err := l.rt.RunPod(l.tb.Context(), cfg, "")
	if err != nil {
		l.tb.Fatalf("run %s: %v", cfg.Metadata.Name, err)
	}
	return id
}

func (l *realLife) create(id store.PodID, cfg *cri.ContainerConfig) store.ContainerID {
	l.tb.Helper()
	c, err := l.rt.CreateContainer(l.tb.Context(), string(id), cfg)
	if err != nil {
		l.tb.Fatalf("create %s: %v", cfg.Metadata.Name, err)
	}
	return c
}

func (l *realLife) start(id store.PodID, cfg *cri.ContainerConfig) store.ContainerID {
	l.tb.Helper()
	c := l.create(id, cfg)
	l.must(l.rt.StartContainer(l.tb.Context(), string(c)))
	return c
}

func (l *realLife) must(err error) {
	l.tb.Helper()
	if err != nil {
		l.tb.Fatal(err)
	}
}

// tells runs a container to its end, which must be good, and returns what it wrote.
func (l *realLife) tells(id store.PodID, pod *cri.PodSandboxConfig, name string, args ...string) string {
	l.tb.Helper()
	c := l.start(id, l.box(pod, name, args...))
	s := l.waitExit(c)
	out := strings.Join(l.lines(c)[crilog.Stdout], "\n")
	if s.ExitCode != 0 || s.Reason != ReasonCompleted {
		l.tb.Errorf("%s %q ended with %d, %s %s: %s", name, args, s.ExitCode, s.Reason, s.Message, out)
	}
	return strings.TrimSuffix(out, "\n")
}

func (l *realLife) ready() {
	l.tb.Helper()
	l.must(l.rt.Recover(l.tb.Context()))
}

// TestRealStory is the life of a pod on real parts.
func TestRealStory(t *testing.T) {
	n := newRealNode(t)
	l := n.boot()
	l.ready()
	ctx, cfg := t.Context(), n.pod("web")
	pod := l.run(cfg)
	if again := l.run(cfg); again != pod {
		t.Errorf("the same request gave %s, then %s", pod, again)
	}
	st, err := l.rt.PodStatus(string(pod))
	l.must(err)
	if st.State != cri.PodSandboxState_SANDBOX_READY || st.Network.Ip != "10.88.0.2" {
		t.Errorf("pod is %+v", st)
	}

	// What it writes is in its log, by stream, and how it ends is known.
	talk := l.create(pod, l.box(cfg, "talk", "echo", "hello", "world"))
	if s := l.status(talk); s.State != cri.ContainerState_CONTAINER_CREATED || n.process(talk).PID != 0 {
		t.Errorf("created container is %+v, process %+v; want none", s, n.process(talk))
	}
	l.must(l.rt.StartContainer(ctx, string(talk)))
	s := l.waitExit(talk)
	if s.ExitCode != 0 || s.Reason != ReasonCompleted || s.CreatedAt > s.StartedAt || s.StartedAt == 0 || s.StartedAt > s.FinishedAt {
		t.Errorf("ended as %+v", s)
	}
	if lines := l.lines(talk); !slices.Equal(lines[crilog.Stdout], []string{"hello world"}) || !slices.Equal(lines[crilog.Stderr], []string{"err hello world"}) {
		t.Errorf("log has %q", lines)
	}

	// What the pod gives its containers.
	for file, want := range map[string]string{
		"/etc/hostname":    "web\n",
		"/etc/resolv.conf": "search ns.svc.cluster.local\nnameserver 10.0.0.10\noptions ndots:5\n",
		"/etc/hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.88.0.2\tweb\n",
		"/etc/motd":        motd,
		"/proc/1/comm":     "guest\n", // a PID namespace of its own
	} {
		name := "show-" + strings.ReplaceAll(strings.Trim(file, "/"), "/", "-")
		if got := l.tells(pod, cfg, name, "show", file); got != strings.TrimSuffix(want, "\n") {
			t.Errorf("%s has %q, want %q", file, got, want)
		}
	}
	if got := l.tells(pod, cfg, "hostname", "hostname"); got != "web" {
		t.Errorf("hostname is %q", got)
	}
	l.tells(pod, cfg, "shm-write", "write", "/dev/shm/note", "from the other")
	if got := l.tells(pod, cfg, "shm-read", "show", "/dev/shm/note"); got != "from the other" {
		t.Errorf("/dev/shm has %q", got)
	}
	l.tells(pod, cfg, "ipc-make", "ipc", "make", "77")
	l.tells(pod, cfg, "ipc-find", "ipc", "find", "77")
	l.tells(pod, cfg, "volume", "write", "/data/file", "in a volume")

	l.endsOnReal(pod, cfg)

	id, err := l.rt.CreateContainer(ctx, string(pod), l.box(cfg, "idle", "sleep"))
	l.must(err)
	running := l.start(pod, l.box(cfg, "running", "sleep", "3", "up"))
	if len(n.cgroups()) == 0 {
		t.Error("the cgroup of a container that runs is not seen")
	}
	l.must(l.rt.StopPod(ctx, string(pod)))
	l.must(l.rt.StopPod(ctx, string(pod)))
	if s := l.status(running); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("container of a stopped pod is %+v", s)
	}
	if s := l.status(id); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("container that never ran is %+v", s)
	}
	if st, err := l.rt.PodStatus(string(pod)); err != nil || st.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("stopped pod is %+v, %v", st, err)
	}
	l.must(l.rt.RemovePod(ctx, string(pod)))
	l.must(l.rt.RemovePod(ctx, string(pod)))
	if list := l.rt.Containers(nil); len(list) > 0 {
		t.Errorf("containers of a removed pod: %v", list)
	}
	l.nothingLeft()
	l.end()
}

// endsOnReal goes through the ways in which containers end.
func (l *realLife) endsOnReal(pod store.PodID, cfg *cri.PodSandboxConfig) {
	t, ctx := l.tb, l.tb.Context()
	t.Helper()
	want := func(name string, s *cri.ContainerStatus, code int32, reason string) {
		t.Helper()
		if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != code || s.Reason != reason {
			t.Errorf("%s is %s, %d, %s %s; want exited, %d, %s", name, s.State, s.ExitCode, s.Reason, s.Message, code, reason)
		}
	}
	bad := l.start(pod, l.box(cfg, "bad", "exit", "9"))
	want("bad", l.waitExit(bad), 9, ReasonError)

	// One that listens to SIGTERM; one that listens to something else, and is killed when
	// its grace is over.
	term := l.start(pod, l.box(cfg, "term", "sleep", "7", "up"))
	l.until("its handler", func() bool { return len(l.lines(term)[crilog.Stdout]) > 0 })
	l.must(l.rt.StopContainer(ctx, string(term), patience))
	want("term", l.status(term), 7, ReasonError)
	stubborn := l.box(cfg, "stubborn", "sleep", "0", "up")
	stubborn.StopSignal = cri.Signal_SIGNAL_SIGWINCH // does nothing to it
	c := l.start(pod, stubborn)
	began := time.Now()
	l.must(l.rt.StopContainer(ctx, string(c), 300*time.Millisecond))
	want("stubborn", l.status(c), 137, ReasonError)
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("killed after %v, before its grace was over", took)
	}

	// A program that is not there is known only when it is started.
	missing := l.box(cfg, "missing")
	missing.Command = []string{"/no/such/program"}
	m := l.create(pod, missing)
	if err := l.rt.StartContainer(ctx, string(m)); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start of what is not there: %v", err)
	}
	want("missing", l.status(m), 128, ReasonStartError)
	for _, id := range []store.ContainerID{bad, term, m} {
		l.must(l.rt.RemoveContainer(ctx, string(id)))
		if _, err := l.rt.ContainerStatus(string(id)); !errors.Is(err, ErrNotFound) {
			t.Errorf("removed container: %v", err)
		}
	}
	running := l.start(pod, l.box(cfg, "removed", "sleep"))
	l.must(l.rt.RemoveContainer(ctx, string(running)))
}

// TestRealSharedPID: two containers see each other, and the first process is neither's.
func TestRealSharedPID(t *testing.T) {
	n := newRealNode(t)
	l := n.boot()
	l.ready()
	cfg := n.pod("shared", sharedPID)
	pod := l.run(cfg)
	first := l.start(pod, l.box(cfg, "first", "sleep", "5", "up"))
	if comm := l.tells(pod, cfg, "comm", "show", "/proc/1/comm"); comm == "" || comm == "guest" {
		t.Errorf("process 1 is %q, want the pause process", comm)
	}
	ls := l.tells(pod, cfg, "ls", "ls", "/proc")
	processes := 0
	for line := range strings.Lines(ls) {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); strings.Trim(name, "0123456789") == "" {
			processes++
		}
	}
	if processes != 3 {
		t.Errorf("%d processes are seen, want three: pause, the other container's and its own:\n%s", processes, ls)
	}
	// Not the first process of its namespace: SIGTERM ends it even where nobody listens.
	plain := l.start(pod, l.box(cfg, "plain", "exit", "0", "3600000"))
	l.must(l.rt.StopContainer(t.Context(), string(plain), patience))
	if s := l.status(plain); s.ExitCode != 143 {
		t.Errorf("ended with %d, want 143", s.ExitCode)
	}
	if s := l.status(first); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other one is %+v", s)
	}
	l.nothingLeft()
	l.end()
}

// TestRealHostNetwork: a pod on the node's network bears its name and has its files.
func TestRealHostNetwork(t *testing.T) {
	n := newRealNode(t)
	l := n.boot()
	l.ready()
	cfg := n.pod("host", onHostNetwork)
	pod := l.run(cfg)
	for _, file := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		b, err := os.ReadFile(file)
		l.must(err)
		name := "show-" + filepath.Base(file)
		if got := l.tells(pod, cfg, name, "show", file); got != strings.TrimRight(string(b), "\n") && got+"\n" != string(b) {
			t.Errorf("%s has %q, want the node's %q", file, got, b)
		}
	}
	if got := l.tells(pod, cfg, "hostname", "hostname"); got != n.nodeName {
		t.Errorf("hostname is %q, want %q", got, n.nodeName)
	}
	own := map[string]bool{"net": false, "uts": false, "ipc": true, "mnt": true, "pid": true}
	namespaces := l.tells(pod, cfg, "ns", "ls", "/proc/self/ns")
	for kind, want := range own {
		ours, err := os.Readlink("/proc/self/ns/" + kind)
		l.must(err)
		if is := !strings.Contains(namespaces, ours); is != want {
			t.Errorf("a %s namespace of its own: %v, want %v", kind, is, want)
		}
	}
	if st, err := l.rt.PodStatus(string(pod)); err != nil || st.Network.Ip != "" || st.Linux.Namespaces.Options.Network != cri.NamespaceMode_NODE {
		t.Errorf("pod is %+v, %v", st, err)
	}
	if list, err := n.namespaces.List(); err != nil || len(list) > 0 || len(n.network.remains()) > 0 {
		t.Errorf("pins %q, %v, attachments %q; want none", list, err, n.network.remains())
	}
	l.nothingLeft()
	l.end()
}

// TestRealDeath kills berth while containers run, and lets some of them end before the
// next one comes.
func TestRealDeath(t *testing.T) {
	n := newRealNode(t)
	l := n.boot()
	l.ready()
	ctx, cfg, shared := t.Context(), n.pod("web"), n.pod("shared", sharedPID)
	pod, other := l.run(cfg), l.run(shared)
	stays := l.start(pod, l.box(cfg, "stays", "sleep", "5", "up"))
	together := l.start(other, l.box(shared, "together", "sleep", "6", "up"))
	ends := map[store.ContainerID]unix.Signal{
		l.start(pod, l.box(cfg, "term", "sleep", "7", "up")): unix.SIGTERM,
		l.start(pod, l.box(cfg, "kill", "sleep", "8", "up")): unix.SIGKILL,
	}
	idle := l.create(pod, l.box(cfg, "idle", "sleep", "9", "up"))
	l.tells(pod, cfg, "shm-write", "write", "/dev/shm/note", "from before")
	for _, c := range l.rt.Containers(&cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}) {
		l.until("handlers", func() bool { return len(l.lines(store.ContainerID(c.Id))[crilog.Stdout]) > 0 })
	}
	before := map[store.ContainerID]any{stays: n.process(stays), together: n.process(together)}
	l.kill()

	for id, s := range ends {
		l.must(n.Signal(ctx, string(id), s))
		l.must(n.ended(id))
	}
	l = n.boot()
	l.ready()
	for id, process := range before {
		if s := l.status(id); s.State != cri.ContainerState_CONTAINER_RUNNING || any(n.process(id)) != process {
			t.Errorf("container %s is %v, process %v; want it to run on as %v", s.Metadata.Name, s.State, n.process(id), process)
		}
	}
	for id, s := range ends {
		want := int32(7)
		if s == unix.SIGKILL {
			want = 137
		}
		if got := l.status(id); got.State != cri.ContainerState_CONTAINER_EXITED || got.ExitCode != want || got.Reason != ReasonError {
			t.Errorf("what ended meanwhile is %+v, want code %d", got, want)
		}
	}
	if s := l.status(idle); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("container that was not started is %+v", s)
	}
	if st, err := l.rt.PodStatus(string(pod)); err != nil || st.State != cri.PodSandboxState_SANDBOX_READY || st.Network.Ip != "10.88.0.2" {
		t.Errorf("pod is %+v, %v; want it ready, with its address", st, err)
	}

	// All goes on with what was there before.
	l.must(l.rt.StartContainer(ctx, string(idle)))
	if got := l.tells(pod, cfg, "shm-read", "show", "/dev/shm/note"); got != "from before" {
		t.Errorf("/dev/shm has %q", got)
	}
	if got := l.tells(pod, cfg, "hostname", "hostname"); got != "web" {
		t.Errorf("hostname is %q", got)
	}
	if got := l.tells(other, shared, "comm", "show", "/proc/1/comm"); got == "guest" {
		t.Error("the pod's PID namespace is not shared any more")
	}
	for id, code := range map[store.ContainerID]int32{stays: 5, together: 6, idle: 9} {
		l.until("its handler", func() bool { return len(l.lines(id)[crilog.Stdout]) > 0 })
		l.must(l.rt.StopContainer(ctx, string(id), patience))
		if s := l.status(id); s.ExitCode != code {
			t.Errorf("%s ended with %d, want %d", s.Metadata.Name, s.ExitCode, code)
		}
	}
	l.nothingLeft()
	l.end()
}
