// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/berth-cri/berth/network"
)

func TestGC(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	n := r.open()
	for _, id := range []string{"p1", "p2"} {
		if _, err := n.Attach(t.Context(), pod(id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Detach(t.Context(), pod("p2"), nil); err != nil {
		t.Fatal(err)
	}
	r.forget()
	if err := n.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wantCommands("GC one")
	valid, _ := json.Marshal(r.call("GC").Conf["cni.dev/valid-attachments"])
	if string(valid) != `[{"containerID":"p1","ifname":"eth0"}]` {
		t.Errorf("valid attachments: %s", valid)
	}
	// Without any attachment, the plugins are told that there is none.
	if err := n.Detach(t.Context(), pod("p1"), nil); err != nil {
		t.Fatal(err)
	}
	r.forget()
	if err := n.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if valid, _ := json.Marshal(r.call("GC").Conf["cni.dev/valid-attachments"]); string(valid) != `[]` {
		t.Errorf("valid attachments: %s", valid)
	}
}

// Each network is told of its own attachments.
func TestGCOfSeveralNetworks(t *testing.T) {
	r := newRig(t)
	r.conf.MaxConfs = 2
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	r.list("20-b.conflist", "net-b", r.plugin("two", nil))
	n := r.open()
	if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
		t.Fatal(err)
	}
	if err := n.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range r.calls() {
		want := map[string]string{"one": `[{"containerID":"p1","ifname":"eth0"}]`, "two": `[{"containerID":"p1","ifname":"eth1"}]`}
		if valid, _ := json.Marshal(c.Conf["cni.dev/valid-attachments"]); c.Command == "GC" && string(valid) != want[c.Plugin] {
			t.Errorf("%s was told of %s", c.Plugin, valid)
		}
	}
	if !strings.HasSuffix(r.commands(), "GC one, GC two") {
		t.Error(r.commands())
	}
}

// What others have attached to the same network, GC would free.
func TestGCRefuses(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil))
	n := r.open()
	if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
		t.Fatal(err)
	}
	r.forget()
	r.put("shared/results/net-b-x-eth0", "{}")  // of another network
	r.put("shared/results/net-a-p1-eth0", "{}") // ours, told of by someone else
	if err := n.GC(t.Context()); err != nil {
		t.Errorf("GC = %v", err)
	}
	r.forget()
	r.put("shared/results/net-a-f00-eth0", "{}")
	if err := n.GC(t.Context()); !errors.Is(err, network.ErrForeign) || !strings.Contains(err.Error(), "net-a-f00-eth0") {
		t.Errorf("GC = %v", err)
	}
	if err := os.RemoveAll(r.conf.SharedCaches[0]); err != nil {
		t.Fatal(err)
	}
	r.put("cache/p3.json", "{") // whose it is, nobody can say
	if err := n.GC(t.Context()); err == nil {
		t.Error("GC with a damaged record: no error")
	}
	r.wantCommands("")
}

// Pods do not wait for a GC, and it is not told of them: it gives way.
func TestGCGivesWay(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"GC": {Wait: r.fifo("gate")}}))
	n := r.open()
	done := make(chan error, 1)
	go func() { done <- n.GC(t.Context()) }()
	eventually(t, "GC", func() bool { return r.commands() == "GC one" })
	if err := n.GC(t.Context()); !errors.Is(err, network.ErrBusy) {
		t.Errorf("a second GC = %v", err)
	}
	if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("GC = %v", err)
	}
	if !gone(r.call("GC").Pid) {
		t.Error("the GC goes on")
	}
	r.wantCommands("GC one, ADD one")
}

func TestGCWaitsForNobody(t *testing.T) {
	r := newRig(t)
	fifo := r.fifo("gate")
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": {Wait: fifo}}))
	n := r.open()
	done := make(chan error, 1)
	go func() {
		_, err := n.Attach(t.Context(), pod("p1"))
		done <- err
	}()
	eventually(t, "ADD", func() bool { return r.commands() == "ADD one" })
	if err := n.GC(t.Context()); !errors.Is(err, network.ErrBusy) {
		t.Errorf("GC during an ADD = %v", err)
	}
	r.release(fifo)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
