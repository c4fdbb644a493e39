// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// alive runs fn with a berth that has taken up its work.
func alive(t *testing.T, fn func(t *testing.T, l *life)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newNode(t).boot(-1, nil)
		if err := l.rt.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		fn(t, l)
		synctest.Wait()
		l.end()
	})
}

func (l *life) mustPod(t *testing.T, cfg *cri.PodSandboxConfig) string {
	t.Helper()
	id, err := l.rt.RunPod(t.Context(), cfg, "")
	if err != nil {
		t.Fatal(err)
	}
	return string(id)
}

func (l *life) mustContainer(t *testing.T, pod string, cfg *cri.ContainerConfig) string {
	t.Helper()
	id, err := l.rt.CreateContainer(t.Context(), pod, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return string(id)
}

// TestFilters holds that each part of a filter counts, and all of them together.
func TestFilters(t *testing.T) {
	alive(t, func(t *testing.T, l *life) {
		a, b := l.mustPod(t, podConfig("a", 0)), l.mustPod(t, podConfig("b", 0))
		x, y := l.mustContainer(t, a, containerConfig("x")), l.mustContainer(t, b, containerConfig("y"))
		if err := errors.Join(l.rt.StartContainer(t.Context(), x), l.rt.StopPod(t.Context(), b)); err != nil {
			t.Fatal(err)
		}
		ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
		for name, c := range map[string]struct {
			f    *cri.PodSandboxFilter
			want []string
		}{
			"none":          {nil, []string{a, b}},
			"empty":         {&cri.PodSandboxFilter{}, []string{a, b}},
			"id":            {&cri.PodSandboxFilter{Id: b}, []string{b}},
			"short id":      {&cri.PodSandboxFilter{Id: b[:13]}, []string{b}},
			"unknown id":    {&cri.PodSandboxFilter{Id: "none"}, nil},
			"state":         {&cri.PodSandboxFilter{State: ready}, []string{a}},
			"label":         {&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "b"}}, []string{b}},
			"another label": {&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "b", "x": ""}}, nil},
			"both":          {&cri.PodSandboxFilter{State: ready, LabelSelector: map[string]string{"app": "b"}}, nil},
		} {
			var got []string
			for _, p := range l.rt.Pods(c.f) {
				got = append(got, p.Id)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("pods, %s: %v, want %v", name, got, c.want)
			}
		}
		running := &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}
		for name, c := range map[string]struct {
			f    *cri.ContainerFilter
			want []string
		}{
			"none":          {nil, []string{x, y}},
			"id":            {&cri.ContainerFilter{Id: x}, []string{x}},
			"short id":      {&cri.ContainerFilter{Id: x[:13]}, []string{x}},
			"unknown id":    {&cri.ContainerFilter{Id: "none"}, nil},
			"pod":           {&cri.ContainerFilter{PodSandboxId: b}, []string{y}},
			"short pod":     {&cri.ContainerFilter{PodSandboxId: b[:13]}, []string{y}},
			"unknown pod":   {&cri.ContainerFilter{PodSandboxId: "none"}, nil},
			"state":         {&cri.ContainerFilter{State: running}, []string{x}},
			"state and pod": {&cri.ContainerFilter{State: running, PodSandboxId: b}, nil},
			"label":         {&cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.container.name": "y"}}, []string{y}},
		} {
			var got []string
			for _, p := range l.rt.Containers(c.f) {
				got = append(got, p.Id)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("containers, %s: %v, want %v", name, got, c.want)
			}
		}
	})
}

// TestStatus holds what a kubelet reads of statuses.
func TestStatus(t *testing.T) {
	alive(t, func(t *testing.T, l *life) {
		cfg := podConfig("a", 3)
		cfg.Annotations = map[string]string{"k": "v"}
		pod := l.mustPod(t, cfg)
		ps, err := l.rt.PodStatus(pod[:13])
		if err != nil {
			t.Fatal(err)
		}
		if ps.Id != pod || ps.Network.Ip != "10.1.2.3" || ps.CreatedAt <= 0 || ps.Metadata.Attempt != 3 ||
			ps.Annotations["k"] != "v" || ps.Labels["app"] != "a" || ps.Linux.Namespaces.Options.Network != cri.NamespaceMode_POD {
			t.Errorf("pod status %v", ps)
		}
		host, err := l.rt.PodStatus(l.mustPod(t, hostPodConfig("h")))
		if err != nil || host.Linux.Namespaces.Options.Network != cri.NamespaceMode_NODE || host.Network.Ip != "" {
			t.Errorf("status of a pod on the node's network: %v, %v", host, err)
		}
		if host.CreatedAt <= ps.CreatedAt {
			t.Errorf("created at %d and then at %d", ps.CreatedAt, host.CreatedAt)
		}
		c := l.mustContainer(t, pod, containerConfig("x"))
		if err := l.rt.StartContainer(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		cs, err := l.rt.ContainerStatus(c)
		if err != nil {
			t.Fatal(err)
		}
		if cs.State != cri.ContainerState_CONTAINER_RUNNING || cs.LogPath != "/var/log/pods/a/x/0.log" ||
			cs.Image.Image != "img:latest" || cs.ImageRef != "img@"+cs.ImageId || cs.StopSignal != cri.Signal_SIGNAL_SIGTERM ||
			cs.StartedAt < cs.CreatedAt || cs.FinishedAt != 0 || cs.User.GetLinux() == nil {
			t.Errorf("container status %v", cs)
		}
	})
}

// TestEvents holds that a reader that does not keep up is told so, and holds up nobody.
func TestEvents(t *testing.T) {
	alive(t, func(t *testing.T, l *life) {
		slow, quick := make(chan error, 1), make(chan error, 1)
		stop, seen := make(chan struct{}), 0
		go func() { slow <- l.rt.Events(t.Context(), func(Event) error { <-stop; return nil }) }()
		ctx, cancel := context.WithCancel(t.Context())
		go func() { quick <- l.rt.Events(ctx, func(Event) error { seen++; return nil }) }()
		synctest.Wait()
		const n = feedDepth + 10
		for range n {
			l.rt.feed.send(Event{})
			synctest.Wait()
		}
		close(stop)
		if err := <-slow; !errors.Is(err, ErrSlow) {
			t.Errorf("slow reader: %v, want ErrSlow", err)
		}
		cancel()
		if err := <-quick; !errors.Is(err, context.Canceled) || seen != n {
			t.Errorf("quick reader: %v after %d of %d", err, seen, n)
		}
	})
}
