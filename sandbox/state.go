// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
)

// ErrState is returned for an event that the state does not allow: something else
// is under way, or it is too late.
var ErrState = errors.New("not in this state")

// PodState is where a pod is in its life. The strings are stored.
type PodState string

// The states of a pod.
const (
	PodCreating PodState = "creating" // not listed
	PodReady    PodState = "ready"
	PodStopping PodState = "stopping"
	PodNotReady PodState = "notready"
	PodRemoving PodState = "removing"
	PodFailed   PodState = "failed" // creation failed and could not be taken back yet; listed as not ready
)

// ContainerState is where a container is in its life. The strings are stored.
type ContainerState string

// The states of a container.
const (
	ContainerCreating ContainerState = "creating" // not listed
	ContainerCreated  ContainerState = "created"  // no process
	ContainerStarting ContainerState = "starting"
	ContainerRunning  ContainerState = "running"
	ContainerStopping ContainerState = "stopping"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
	ContainerFailed   ContainerState = "failed" // creation failed and could not be taken back yet
)

// runs says whether a container in this state has a process that was started.
func (s ContainerState) runs() bool { return s == ContainerRunning || s == ContainerStopping }

// event is what happens to a pod or a container.
type event string

const (
	climbed event = "climbed" // all steps of the creation are done
	fell    event = "fell"    // one failed, and taking back the others did as well
	start   event = "start"   // containers only
	started event = "started" // containers only
	stop    event = "stop"
	stopped event = "stopped" // pods only
	exited  event = "exited"  // containers only: its process has ended, or was not to be had
	remove  event = "remove"
	reboot  event = "reboot" // the machine was started anew: no process of ours is left
)

// podTable holds every change a pod can make. What is not in it is refused.
var podTable = map[PodState]map[event]PodState{ //nolint:gochecknoglobals // a table
	PodCreating: {climbed: PodReady, fell: PodFailed, reboot: PodNotReady},
	PodReady:    {stop: PodStopping, reboot: PodNotReady},
	PodStopping: {stop: PodStopping, stopped: PodNotReady, reboot: PodNotReady},
	PodNotReady: {stop: PodStopping, remove: PodRemoving, reboot: PodNotReady},
	PodRemoving: {remove: PodRemoving, reboot: PodRemoving},
	PodFailed:   {stop: PodStopping, remove: PodRemoving, reboot: PodNotReady},
}

// containerTable holds every change a container can make.
var containerTable = map[ContainerState]map[event]ContainerState{ //nolint:gochecknoglobals // a table
	ContainerCreating: {climbed: ContainerCreated, fell: ContainerFailed, reboot: ContainerExited},
	ContainerCreated:  {start: ContainerStarting, remove: ContainerRemoving, reboot: ContainerExited},
	ContainerStarting: {started: ContainerRunning, exited: ContainerExited, reboot: ContainerExited},
	ContainerRunning:  {stop: ContainerStopping, exited: ContainerExited, reboot: ContainerExited},
	ContainerStopping: {stop: ContainerStopping, exited: ContainerExited, reboot: ContainerExited},
	ContainerExited:   {exited: ContainerExited, remove: ContainerRemoving, reboot: ContainerExited},
	ContainerRemoving: {remove: ContainerRemoving, reboot: ContainerRemoving},
	ContainerFailed:   {remove: ContainerRemoving, reboot: ContainerExited},
}

// next returns the state that follows, or ErrState.
func (s PodState) next(e event) (PodState, error) { return follow(podTable, s, e) }

// next returns the state that follows, or ErrState.
func (s ContainerState) next(e event) (ContainerState, error) { return follow(containerTable, s, e) }

func follow[S ~string](table map[S]map[event]S, s S, e event) (S, error) {
	to, ok := table[s][e]
	if !ok {
		return s, fmt.Errorf("%s while %s: %w", e, s, ErrState)
	}
	return to, nil
}
