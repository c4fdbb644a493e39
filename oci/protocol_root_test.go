// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-cri/berth/oci/wire"
)

// TestHelloIsRefused: a client of another version, or one that does not begin with
// hello, is told so and served nothing.
func TestHelloIsRefused(t *testing.T) {
	r := newRig(t)
	for name, first := range map[string]wire.Message{
		"version": {Op: wire.OpHello, Body: []byte(`{"Min":77,"Max":78}`)},
		"op":      {Op: wire.OpObserve},
		"body":    {Op: wire.OpHello, Body: []byte(`{"Min":"x"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dialRaw(t)
			first.Kind, first.ID = wire.Request, 1
			if err := c.Send(&first); err != nil {
				t.Fatal(err)
			}
			m, err := c.Recv()
			if err != nil {
				t.Fatal(err)
			}
			var a wire.Answer
			if err := m.Decode(&a); err != nil || a.Err == nil {
				t.Errorf("answer = %+v, %v; want an error", a, err)
			}
			if m, err := c.Recv(); err == nil {
				t.Errorf("after the refusal came %s", m.Op)
			}
		})
	}
}

// TestRequestIDTwice: it is the client's mistake, and ends its connection and
// nothing else.
func TestRequestIDTwice(t *testing.T) {
	r := newRig(t)
	before := r.executorPID()
	c := r.dialRaw(t)
	hello, err := json.Marshal(wire.Hello{Min: wire.MinVersion, Max: wire.MaxVersion})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send(&wire.Message{Kind: wire.Request, Op: wire.OpHello, ID: 1, Body: hello}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Send(&wire.Message{Kind: wire.Request, Op: wire.OpEvents, ID: 7}); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Log(err) // the connection has ended already
		}
	}
	for {
		m, err := c.Recv()
		if err != nil {
			break
		}
		m.Close()
	}
	if after := r.executorPID(); after != before {
		t.Errorf("executor %d has become %d", before, after)
	}
}

func (r *rig) dialRaw(t *testing.T) *wire.Conn {
	t.Helper()
	c, err := wire.Dial(t.Context(), filepath.Join(r.state, "executor.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestEnvironmentAfterTakeover: what is set for the processes that an executor
// starts must not become the next executors' own.
func TestEnvironmentAfterTakeover(t *testing.T) {
	r := newRig(t)
	r.killKeeper()
	r.nextExecutor()
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", r.executorPID()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(env), "GOMAXPROCS") {
		t.Errorf("environment of the executor after the keeper's death: %q", env)
	}
}
