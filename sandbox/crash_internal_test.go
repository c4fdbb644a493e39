// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/store"
)

func podConfig(name string, attempt uint32) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Uid: "u-" + name, Namespace: "ns", Attempt: attempt},
		Hostname: name, LogDirectory: "/var/log/pods/" + name, Labels: map[string]string{"app": name},
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.0.0.10"}},
		Linux:     &cri.LinuxPodSandboxConfig{},
	}
}

func hostPodConfig(name string) *cri.PodSandboxConfig {
	cfg := podConfig(name, 0)
	cfg.Hostname = ""
	cfg.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
	}
	return cfg
}

func containerConfig(name string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: "img"}, LogPath: name + "/0.log",
		Labels: map[string]string{"io.kubernetes.container.name": name},
	}
}

// kubelet is the story's other side: what it was told counts.
type kubelet struct {
	pod  *cri.PodSandboxConfig
	told map[string]string // a call → the id that it returned, or "ok"
}

// call is one call of the story.
type call struct {
	name string
	do   func(ctx context.Context, l *life, k *kubelet) (string, error)
}

// story is the life of a pod with two containers, one of which is never started.
func story() []call {
	return []call{
		{"run", func(ctx context.Context, l *life, k *kubelet) (string, error) {
			id, err := l.rt.RunPod(ctx, k.pod, "")
			return string(id), err
		}},
		{"create", func(ctx context.Context, l *life, k *kubelet) (string, error) {
			id, err := l.rt.CreateContainer(ctx, k.told["run"], containerConfig("app"))
			return string(id), err
		}},
		{"start", func(ctx context.Context, l *life, k *kubelet) (string, error) {
			return "ok", l.rt.StartContainer(ctx, k.told["create"])
		}},
		{"create idle", func(ctx context.Context, l *life, k *kubelet) (string, error) {
			id, err := l.rt.CreateContainer(ctx, k.told["run"], containerConfig("idle"))
			return string(id), err
		}},
		{"stop", func(ctx context.Context, l *life, k *kubelet) (string, error) {
			return "ok", l.rt.StopContainer(ctx, k.told["create"], 10*time.Second)
		}},
		{"remove", func(ctx context.Context, l *life, k *kubelet) (string, error) {
			return "ok", l.rt.RemoveContainer(ctx, k.told["create"])
		}},
		{"stop pod", func(ctx context.Context, l *life, k *kubelet) (string, error) {
			return "ok", l.rt.StopPod(ctx, k.told["run"])
		}},
		{"remove pod", func(ctx context.Context, l *life, k *kubelet) (string, error) {
			return "ok", l.rt.RemovePod(ctx, k.told["run"])
		}},
	}
}

// live tells the story until its end or the death of the process, and returns the call
// that was under way then.
func (l *life) live(ctx context.Context, k *kubelet) (underWay string, err error) {
	if err := l.rt.Recover(ctx); err != nil {
		return "recover", err
	}
	for _, c := range story() {
		if k.told[c.name] != "" {
			continue
		}
		id, err := c.do(ctx, l, k)
		if err != nil {
			return c.name, err
		}
		k.told[c.name] = id
		synctest.Wait() // what follows by itself is part of the call
	}
	return "", nil
}

// check compares what berth says after a recovery with what the kubelet was told and
// with what was under way.
func (l *life) check(k *kubelet, underWay string) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	told := func(name string) bool { return k.told[name] != "" }
	begun := func(name string) bool { return told(name) || underWay == name }
	pods := l.rt.Pods(nil)
	switch {
	case told("remove pod"):
		if len(pods) > 0 {
			fault("pod is there after its removal")
		}
	case told("stop pod"):
		if len(pods) > 1 || len(pods) == 0 && !begun("remove pod") || len(pods) == 1 && pods[0].State != cri.PodSandboxState_SANDBOX_NOTREADY {
			fault("stopped pod: %v", pods)
		}
	case told("run") && !begun("stop pod"):
		if s, err := l.rt.PodStatus(k.told["run"]); err != nil || s.State != cri.PodSandboxState_SANDBOX_READY {
			fault("pod that was ready: %v, %v", s, err)
		} else if s.Network.Ip == "" && !hostNetwork(k.pod) {
			fault("pod that was ready has no address")
		}
	case !begun("run"):
		if len(pods) > 0 {
			fault("pod is there before it was asked for")
		}
	}
	l.checkContainer(k, "create", "start", "stop", "remove", told, begun, fault)
	l.checkContainer(k, "create idle", "", "", "", told, begun, fault)
	return append(faults, l.node.wrongs()...)
}

func hostNetwork(p *cri.PodSandboxConfig) bool {
	return p.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE
}

func (l *life) checkContainer(k *kubelet, create, start, stop, remove string, told, begun func(string) bool, fault func(string, ...any)) {
	if !told(create) || begun("stop pod") {
		return
	}
	s, err := l.rt.ContainerStatus(k.told[create])
	if told(remove) {
		if !errors.Is(err, ErrNotFound) {
			fault("removed container: %v, %v", s, err)
		}
		return
	}
	if err != nil {
		if !begun(remove) {
			fault("%s: %v", create, err)
		}
		return
	}
	state := strings.ToLower(strings.TrimPrefix(s.State.String(), "CONTAINER_"))
	if state == "exited" {
		state = fmt.Sprintf("%s %s %d", state, s.Reason, s.ExitCode)
	}
	var want []string
	switch {
	case begun(remove):
		want = []string{"exited Error 143"}
	case told(stop):
		want = []string{"exited Error 143"}
	case begun(stop):
		// Its grace may be over when berth is there again.
		want = []string{"running", "exited Error 143", "exited Error 137"}
	case told(start):
		want = []string{"running"}
	case begun(start):
		want = []string{"created", "running", "exited StartError 128", "exited Error 137"}
	default:
		want = []string{"created"}
	}
	if !slices.Contains(want, state) {
		fault("%s: %s, want %v", create, state, want)
	}
}

// wrongs returns what should never have happened.
func (n *node) wrongs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.broken)
}

// remains returns what is left on a node that should have nothing.
func (n *node) remains() (list []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for what, m := range map[string]map[string]bool{"pod": n.pods, "pin": n.pins, "attachment": n.attached, "rootfs": n.rootfs} {
		for id := range m {
			list = append(list, what+" "+id[:6])
		}
	}
	for id := range n.containers {
		list = append(list, "container "+id[:6])
	}
	for _, dir := range []string{filepath.Join(n.cfg.State, "pods"), filepath.Join(n.cfg.Root, "volumes")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) { //nolint:forbidigo // not wrapped
			list = append(list, err.Error())
		}
		for _, e := range entries {
			list = append(list, "file "+e.Name()[:6])
		}
	}
	return list
}

// leftInStore returns what the store still has.
func leftInStore(db *store.DB) (list []string) {
	for p := range db.Pods() {
		list = append(list, "record of pod "+p.State)
	}
	for c := range db.Containers() {
		list = append(list, "record of container "+c.State)
	}
	for id := range db.LivePods().All() {
		list = append(list, "ledger of pod "+string(id[:6]))
	}
	for id := range db.LiveContainers().All() {
		list = append(list, "ledger of container "+string(id[:6]))
	}
	return list
}

// trial is a story in which processes die.
type trial struct {
	pod    *cri.PodSandboxConfig
	plant  func(*Runtime) // a mutant
	deaths []int          // the point at which each process but the last one dies
}

// run tells it, and returns the points that the last process but one passed, whether it
// died, and what was wrong. The first process tells the story, the others recover.
func (tr trial) run(t *testing.T) (points []string, died bool, faults []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.cfg.AsyncDelay = time.Hour // what nobody waits for is lost
		k := &kubelet{pod: tr.pod, told: make(map[string]string)}
		ctx := t.Context()
		underWay := ""
		for i, at := range tr.deaths {
			l := n.boot(at, tr.plant)
			var err error
			if i == 0 {
				underWay, err = l.live(ctx, k)
			} else {
				err = l.rt.Recover(ctx)
			}
			synctest.Wait()
			l.end()
			points, died = l.seen, l.dead
			if err != nil && !died {
				faults = append(faults, fmt.Sprintf("life %d: %v", i, err))
			}
		}
		l := n.boot(-1, tr.plant)
		if err := l.rt.Recover(ctx); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		faults = append(faults, l.check(k, underWay)...)
		// A kubelet cleans up what it finds.
		for _, p := range l.rt.Pods(nil) {
			if err := errors.Join(l.rt.StopPod(ctx, p.Id), l.rt.RemovePod(ctx, p.Id)); err != nil {
				faults = append(faults, fmt.Sprintf("clean up: %v", err))
			}
		}
		synctest.Wait()
		faults = append(faults, n.remains()...)
		faults = append(faults, leftInStore(l.db)...)
		faults = append(faults, n.wrongs()...)
		l.end()
	})
	return points, died, faults
}

func TestStory(t *testing.T) {
	for _, pod := range []*cri.PodSandboxConfig{podConfig("bridge", 0), hostPodConfig("host")} {
		t.Run(pod.Metadata.Name, func(t *testing.T) {
			points, _, faults := trial{pod: pod, deaths: []int{-1}}.run(t)
			for _, f := range faults {
				t.Error(f)
			}
			if len(points) < 40 {
				t.Errorf("only %d points: %q", len(points), points)
			}
			t.Logf("%d points: %s", len(points), strings.Join(points, ", "))
		})
	}
}

// TestCrashAnywhere kills berth at every point of the life of a pod, and the next one
// at every point of its recovery.
func TestCrashAnywhere(t *testing.T) {
	for _, pod := range []*cri.PodSandboxConfig{podConfig("bridge", 0), hostPodConfig("host")} {
		t.Run(pod.Metadata.Name, func(t *testing.T) {
			points, _, _ := trial{pod: pod, deaths: []int{-1}}.run(t)
			for at := range points {
				t.Run(fmt.Sprintf("%03d %s", at, points[at]), func(t *testing.T) {
					for again := -1; ; again++ {
						deaths := []int{at}
						if again >= 0 {
							deaths = append(deaths, again)
						}
						seen, died, faults := trial{pod: pod, deaths: deaths}.run(t)
						for _, f := range faults {
							t.Errorf("deaths at %v (%s): %s", deaths, at2(seen, again), f)
						}
						if t.Failed() || !died {
							return
						}
					}
				})
			}
		})
	}
}

func at2(points []string, at int) string {
	if at < 0 || at >= len(points) {
		return "-"
	}
	return points[at]
}
