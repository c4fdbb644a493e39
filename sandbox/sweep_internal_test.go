// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"testing"

	"k8s.io/klog/v2/textlogger"

	"github.com/berth-cri/berth/oci/wire"
)

// TestSweepOfWhatIsGone: what recovery has taken back together with its record is not
// known any more when the sweep comes to it, and that is nothing to report.
func TestSweepOfWhatIsGone(t *testing.T) {
	n := newNode(t)
	l := n.boot(-1, nil)
	defer l.end()
	var said bytes.Buffer
	l.rt.cfg.Log = textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&said)))
	s, err := l.rt.observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const id = "0123456789abcdef"
	s.pods[id], s.containers[id] = true, wire.Container{ID: id, State: wire.Exited}
	l.rt.sweep(t.Context(), s)
	if said.Len() > 0 {
		t.Errorf("said:\n%s", said.String())
	}
}

// TestSweepNetwork gives back what a pod has that the store does not name, and nothing of
// one that it does.
func TestSweepNetwork(t *testing.T) {
	alive(t, func(t *testing.T, l *life) {
		pod := l.mustPod(t, podConfig("a", 0))
		const stray = "0123456789abcdef"
		l.mu.Lock()
		l.pins[stray], l.attached[stray] = true, true
		l.mu.Unlock()
		s, err := l.rt.observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.rt.sweep(t.Context(), s)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.attached[stray] || l.pins[stray] {
			t.Error("a pod that nobody names is still connected")
		}
		if !l.attached[pod] || !l.pins[pod] {
			t.Error("a pod that is ready was disconnected")
		}
		for _, w := range l.broken {
			t.Error(w)
		}
	})
}
