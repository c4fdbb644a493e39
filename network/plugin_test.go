// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-cri/berth/network"
)

// What a plugin says is in the error, and who it is, for each command.
func TestPluginsOwnWords(t *testing.T) {
	said := `{"cniVersion":"1.1.0","code":11,"msg":"no addresses\tleft","details":"range 10.1.0.0/24\nis full"}`
	for name, c := range map[string]struct {
		deed deed
		want string
		code uint
	}{
		"said":            {deed{Say: said, Exit: 1}, "no addresses left: range 10.1.0.0/24 is full (code 11)", 11},
		"said, and wrote": {deed{Say: said, SayErr: "debug", Exit: 1}, "no addresses left: range 10.1.0.0/24 is full (code 11)", 11},
		"a message alone": {deed{Say: `{"msg":"no"}`, Exit: 1}, "no", 0},
		"on stderr":       {deed{SayErr: "panic: \x1b[31mnil\x1b[0m map\n", Exit: 2}, "exit status 2: panic: [31mnil [0m map", 0},
		"garbage":         {deed{Say: "it\abroke", Exit: 1}, "exit status 1: it broke", 0},
		"null":            {deed{Say: "null", Exit: 1}, "exit status 1: null", 0},
		"nothing":         {deed{Exit: 3}, "exit status 3", 0},
		"at length": {
			deed{Say: `{"code":7,"msg":"` + strings.Repeat("é", 5000) + `"}`, Exit: 1},
			strings.Repeat("é", 2048) + "... (code 7)", 7,
		},
		"at length on stderr": {deed{SayErr: strings.Repeat("x", 50000) + "end", Exit: 1}, "exit status 1: " + strings.Repeat("x", 4093) + "end", 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.list("10-a.conflist", "net-a", r.plugin("one", nil), r.plugin("two", map[string]deed{"ADD": c.deed, "DEL": c.deed}))
			n := r.open()
			_, err := n.Attach(t.Context(), pod("p1"))
			failed, ok := errors.AsType[*network.PluginError](err)
			if want := "network net-a: plugin two: ADD: " + c.want; !ok || err.Error() != want || failed.Code != c.code {
				t.Errorf("Attach = %v\nwant    %s", err, want)
			}
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != c.deed.Exit {
				t.Errorf("the error does not tell how the plugin ended: %#v", failed)
			}
			err = n.Detach(t.Context(), pod("p1"), nil)
			if want := "network net-a: plugin two: DEL: " + c.want; err == nil || err.Error() != want {
				t.Errorf("Detach = %v\nwant    %s", err, want)
			}
			r.wantCommands("ADD one, ADD two, DEL two")
			r.wantCache("p1.json") // for the next try
		})
	}
}

// A result that is no result is quoted, and names the plugin.
func TestBadResultNamesThePlugin(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": {Say: "hello\nworld"}}))
	_, err := r.open().Attach(t.Context(), pod("p1"))
	if !errors.Is(err, network.ErrBadResult) || !strings.Contains(err.Error(), `plugin one: ADD: `) || !strings.Contains(err.Error(), `it wrote "hello world"`) {
		t.Errorf("Attach = %v", err)
	}
}

// A plugin that hangs is killed with all it has started, when its time is over or its caller's.
func TestHangingPlugin(t *testing.T) {
	for name, c := range map[string]struct {
		timeout time.Duration
		deed    func(fifo string) deed
		wants   error
		first   string // of the log
	}{
		"at its deadline":            {300 * time.Millisecond, func(f string) deed { return deed{Wait: f} }, network.ErrTimeout, "ADD one"},
		"when the caller gives up":   {time.Hour, func(f string) deed { return deed{Wait: f} }, context.Canceled, "ADD one"},
		"with what it has delegated": {time.Hour, func(f string) deed { return deed{Delegate: f} }, context.Canceled, "ADD one, waits one"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.conf.AddTimeout = c.timeout
			r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": c.deed(r.fifo("gate"))}), r.plugin("two", nil))
			n := r.open()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := n.Attach(ctx, pod("p1"))
				done <- err
			}()
			eventually(t, c.first, func() bool { return r.commands() == c.first || c.timeout < time.Hour })
			if c.timeout == time.Hour {
				cancel()
			}
			err := <-done
			if !errors.Is(err, c.wants) || !strings.HasPrefix(err.Error(), "network net-a: plugin one: ADD: ") {
				t.Errorf("Attach = %v; want %v of plugin one", err, c.wants)
			}
			for _, call := range r.calls() {
				eventually(t, "the plugin and its children are gone", func() bool { return gone(call.Pid) })
			}
			if err := n.Detach(t.Context(), pod("p1"), nil); err != nil {
				t.Error(err)
			}
			r.wantCache()
		})
	}
}

// A hanging DEL has its own, shorter time.
func TestHangingDel(t *testing.T) {
	r := newRig(t)
	r.conf.DelTimeout = 300 * time.Millisecond
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"DEL": {Wait: r.fifo("gate")}}))
	n := r.open()
	if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
		t.Fatal(err)
	}
	err := n.Detach(t.Context(), pod("p1"), nil)
	if !errors.Is(err, network.ErrTimeout) || err.Error() != "network net-a: plugin one: DEL: deadline exceeded: not done after 300ms" {
		t.Errorf("Detach = %v", err)
	}
	r.wantCache("p1.json", "results/net-a-p1-eth0")
}

func TestHugeOutput(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", map[string]deed{"ADD": {Flood: 50 << 20}}))
	n := r.open()
	_, err := n.Attach(t.Context(), pod("p1"))
	if !errors.Is(err, network.ErrTooMuch) || len(err.Error()) > 10000 {
		t.Errorf("Attach = %.300v", err)
	}
	if pid := r.call("ADD").Pid; !gone(pid) {
		eventually(t, "the plugin is gone", func() bool { return gone(pid) })
	}
	if err := n.Detach(t.Context(), pod("p1"), nil); err != nil {
		t.Error(err)
	}
}

// A binary that is gone is named, for DEL too, and once it is back the pod can be detached.
func TestMissingPlugin(t *testing.T) {
	r := newRig(t)
	r.list("10-a.conflist", "net-a", r.plugin("one", nil), r.plugin("two", nil))
	n := r.open()
	if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
		t.Fatal(err)
	}
	two := filepath.Join(r.dir, "bin", "two")
	if err := os.Rename(two, two+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := n.Detach(t.Context(), pod("p1"), nil)
		if want := "network net-a: plugin two: DEL: plugin not found in " + filepath.Dir(two); !errors.Is(err, network.ErrNoPlugin) || err.Error() != want {
			t.Errorf("Detach = %v; want %s", err, want)
		}
	}
	if _, err := n.Attach(t.Context(), pod("p2")); !errors.Is(err, network.ErrNoPlugin) {
		t.Errorf("Attach = %v", err)
	}
	if err := os.Rename(two+".away", two); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"p1", "p2"} {
		if err := n.Detach(t.Context(), pod(id), nil); err != nil {
			t.Errorf("Detach %s = %v", id, err)
		}
	}
	r.wantCommands("ADD one, ADD two, ADD one, DEL two, DEL one, DEL two, DEL one")
	r.wantCache()
}

// A plugin that is just being written is tried again.
func TestBusyBinary(t *testing.T) {
	r := newRig(t)
	bin := filepath.Join(r.dir, "bin", "busy")
	if out, err := exec.CommandContext(t.Context(), "cp", self(t), bin).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(bin, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.list("10-a.conflist", "net-a", r.plugin("busy", nil))
	n := r.open()
	timer := time.AfterFunc(150*time.Millisecond, func() { f.Close() })
	defer timer.Stop()
	if _, err := n.Attach(t.Context(), pod("p1")); err != nil {
		t.Error(err)
	}
}
