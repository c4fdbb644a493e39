// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStatusVerb(t *testing.T) {
	r := newRig(t)
	flag := map[string]deed{"STATUS": {Say: `{"code":50,"msg":"the agent is not up"}`, Exit: 1}}
	r.list("10-a.conflist", "net-a", r.plugin("one", nil), r.plugin("two", flag))
	n := r.open()
	s := n.Status(t.Context())
	if s.Ready || s.Message != "network net-a: plugin two: STATUS: the agent is not up (code 50)" {
		t.Errorf("Status = %+v", s)
	}
	calls := r.calls()
	if len(calls) != 2 || calls[0].Command != "STATUS" || calls[0].Pod != "" || calls[0].Conf["name"] != "net-a" || calls[0].Conf["cniVersion"] != "1.1.0" {
		t.Errorf("calls: %+v", calls)
	}
	// What was said is good for a while, and asking costs nothing then.
	for range 10 {
		n.Status(t.Context())
	}
	if got := len(r.calls()); got != 2 {
		t.Errorf("plugins were called %d times; want 2", got)
	}
	// A pod is attached nevertheless: it is for the scheduler to stay away.
	if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
		t.Error(err)
	}
	// And not for another configuration.
	r.list("00-b.conflist", "net-b", r.plugin("one", nil), r.plugin("two", nil))
	eventually(t, "the other configuration", func() bool {
		s = n.Status(t.Context())
		return s.Networks[0] == "net-b"
	})
	if strings.Contains(s.Message, "the agent is not up") {
		t.Errorf("of net-b, nobody has said so: %+v", s)
	}
	wantState(t, n, "ready, net-b of 00-b.conflist")
}

func TestStatusOfOldPlugins(t *testing.T) {
	r := newRig(t)
	r.listOf("1.0.0", "10-a.conflist", "net-a", r.plugin("one", map[string]deed{"STATUS": {Exit: 1}}))
	if got := state(t, r.open()); got != "ready, net-a of 10-a.conflist" {
		t.Error(got)
	}
	if calls := r.calls(); len(calls) > 0 {
		t.Errorf("CNI 1.0.0 has no STATUS: %+v", calls)
	}
}

func TestStatusOfMissingPlugins(t *testing.T) {
	r := newRig(t)
	r.listOf("1.0.0", "10-a.conflist", "net-a", r.plugin("one", nil), r.plugin("four", nil), r.plugin("five", nil))
	s := r.open().Status(t.Context())
	if s.Ready || !strings.Contains(s.Message, `"four"`) || !strings.Contains(s.Message, `"five"`) || strings.Contains(s.Message, `"one"`) {
		t.Errorf("Status = %+v", s)
	}
}

// A STATUS that hangs keeps nobody for longer than a second, and in the end the network is not ready.
func TestStatusHangs(t *testing.T) {
	r := newRig(t)
	r.conf.StatusTimeout = 3 * time.Second
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"STATUS": {Wait: r.fifo("gate")}}))
	n := r.open()
	before := time.Now()
	s := n.Status(t.Context())
	if d := time.Since(before); d > 2500*time.Millisecond {
		t.Errorf("Status took %v", d)
	}
	if s.Ready || !strings.Contains(s.Message, "not yet said") {
		t.Errorf("Status = %+v", s)
	}
	eventually(t, "it is killed", func() bool {
		return strings.Contains(n.Status(t.Context()).Message, "plugin one: STATUS: deadline exceeded: not done after 3s")
	})
	if pid := r.call("STATUS").Pid; !gone(pid) {
		t.Errorf("plugin %d is still there", pid)
	}
	// It is asked anew when the configuration changes, not when the deadline of the old one is over.
	if err := os.Remove(filepath.Join(r.conf.ConfDir, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	wantState(t, n, "not ready")
	r.list("10-b.conflist", "net-b", r.plugin("one", nil))
	wantState(t, n, "ready, net-b of 10-b.conflist")
}

// Close does not wait for the deadline of a plugin that hangs.
func TestCloseKillsStatus(t *testing.T) {
	r := newRig(t)
	r.conf.StatusTimeout = time.Hour
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"STATUS": {Wait: r.fifo("gate")}}))
	n := r.open()
	eventually(t, "STATUS", func() bool { return len(r.calls()) == 1 })
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if !gone(r.call("STATUS").Pid) {
		t.Error("the plugin is still there")
	}
}
