// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"testing"

	"github.com/berth-cri/berth/oci/wire"
)

// TestVerdictsAreComplete holds that a new state, here or in the executor, comes with
// a decision.
func TestVerdictsAreComplete(t *testing.T) {
	states := []ContainerState{""}
	for s := range containerTable {
		states = append(states, s)
	}
	for _, s := range states {
		for _, has := range []wire.State{absent, wire.Creating, wire.IsCreated, wire.Running, wire.Exited} {
			if containerVerdicts[s][has] == "" {
				t.Errorf("no verdict on a container that is %q, in the executor %q", s, has)
			}
		}
		if len(containerVerdicts[s]) != 5 {
			t.Errorf("%q has %d verdicts, want 5", s, len(containerVerdicts[s]))
		}
		if s != "" && containerRank(string(s)) < 0 {
			t.Errorf("%q has no rank", s)
		}
	}
	if len(containerVerdicts) != len(states) {
		t.Errorf("%d states have verdicts, want %d", len(containerVerdicts), len(states))
	}
	pods := []PodState{""}
	for s := range podTable {
		pods = append(pods, s)
	}
	for _, s := range pods {
		if podVerdicts[s][true] == "" || podVerdicts[s][false] == "" {
			t.Errorf("no verdict on a pod that is %q", s)
		}
		if s != "" && podRank(string(s)) < 0 {
			t.Errorf("%q has no rank", s)
		}
	}
	if len(podVerdicts) != len(pods) {
		t.Errorf("%d states have verdicts, want %d", len(podVerdicts), len(pods))
	}
}
