// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/berth-cri/berth/store"
)

// gcRun is a GC under way.
type gcRun struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// GC has the plugins free what belongs to no attachment of berth's (the verb GC, from CNI 1.1.0 on).
// Nothing calls it by itself: a plugin frees all that it is not shown, also what other runtimes have
// attached to the same network. So it is refused with ErrForeign where one of Config.SharedCaches has
// an attachment to a network of that name that is not ours; what is in no such folder cannot be seen
// from here, and is for the caller to rule out.
//
// ErrBusy while pods are being attached or detached; and if one begins to be, the GC is killed and
// returns context.Canceled. Attachments that no pod owns have to be detached before, see Attachments.
func (n *Network) GC(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run := &gcRun{cancel: cancel, done: make(chan struct{})}
	n.mu.Lock()
	confs, err := n.attachableLocked()
	switch {
	case n.closed:
		err = ErrClosed
	case n.working > 0 || n.gc != nil:
		err = ErrBusy
	}
	if err != nil {
		n.mu.Unlock()
		return err
	}
	n.gc = run
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.gc = nil
		close(run.done)
	}()
	for _, c := range confs {
		if err := n.collect(ctx, c); err != nil {
			return named(c.list.Name, err)
		}
	}
	return nil
}

func (n *Network) collect(ctx context.Context, c conf) error {
	ours, err := n.attachedTo(c.list.Name)
	if err != nil {
		return err
	}
	for _, dir := range n.cfg.SharedCaches {
		foreign, err := attachedIn(dir, c.list.Name, ours)
		if err != nil {
			return err
		}
		if foreign != "" {
			return fmt.Errorf("%w: %s", ErrForeign, foreign)
		}
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}} // an empty list and no null
	for pod, interfaces := range ours {
		for _, name := range interfaces {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: string(pod), IfName: name})
		}
	}
	ctx, end, cni := n.run(ctx, "GC", "", nil, n.cfg.AddTimeout)
	defer end()
	return cni.GCNetworkList(ctx, c.list, args)
}

// attachedTo returns the interfaces by which pods are attached to a network, by all records: a record
// that cannot be read could be of any, and stops a GC.
func (n *Network) attachedTo(network string) (map[store.PodID][]string, error) {
	pods, err := n.records.list()
	if err != nil {
		return nil, err
	}
	ours := make(map[store.PodID][]string)
	for _, pod := range pods {
		rec, err := n.records.read(pod)
		if err != nil {
			return nil, err
		}
		lists, err := rec.configs()
		if err != nil {
			return nil, err
		}
		for i, list := range lists {
			if list.Name == network {
				ours[pod] = append(ours[pod], rec.Networks[i].Interface)
			}
		}
	}
	return ours, nil
}

// attachedIn returns the name of a result in a cache of libcni's that is of the network, and not ours.
func attachedIn(dir, network string, ours map[store.PodID][]string) (string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "results"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		// NETWORK-CONTAINER-INTERFACE, and names may have hyphens: any that begins like it counts.
		rest, ok := strings.CutPrefix(e.Name(), network+"-")
		if !ok {
			continue
		}
		pod := rest[:max(0, strings.LastIndexByte(rest, '-'))]
		if _, known := ours[store.PodID(pod)]; !known {
			return filepath.Join(dir, "results", e.Name()), nil
		}
	}
	return "", nil
}
