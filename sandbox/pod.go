// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/oci/ns"
	"github.com/berth-cri/berth/oci/spec"
	"github.com/berth-cri/berth/oci/wire"
	"github.com/berth-cri/berth/store"
)

// The steps of a pod, in this order. Containers of the pod need all of them.
const (
	stepNamespaces = "namespaces"
	stepNetwork    = "network"
	stepFiles      = "files"
)

func podSteps(limit time.Duration) []step[*pod] {
	return []step[*pod]{
		{name: stepRecord, limit: limit, do: (*pod).doRecord, undo: (*pod).undoRecord},
		{name: stepNamespaces, limit: limit, do: (*pod).doNamespaces, undo: (*pod).undoNamespaces},
		{name: stepNetwork, do: (*pod).doNetwork, undo: (*pod).undoNetwork},
		{name: stepFiles, limit: limit, do: (*pod).doFiles, undo: (*pod).undoFiles},
	}
}

// configOf returns the configuration as received: from the creation under way, or
// from live.db. Nil after a reboot.
func (p *pod) configOf() (*cri.PodSandboxConfig, error) {
	p.mu.Lock()
	making := p.config
	p.mu.Unlock()
	if making != nil {
		return making, nil
	}
	live, ok := p.live.Get(p.id)
	if !ok || live.Config == nil {
		return nil, nil
	}
	cfg := new(cri.PodSandboxConfig)
	if err := proto.Unmarshal(live.Config, cfg); err != nil {
		return nil, fmt.Errorf("pod %s: configuration: %w", p.id, err)
	}
	return cfg, nil
}

// doRecord writes the pod to the disk, which goes on while the namespaces are made.
// What must not be forgotten over a power cut is the attachment: a pod that has none
// does not wait for the disk.
func (p *pod) doRecord(ctx context.Context) error {
	r := newRecord(p.id, p.config)
	r.Handler, r.CreatedAt, r.State = p.handler, p.rt.made(), string(PodCreating)
	if !spec.PodNamespaces(p.config).Net {
		r.Network.Host = true
		return p.rt.cfg.Store.PutPodAsync(r)
	}
	r.Network.Namespace = ns.Pin(p.rt.cfg.PinDir, string(p.id))
	r.Network.Attachment = &store.Attachment{Interface: "eth0"}
	p.durable = later(func() error { return p.rt.cfg.Store.PutPod(context.WithoutCancel(ctx), r) })
	return nil
}

// newRecord is what a pod's record has of its configuration.
func newRecord(id store.PodID, cfg *cri.PodSandboxConfig) store.Pod {
	meta := cfg.GetMetadata()
	return store.Pod{
		ID: id, Name: meta.GetName(), Namespace: meta.GetNamespace(), UID: meta.GetUid(), Attempt: meta.GetAttempt(),
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), LogDirectory: cfg.GetLogDirectory(),
	}
}

func (p *pod) undoRecord(ctx context.Context) error {
	// Its error is not ours: there may be a record all the same.
	if err := p.durable.wait(ctx); ctx.Err() != nil {
		return err
	}
	if err := p.rt.point("delete record"); err != nil {
		return err
	}
	return p.rt.cfg.Store.DeletePodAsync(p.id)
}

// doNamespaces makes the pod's namespaces and gives them to the executor, which
// holds those that have no path.
func (p *pod) doNamespaces(ctx context.Context) error {
	want := spec.PodNamespaces(p.config)
	r := ns.Request{
		ID: string(p.id), Net: want.Net, IPC: want.IPC, UTS: want.UTS,
		Hostname: p.hostname(), Sysctls: p.config.GetLinux().GetSysctls(), PinDir: p.rt.cfg.PinDir,
	}
	made, err := p.rt.cfg.Namespaces.Make(ctx, r)
	if err != nil {
		return err
	}
	defer made.Close()
	create := wire.PodCreate{ID: string(p.id), ShmSize: shmSize, SharePID: want.PID, Systemd: p.rt.cfg.Driver == cgroup.Systemd}
	if !want.IPC {
		create.ShmSize = 0
	}
	var files []*os.File
	for _, n := range []struct {
		name string
		file *os.File
	}{{"ipc", made.IPC}, {"uts", made.UTS}, {"net", made.Net}} {
		if n.file != nil {
			create.Namespaces = append(create.Namespaces, n.name)
			files = append(files, n.file)
		}
	}
	if want.PID {
		at, err := p.rt.cfg.Driver.Container(p.config.GetLinux().GetCgroupParent(),
			cgroup.Leaf{Prefix: p.rt.cfg.CgroupPrefix, ID: "pause-" + string(p.id)})
		if err != nil {
			return err
		}
		create.PauseCgroup = cgroupsPath(p.rt.cfg.Driver, at, p.rt.cfg.CgroupPrefix, "pause-"+string(p.id))
	}
	return p.rt.cfg.Executor.PodCreate(ctx, create, files)
}

func (p *pod) undoNamespaces(ctx context.Context) error {
	if err := p.rt.cfg.Executor.PodDelete(ctx, string(p.id)); err != nil {
		return err
	}
	return p.rt.cfg.Namespaces.Remove(p.id)
}

// doNetwork connects the pod. That it is about to be connected is on the disk
// before, so that a power cut leaves no address that nobody gives back.
func (p *pod) doNetwork(ctx context.Context) error {
	if err := p.durable.wait(ctx); err != nil {
		return err
	}
	r, err := p.record()
	if err != nil || r.Network.Host {
		return err
	}
	attachment, err := p.rt.cfg.Network.Attach(ctx, p.network(r, p.config))
	if err != nil {
		return err
	}
	if len(attachment.IPs) == 0 {
		return errors.New("the network gave the pod no address")
	}
	p.attached = &attachment
	return nil
}

func (p *pod) undoNetwork(ctx context.Context) error {
	if err := p.durable.wait(ctx); ctx.Err() != nil {
		return err
	}
	r, ok := p.rt.cfg.Store.Pod(p.id)
	if !ok || r.Network.Host {
		return nil // never recorded, so never connected
	}
	cfg, err := p.configOf()
	if err != nil {
		return err
	}
	return p.rt.cfg.Network.Detach(ctx, p.network(r, cfg))
}

func (p *pod) network(r store.Pod, cfg *cri.PodSandboxConfig) PodNetwork {
	return PodNetwork{
		ID: p.id, Name: r.Name, Namespace: r.Namespace, UID: r.UID,
		NetNS: r.Network.Namespace, Annotations: r.Annotations, Config: cfg, Attachment: r.Network.Attachment,
	}
}

// hostname is the name of the pod's UTS namespace; "" where it has none of its own.
func (p *pod) hostname() string { return p.config.GetHostname() }

// doFiles writes what containers find in /etc where the kubelet mounts nothing.
func (p *pod) doFiles(ctx context.Context) error {
	dir := p.rt.podDir(p.id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	r, err := p.record()
	if err != nil {
		return err
	}
	files, err := p.rt.podFiles(ctx, p.config, r, p.attached)
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return p.rt.point("files")
}

func (p *pod) undoFiles(context.Context) error {
	if err := p.rt.point("remove files"); err != nil {
		return err
	}
	return os.RemoveAll(p.rt.podDir(p.id))
}

// containersOf returns the pod's containers, those included that are being made.
func (p *pod) containersOf() []*container {
	p.rt.mu.Lock()
	defer p.rt.mu.Unlock()
	var list []*container
	for _, c := range p.rt.containers {
		if c.pod == p {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b *container) int { return cmp.Compare(a.id, b.id) })
	return list
}
