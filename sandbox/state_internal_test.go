// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// all events, so that a new one has to be decided about for every state.
var allEvents = []event{climbed, fell, start, started, stop, stopped, exited, remove, reboot}

// TestStateTables compares every pair of state and event with the golden file: a
// new state or event without a decision shows there as a line.
func TestStateTables(t *testing.T) {
	var b strings.Builder
	pods := []PodState{PodCreating, PodReady, PodStopping, PodNotReady, PodRemoving, PodFailed}
	if len(pods) != len(podTable) {
		t.Errorf("%d pod states in the test, %d in the table", len(pods), len(podTable))
	}
	for _, s := range pods {
		for _, e := range allEvents {
			to, err := s.next(e)
			line(&b, "pod", string(s), e, string(to), err)
		}
	}
	containers := []ContainerState{
		ContainerCreating, ContainerCreated, ContainerStarting, ContainerRunning,
		ContainerStopping, ContainerExited, ContainerRemoving, ContainerFailed,
	}
	if len(containers) != len(containerTable) {
		t.Errorf("%d container states in the test, %d in the table", len(containers), len(containerTable))
	}
	for _, s := range containers {
		for _, e := range allEvents {
			to, err := s.next(e)
			line(&b, "container", string(s), e, string(to), err)
		}
	}
	path := filepath.Join("testdata", "states.txt")
	if os.Getenv("BERTH_REWRITE") != "" {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the tables have changed (BERTH_REWRITE=1 writes %s):\n%s", path, b.String())
	}
}

func line(b *strings.Builder, kind, from string, e event, to string, err error) {
	if err != nil {
		if !errors.Is(err, ErrState) {
			to = err.Error()
		} else {
			to = "-"
		}
	}
	fmt.Fprintf(b, "%-9s %-8s %-7s -> %s\n", kind, from, e, to)
}
