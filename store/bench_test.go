// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/storetest"
)

// aPod is a pod as kubelets make them.
func aPod(n int) store.Pod {
	return store.Pod{
		ID: store.PodID(fmt.Sprintf("%064x", n)), Name: fmt.Sprintf("web-7c5ddbdf54-%05d", n), Namespace: "default",
		UID: fmt.Sprintf("3f8c4d3a-8b0e-4a3c-9d57-%012d", n), State: "READY",
		Labels: map[string]string{
			"app": "web", "pod-template-hash": "7c5ddbdf54", "io.kubernetes.pod.name": "web",
			"io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "3f8c4d3a-8b0e-4a3c-9d57",
		},
		Annotations:  map[string]string{"kubernetes.io/config.seen": "2026-05-01T10:00:00.000000000Z", "kubernetes.io/config.source": "api"},
		CreatedAt:    time.Unix(1_780_000_000, int64(n)).UTC(),
		LogDirectory: "/var/log/pods/default_web-7c5ddbdf54_3f8c4d3a-8b0e-4a3c-9d57",
		Network:      store.Network{Namespace: "/run/netns/berth-0123456789abcdef"},
	}
}

func aContainer(n int, pod store.PodID) store.Container {
	p := aPod(n)
	return store.Container{
		ID: store.ContainerID(fmt.Sprintf("%064x", n)), PodID: pod, Name: "web", State: "RUNNING",
		Labels: p.Labels,
		Annotations: map[string]string{
			"io.kubernetes.container.hash": "7ba1c9ae", "io.kubernetes.container.restartCount": "0",
			"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
			"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
		},
		Image: "docker.io/library/nginx:1.27", ImageRef: "docker.io/library/nginx@sha256:0a399eb16751829e1af26fea27b20c3ec28d7ab1fb72182879dcae1cca21206a",
		ImageID: "sha256:0a399eb16751829e1af26fea27b20c3ec28d7ab1fb72182879dcae1cca21206a",
		LogPath: "web/0.log", CreatedAt: p.CreatedAt, StartedAt: p.CreatedAt,
	}
}

// BenchmarkPut is a durable commit of a caller alone: mostly two fdatasync calls.
func BenchmarkPut(b *testing.B) {
	db := storetest.Open(b)
	n := 0
	for b.Loop() {
		if err := db.PutPod(b.Context(), aPod(n%100)); err != nil {
			b.Fatal(err)
		}
		n++
	}
}

// BenchmarkPut32 is durable commits of 32 callers at once, who share commits.
func BenchmarkPut32(b *testing.B) {
	db := storetest.Open(b)
	var n atomic.Int64
	b.SetParallelism(32 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := db.PutPod(b.Context(), aPod(int(n.Add(1)%1000))); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkPutAsync(b *testing.B) {
	db := storetest.Open(b)
	n := 0
	for b.Loop() {
		if err := db.PutPodAsync(aPod(n % 100)); err != nil {
			b.Fatal(err)
		}
		n++
	}
	if err := db.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkLedger is one step entered, done and left, beside 500 pods.
func BenchmarkLedger(b *testing.B) {
	db := storetest.Open(b)
	fill(b, db, 500, 0)
	id := aPod(0).ID
	live := db.LivePods()
	facts := []byte(`{"path":"/kubepods/burstable/pod3f8c4d3a"}`)
	for b.Loop() {
		if err := live.Enter(b.Context(), id, "cgroup", facts); err != nil {
			b.Fatal(err)
		}
		if err := live.Done(b.Context(), id, "cgroup", nil); err != nil {
			b.Fatal(err)
		}
		if err := live.Leave(b.Context(), id, "cgroup"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(3*b.N), "µs/step")
}

// fill adds pods, each with a configuration of 4 KiB and as many containers.
func fill(tb testing.TB, db *store.DB, pods, containers int) {
	tb.Helper()
	err := db.Update(tb.Context(), func(tx *store.Tx) error {
		for n := range pods {
			if err := tx.PutPod(aPod(n)); err != nil {
				return err
			}
			for c := range containers {
				if err := tx.PutContainer(aContainer(n*containers+c, aPod(n).ID)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	config := bytes.Repeat([]byte("0123456789abcdef"), 256)
	for n := range pods {
		if err := db.LivePods().Put(tb.Context(), aPod(n).ID, store.Live{Config: config}); err != nil {
			tb.Fatal(err)
		}
	}
}

func BenchmarkList(b *testing.B) {
	db := storetest.Open(b)
	fill(b, db, 120, 100)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for c := range db.Containers() {
			n += len(c.Labels)
		}
		if n != 12000*5 {
			b.Fatal(n)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	db := storetest.Open(b)
	fill(b, db, 120, 100)
	id := aContainer(77, "").ID
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := db.Container(id); !ok {
			b.Fatal("gone")
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	cfg := storetest.Folders(b)
	db := storetest.OpenAt(b, cfg)
	fill(b, db, 120, 100)
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		db, err := store.Open(b.Context(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory is not about time: it reports the heap that 500 pods take, each with a configuration
// of 4 KiB, after they were read from the files.
func BenchmarkMemory(b *testing.B) {
	cfg := storetest.Folders(b)
	db := storetest.OpenAt(b, cfg)
	fill(b, db, 500, 0)
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		before := heap()
		db, err := store.Open(b.Context(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric((heap()-before)/500, "B/pod")
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
