// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

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

// Counters reads /proc/net/dev (proc_net_dev(5)) inside a pod's network namespace.
func (k KernelNamespaces) Counters(id store.PodID) ([]LinkCounters, error) {
	f, err := ns.Open(ns.Pin(k.PinDir, string(id)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var text []byte
	err = ns.Do(f, func() error {
		text, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, err
	}
	return parseNetDev(text)
}

// parseNetDev reads two lines of titles and then, for each interface, its name, eight
// numbers of what it has received and eight of what it has sent.
func parseNetDev(text []byte) (list []LinkCounters, err error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 0; lines.Scan(); n++ {
		name, counters, ok := strings.Cut(lines.Text(), ":")
		if !ok || strings.TrimSpace(name) == "lo" {
			continue
		}
		l := LinkCounters{Name: strings.TrimSpace(name)}
		var skip uint64
		_, err := fmt.Sscan(counters, &l.RxBytes, &skip, &l.RxErrors, &skip, &skip, &skip, &skip, &skip,
			&l.TxBytes, &skip, &l.TxErrors)
		if err != nil {
			return nil, fmt.Errorf("/proc/net/dev: line %d: %w", n+1, err)
		}
		list = append(list, l)
	}
	return list, lines.Err()
}
