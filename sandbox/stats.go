// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/cgroup"
	"github.com/berth-cri/berth/store"
)

// Usage is what a container has written to its own layer.
type Usage struct {
	Mountpoint    string // of the file system that it is on
	Bytes, Inodes uint64
	At            time.Time
}

// LinkCounters are the counters of an interface of a pod.
type LinkCounters struct {
	Name              string
	RxBytes, RxErrors uint64
	TxBytes, TxErrors uint64
}

// rateWindow is over how long a rate of use is taken at least: shorter ones are noise.
const rateWindow = time.Second

// rates remembers what was used when, to tell how fast.
type rates struct {
	mu sync.Mutex
	// By id.
	last map[string]rate // +checklocks:mu
}

type rate struct {
	at    time.Time
	usage uint64 // CPU time, in ns
	nanos uint64 // of a core, between the two readings before
	known bool
}

// next notes a reading and returns the rate, in billionths of a core.
func (r *rates) next(id string, at time.Time, usage uint64) (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = make(map[string]rate)
	}
	l, ok := r.last[id]
	if !ok || usage < l.usage { // it was started anew
		r.last[id] = rate{at: at, usage: usage}
		return 0, false
	}
	if d := at.Sub(l.at); d >= rateWindow {
		l = rate{at: at, usage: usage, known: true, nanos: uint64(float64(usage-l.usage) / d.Seconds())}
		r.last[id] = l
	}
	return l.nanos, l.known
}

// keep forgets all ids but these.
func (r *rates) keep(is func(id string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.last, func(id string, _ rate) bool { return !is(id) })
}

// ContainerStats returns what a container uses. One without a process uses what it has
// written.
func (rt *Runtime) ContainerStats(ctx context.Context, id string) (*cri.ContainerStats, error) {
	_, r, err := rt.containerRecord(id)
	if err != nil {
		return nil, err
	}
	list, err := rt.containerStats(ctx, []store.Container{r})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// ListContainerStats returns the same for all that run, or that a filter lets through.
func (rt *Runtime) ListContainerStats(ctx context.Context, f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	var records []store.Container
	for _, c := range rt.Containers(&cri.ContainerFilter{
		Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector(),
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	}) {
		if r, ok := rt.cfg.Store.Container(store.ContainerID(c.Id)); ok {
			records = append(records, r)
		}
	}
	rt.cpu.keep(func(id string) bool {
		_, container := rt.cfg.Store.Container(store.ContainerID(id))
		_, pod := rt.cfg.Store.Pod(store.PodID(id))
		return container || pod
	})
	return rt.containerStats(ctx, records)
}

// containerStats asks the executor once for all.
func (rt *Runtime) containerStats(ctx context.Context, records []store.Container) ([]*cri.ContainerStats, error) {
	var ids []string
	for _, r := range records {
		if ContainerState(r.State).runs() {
			ids = append(ids, string(r.ID))
		}
	}
	var got map[string]json.RawMessage
	if len(ids) > 0 {
		var err error
		if got, err = rt.cfg.Streams.Stats(ctx, ids...); err != nil {
			return nil, err
		}
	}
	list := make([]*cri.ContainerStats, 0, len(records))
	for _, r := range records {
		cs := &cri.ContainerStats{Attributes: &cri.ContainerAttributes{
			Id: string(r.ID), Metadata: containerMetadata(r), Labels: r.Labels, Annotations: r.Annotations,
		}}
		if raw, ok := got[string(r.ID)]; ok {
			var s cgroup.Stats
			if err := json.Unmarshal(raw, &s); err != nil {
				return nil, fmt.Errorf("container %s: statistics: %w", r.ID, err)
			}
			cs.Cpu, cs.Memory, cs.Swap = rt.cpuUsage(string(r.ID), s), memoryUsage(s), swapUsage(s)
			if s.IO.OK {
				cs.Io = &cri.IoUsage{Timestamp: s.Time.UnixNano(), Psi: psi(s.IO)}
			}
		}
		u, err := rt.cfg.Images.Usage(ctx, r.ID)
		if err == nil {
			cs.WritableLayer = &cri.FilesystemUsage{
				Timestamp: u.At.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: u.Mountpoint},
				UsedBytes: value(u.Bytes), InodesUsed: value(u.Inodes),
			}
		}
		list = append(list, cs)
	}
	return list, nil
}

// PodStats returns what a pod uses, all its containers together and each by itself.
func (rt *Runtime) PodStats(ctx context.Context, id string) (*cri.PodSandboxStats, error) {
	p, r, err := rt.podRecord(id)
	if err != nil {
		return nil, err
	}
	containers, err := rt.ListContainerStats(ctx, &cri.ContainerStatsFilter{PodSandboxId: string(p.id)})
	if err != nil {
		return nil, err
	}
	return rt.podStats(p, r, containers)
}

// ListPodStats returns the same for all pods that are ready and that a filter lets through.
func (rt *Runtime) ListPodStats(ctx context.Context, f *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	all, err := rt.ListContainerStats(ctx, nil)
	if err != nil {
		return nil, err
	}
	byPod := make(map[store.PodID][]*cri.ContainerStats)
	for _, cs := range all {
		if r, ok := rt.cfg.Store.Container(store.ContainerID(cs.Attributes.Id)); ok {
			byPod[r.PodID] = append(byPod[r.PodID], cs)
		}
	}
	var list []*cri.PodSandboxStats
	for _, ps := range rt.Pods(&cri.PodSandboxFilter{
		Id: f.GetId(), LabelSelector: f.GetLabelSelector(),
		State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
	}) {
		p, r, err := rt.podRecord(ps.Id)
		if err != nil {
			continue // gone meanwhile
		}
		s, err := rt.podStats(p, r, byPod[p.id])
		if err != nil {
			rt.cfg.Log.V(1).Info("Statistics of a pod", "pod", p.id, "error", err)
			continue
		}
		list = append(list, s)
	}
	return list, nil
}

// podStats reads what the pod's cgroup and its network have counted.
func (rt *Runtime) podStats(p *pod, r store.Pod, containers []*cri.ContainerStats) (*cri.PodSandboxStats, error) {
	ps := &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{Id: string(r.ID), Metadata: podMetadata(r), Labels: r.Labels, Annotations: r.Annotations},
		Linux:      &cri.LinuxPodSandboxStats{Containers: containers},
	}
	cfg, err := p.configOf()
	if err != nil || cfg == nil {
		return ps, err
	}
	if parent := cfg.GetLinux().GetCgroupParent(); parent != "" {
		s, err := rt.groupStats(parent)
		if err != nil && !errors.Is(err, cgroup.ErrGone) {
			return nil, err
		}
		if err == nil {
			ps.Linux.Cpu, ps.Linux.Memory = rt.cpuUsage(string(r.ID), s), memoryUsage(s)
			if s.Pids.OK {
				ps.Linux.Process = &cri.ProcessUsage{Timestamp: s.Time.UnixNano(), ProcessCount: value(s.Pids.V.Current)}
			}
			if s.IO.OK {
				ps.Linux.Io = &cri.IoUsage{Timestamp: s.Time.UnixNano(), Psi: psi(s.IO)}
			}
		}
	} else {
		ps.Linux.Cpu, ps.Linux.Memory = sum(containers)
	}
	if r.Network.Namespace != "" {
		links, err := rt.cfg.Namespaces.Counters(p.id)
		if err != nil {
			return nil, err
		}
		ps.Linux.Network = networkUsage(links)
	}
	return ps, nil
}

func (rt *Runtime) groupStats(parent string) (cgroup.Stats, error) {
	at, err := rt.cfg.Driver.Pod(parent)
	if err != nil {
		return cgroup.Stats{}, err
	}
	g, err := rt.cfg.Cgroups.Group(at.Path())
	if err != nil {
		return cgroup.Stats{}, err
	}
	return g.Stats()
}

// sum adds up containers, for a pod that has no cgroup of its own.
func sum(list []*cri.ContainerStats) (*cri.CpuUsage, *cri.MemoryUsage) {
	if len(list) == 0 {
		return nil, nil
	}
	cpu := &cri.CpuUsage{UsageCoreNanoSeconds: value(0), UsageNanoCores: value(0)}
	mem := &cri.MemoryUsage{WorkingSetBytes: value(0), UsageBytes: value(0), RssBytes: value(0), PageFaults: value(0), MajorPageFaults: value(0)}
	for _, c := range list {
		cpu.Timestamp = max(cpu.Timestamp, c.GetCpu().GetTimestamp())
		mem.Timestamp = max(mem.Timestamp, c.GetMemory().GetTimestamp())
		cpu.UsageCoreNanoSeconds.Value += c.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		cpu.UsageNanoCores.Value += c.GetCpu().GetUsageNanoCores().GetValue()
		mem.WorkingSetBytes.Value += c.GetMemory().GetWorkingSetBytes().GetValue()
		mem.UsageBytes.Value += c.GetMemory().GetUsageBytes().GetValue()
		mem.RssBytes.Value += c.GetMemory().GetRssBytes().GetValue()
		mem.PageFaults.Value += c.GetMemory().GetPageFaults().GetValue()
		mem.MajorPageFaults.Value += c.GetMemory().GetMajorPageFaults().GetValue()
	}
	return cpu, mem
}

func (rt *Runtime) cpuUsage(id string, s cgroup.Stats) *cri.CpuUsage {
	if !s.CPU.OK {
		return nil
	}
	u := &cri.CpuUsage{Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: value(s.CPU.V.Usage), Psi: psi(s.CPU.V.PSI)}
	if nanos, ok := rt.cpu.next(id, s.Time, s.CPU.V.Usage); ok {
		u.UsageNanoCores = value(nanos)
	}
	return u
}

func memoryUsage(s cgroup.Stats) *cri.MemoryUsage {
	if !s.Memory.OK {
		return nil
	}
	m := s.Memory.V
	u := &cri.MemoryUsage{
		Timestamp: s.Time.UnixNano(), WorkingSetBytes: value(m.WorkingSet), UsageBytes: value(m.Usage), RssBytes: value(m.RSS),
		PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults), Psi: psi(m.PSI), AvailableBytes: value(0),
	}
	if m.Available.OK {
		u.AvailableBytes = value(m.Available.V)
	}
	return u
}

func swapUsage(s cgroup.Stats) *cri.SwapUsage {
	if !s.Swap.OK {
		return nil
	}
	u := &cri.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(s.Swap.V.Usage)}
	if s.Swap.V.Available.OK {
		u.SwapAvailableBytes = value(s.Swap.V.Available.V)
	}
	return u
}

func networkUsage(links []LinkCounters) *cri.NetworkUsage {
	u := &cri.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, l := range slices.Backward(links) {
		i := &cri.NetworkInterfaceUsage{
			Name: l.Name, RxBytes: value(l.RxBytes), RxErrors: value(l.RxErrors), TxBytes: value(l.TxBytes), TxErrors: value(l.TxErrors),
		}
		if l.Name == "eth0" {
			u.DefaultInterface = i
			continue
		}
		u.Interfaces = append(u.Interfaces, i)
	}
	return u
}

func psi(p cgroup.Opt[cgroup.PSI]) *cri.PsiStats {
	if !p.OK {
		return nil
	}
	s := &cri.PsiStats{Some: pressure(p.V.Some)}
	if p.V.Full.OK {
		s.Full = pressure(p.V.Full.V)
	}
	return s
}

func pressure(p cgroup.Pressure) *cri.PsiData {
	return &cri.PsiData{Total: p.Total, Avg10: p.Avg10, Avg60: p.Avg60, Avg300: p.Avg300}
}

func value(v uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: v} }
