// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"io/fs"

	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/store"
)

// KernelNamespaces are the real Namespaces: package oci/ns with one folder of pins.
type KernelNamespaces struct {
	PinDir string // "" is ns.DefaultDir
}

var _ Namespaces = KernelNamespaces{}

// Make makes what r asks for. What an earlier try has left is taken away first.
func (k KernelNamespaces) Make(ctx context.Context, r ns.Request) (*ns.Namespaces, error) {
	r.PinDir = k.PinDir
	made, err := ns.Make(ctx, r)
	if !errors.Is(err, fs.ErrExist) {
		return made, err
	}
	if err := ns.Remove(ns.Pin(k.PinDir, r.ID)); err != nil {
		return nil, err
	}
	return ns.Make(ctx, r)
}

// Pinned says whether a pod's network namespace is there.
func (k KernelNamespaces) Pinned(id store.PodID) (bool, error) {
	f, err := ns.Open(ns.Pin(k.PinDir, string(id)))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ns.ErrNotNetNS) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// Remove takes a pod's pin away; none is a success.
func (k KernelNamespaces) Remove(id store.PodID) error {
	return ns.Remove(ns.Pin(k.PinDir, string(id)))
}

// List returns the ids of the pods that have a pin.
func (k KernelNamespaces) List() ([]string, error) { return ns.List(k.PinDir) }
