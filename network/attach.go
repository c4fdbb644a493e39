// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"

	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/store"
)

// Attach attaches a pod to the network, and returns what the caller keeps with the pod: the name of the
// configuration, the interface in the pod (eth0), the result as JSON, and the pod's addresses in the
// plugin's order, of which there is at least one.
//
// What an earlier Attach of the pod has left, finished or not, is deleted first. After an error the
// caller calls Detach, at once or after the next start. The plugins are killed when ctx ends, or after
// Config.AddTimeout.
//
// Errors: ErrInvalid, ErrNoConfig, *PluginError, ErrNoAddress, and those of files.
func (n *Network) Attach(ctx context.Context, pod Pod) (store.Attachment, error) {
	if err := pod.check(); err != nil {
		return store.Attachment{}, err
	}
	rec, err := newRecord(&pod)
	if err != nil {
		return store.Attachment{}, err
	}
	leave, err := n.enter(ctx, pod.ID)
	if err != nil {
		return store.Attachment{}, err
	}
	defer leave()
	if err := n.detach(ctx, &pod, nil); err != nil {
		return store.Attachment{}, fmt.Errorf("delete what an earlier try has left: %w", err)
	}
	confs, err := n.attachable()
	if err != nil {
		return store.Attachment{}, err
	}
	for i, c := range confs {
		rec.Networks = append(rec.Networks, attachment{Interface: fmt.Sprintf("eth%d", i), Config: c.list.Bytes})
	}
	if err := n.records.write(rec); err != nil {
		return store.Attachment{}, fmt.Errorf("network: record: %w", err)
	}
	lock, err := n.records.lock(ctx, pod.ID)
	if err != nil {
		return store.Attachment{}, fmt.Errorf("network: record: %w", err)
	}
	ctx, end, cni := n.run(ctx, "ADD", pod.ID, lock, n.cfg.AddTimeout)
	defer end()
	var first store.Attachment
	for i, c := range confs {
		ifname := rec.Networks[i].Interface
		result, err := cni.AddNetworkList(ctx, c.list, rec.runtimeConf(rec.NetNS, ifname))
		if err != nil {
			return store.Attachment{}, named(c.list.Name, err)
		}
		if i > 0 {
			continue // the pod's addresses are those of eth0
		}
		first = store.Attachment{Network: c.list.Name, Interface: ifname}
		if first.Result, err = json.Marshal(result); err != nil {
			return store.Attachment{}, named(c.list.Name, err)
		}
		parsed, err := ParseResult(first.Result)
		if err != nil {
			return store.Attachment{}, named(c.list.Name, err)
		}
		if first.IPs = parsed.Addrs(ifname); len(first.IPs) == 0 {
			return store.Attachment{}, named(c.list.Name, ErrNoAddress)
		}
	}
	return first, nil
}

// newRecord is the record of a pod, without networks yet.
func newRecord(pod *Pod) (*record, error) {
	args, err := pod.args()
	if err != nil {
		return nil, err
	}
	caps, err := pod.capabilities()
	if err != nil {
		return nil, err
	}
	return &record{Pod: pod.ID, NetNS: pod.NetNS, Args: args, Capabilities: caps}, nil
}

// Detach is the undo of Attach. It deletes what the pod was attached to with the configuration of that
// time, and with the result, whatever the folder holds now. That Attach never ran, that Detach ran
// before, and that the network namespace is gone are no errors. An error of a plugin is one, also that
// it is no longer there: its addresses and rules may be in use, and the caller tries again.
//
// It belongs before the end of the pod's network namespace: some plugins (bridge with ipMasq) find what
// they have made from inside alone.
//
// Of the pod its ID is needed; the rest serves where the cache has lost its record, and so does known,
// what Attach has returned (nil: nothing). In that case the present configuration of that name is
// used; if there is none, what is left is logged, since nothing can be done about it.
//
// The plugins are killed when ctx ends, or after Config.DelTimeout.
func (n *Network) Detach(ctx context.Context, pod Pod, known *store.Attachment) error {
	if err := checkID(pod.ID); err != nil {
		return err
	}
	leave, err := n.enter(ctx, pod.ID)
	if err != nil {
		return err
	}
	defer leave()
	return n.detach(ctx, &pod, known)
}

// detach is Detach by who has entered the pod.
func (n *Network) detach(ctx context.Context, pod *Pod, known *store.Attachment) error {
	rec, err := n.records.read(pod.ID)
	var lists []*libcni.NetworkConfigList
	if err == nil {
		lists, err = rec.configs()
	}
	damaged, lost := errors.Is(err, errDamaged), errors.Is(err, fs.ErrNotExist)
	switch {
	case damaged:
		klog.FromContext(ctx).Error(err, "The record of a pod's network is damaged; its present configuration is used", "pod", pod.ID)
		if rec, lists, err = n.guess(pod, known); err != nil {
			return err
		}
	case lost:
		if known == nil || len(known.Result) == 0 {
			return nil // an ADD begins with a record
		}
		if rec, lists, err = n.guess(pod, known); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("network: record: %w", err)
	}
	if err := n.deleteAll(ctx, rec, lists); err != nil {
		return err
	}
	if damaged || lost {
		// It may have been attached to another network than the one just deleted, by name.
		if err := n.records.dropResults(pod.ID); err != nil {
			return err
		}
	}
	if damaged {
		return n.records.setAside(pod.ID)
	}
	return n.records.remove(pod.ID)
}

// guess makes a record of what the caller knows and what is configured now. It may have no networks.
func (n *Network) guess(pod *Pod, known *store.Attachment) (*record, []*libcni.NetworkConfigList, error) {
	rec, err := newRecord(pod)
	if err != nil {
		return nil, nil, err
	}
	if known == nil {
		known = &store.Attachment{}
	}
	n.mu.Lock()
	confs := n.confs.valid
	n.mu.Unlock()
	i := slices.IndexFunc(confs, func(c conf) bool { return c.list.Name == known.Network || known.Network == "" })
	if i < 0 {
		return rec, nil, nil
	}
	ifname := known.Interface
	if ifname == "" {
		ifname = "eth0"
	}
	rec.Networks = []attachment{{Interface: ifname}}
	return rec, []*libcni.NetworkConfigList{confs[i].list}, nil
}

// deleteAll does the DELs of a record, the last attachment first.
func (n *Network) deleteAll(ctx context.Context, rec *record, lists []*libcni.NetworkConfigList) error {
	if len(lists) == 0 {
		klog.FromContext(ctx).Info("A pod's network cannot be deleted: neither its record nor its configuration are there", "pod", rec.Pod)
		return nil
	}
	lock, err := n.records.lock(ctx, rec.Pod)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // there is none of a guess
		return fmt.Errorf("network: record: %w", err)
	}
	netns := rec.NetNS
	if f, err := ns.Open(netns); err == nil {
		f.Close()
	} else {
		// Gone, or never finished: plugins then delete what does not need it (specification, "DEL").
		netns = ""
	}
	ctx, end, cni := n.run(ctx, "DEL", rec.Pod, lock, n.cfg.DelTimeout)
	defer end()
	for i, list := range slices.Backward(lists) {
		if err := cni.DelNetworkList(ctx, list, rec.runtimeConf(netns, rec.Networks[i].Interface)); err != nil {
			return named(list.Name, err)
		}
	}
	return nil
}

// Check asks the plugins whether the pod is still attached as it was (CHECK, from CNI 0.4.0 on; a
// network of an older version passes). ErrNotAttached where there is no attachment; a *PluginError says
// what is missing.
func (n *Network) Check(ctx context.Context, pod store.PodID) error {
	if err := checkID(pod); err != nil {
		return err
	}
	leave, err := n.enter(ctx, pod)
	if err != nil {
		return err
	}
	defer leave()
	rec, err := n.records.read(pod)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotAttached
	}
	if err != nil {
		return err
	}
	lists, err := rec.configs()
	if err != nil {
		return err
	}
	lock, err := n.records.lock(ctx, pod)
	if err != nil {
		return fmt.Errorf("network: record: %w", err)
	}
	ctx, end, cni := n.run(ctx, "CHECK", pod, lock, n.cfg.AddTimeout)
	defer end()
	for i, list := range lists {
		rt := rec.runtimeConf(rec.NetNS, rec.Networks[i].Interface)
		err := cni.CheckNetworkList(ctx, list, rt)
		if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
			return named(list.Name, err)
		}
	}
	return nil
}

// Attachments returns the pods that are attached, or were about to be when berth died, in order. Those
// that no pod of the store owns are for the caller to detach.
func (n *Network) Attachments() ([]store.PodID, error) { return n.records.list() }
