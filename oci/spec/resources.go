// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// resources sets limits, and the OOM score, which is always explicit: a container would else have that
// of the executor, which the kernel is not to kill.
func (b *builder) resources() error {
	const field = "container.linux.resources"
	r := b.Container.GetLinux().GetResources()
	score := r.GetOomScoreAdj()
	if score < -1000 || score > 1000 {
		return invalid(field+".oom_score_adj", "%d: want -1000 to 1000", score)
	}
	n := int(score)
	b.spec.Process.OOMScoreAdj = &n
	var err error
	b.spec.Linux.Resources, err = resources(field, r, b.Features)
	return err
}

// Resources turns the CRI's resources into the spec's, for UpdateContainerResources. Zero and empty leave
// a limit as it is. The spec speaks of cgroup v1, and of v2 in Unified; who applies it converts.
//
// oom_score_adj is no resource of a cgroup and has no place in the result.
func Resources(r *cri.LinuxContainerResources, f Features) (*specs.LinuxResources, error) {
	return resources("linux", r, f)
}

func resources(field string, r *cri.LinuxContainerResources, f Features) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	var err error
	if out.CPU, err = cpu(field, r); err != nil {
		return nil, err
	}
	if out.Memory, err = memory(field, r, f); err != nil {
		return nil, err
	}
	if out.HugepageLimits, err = hugepages(field, r, f); err != nil {
		return nil, err
	}
	if out.Unified, err = unified(field, r, f); err != nil {
		return nil, err
	}
	return out, nil
}

func cpu(field string, r *cri.LinuxContainerResources) (*specs.LinuxCPU, error) {
	var c specs.LinuxCPU
	if period := r.GetCpuPeriod(); period != 0 {
		if period < 1000 || period > 1_000_000 { // kernel/sched/core.c: 1 ms to 1 s
			return nil, invalid(field+".cpu_period", "%d µs: the kernel takes 1000 to 1000000", period)
		}
		u := uint64(period)
		c.Period = &u
	}
	if quota := r.GetCpuQuota(); quota != 0 {
		if quota != -1 && quota < 1000 {
			return nil, invalid(field+".cpu_quota", "%d µs: the kernel takes no less than 1000, or -1 for no limit", quota)
		}
		c.Quota = &quota
	}
	if shares := r.GetCpuShares(); shares != 0 {
		if shares < 2 || shares > 262144 { // kernel/sched/core.c: MIN_SHARES, MAX_SHARES
			return nil, invalid(field+".cpu_shares", "%d: the kernel takes 2 to 262144", shares)
		}
		u := uint64(shares)
		c.Shares = &u
	}
	for _, set := range []struct {
		name, value string
		to          *string
	}{
		{"cpuset_cpus", r.GetCpusetCpus(), &c.Cpus},
		{"cpuset_mems", r.GetCpusetMems(), &c.Mems},
	} {
		if strings.Trim(set.value, "0123456789,-") != "" {
			return nil, invalid(field+"."+set.name, "%.80q: want a list like 0-3,8", set.value)
		}
		*set.to = set.value
	}
	if c == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return &c, nil
}

// memory forbids swap where nothing else is asked for, as the kubelet expects. Where the kernel does
// not count swap nothing can be forbidden or allowed.
func memory(field string, r *cri.LinuxContainerResources, f Features) (*specs.LinuxMemory, error) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit < -1 {
		return nil, invalid(field+".memory_limit_in_bytes", "%d: want a number of bytes, or -1 for no limit", limit)
	}
	if swap < -1 {
		return nil, invalid(field+".memory_swap_limit_in_bytes", "%d: want a number of bytes, or -1 for no limit", swap)
	}
	if swap > 0 && limit <= 0 {
		return nil, invalid(field+".memory_swap_limit_in_bytes", "%d, without a limit of memory: it counts both together", swap)
	}
	if swap > 0 && swap < limit {
		return nil, invalid(field+".memory_swap_limit_in_bytes", "%d: it counts memory and swap together, and memory alone may be %d", swap, limit)
	}
	if swap == 0 {
		swap = limit
	}
	if limit == 0 && swap == 0 {
		return nil, nil
	}
	var m specs.LinuxMemory
	if limit != 0 {
		m.Limit = &limit
	}
	if swap != 0 && f.SwapAccounting {
		m.Swap = &swap
	} else if swap != limit {
		return nil, unsupported(field+".memory_swap_limit_in_bytes", "%d: this kernel does not count swap", swap)
	}
	return &m, nil
}

// hugepages takes the sizes that the node knows: a size becomes part of a file's name. The kubelet sends
// a zero for each of them, which a node without the controller can leave out: it is what one who has no
// huge pages gets.
func hugepages(field string, r *cri.LinuxContainerResources, f Features) ([]specs.LinuxHugepageLimit, error) {
	var list []specs.LinuxHugepageLimit
	for i, h := range r.GetHugepageLimits() {
		field := at(field+".hugepage_limits", i)
		size := h.GetPageSize()
		if !isPageSize(size) {
			return nil, invalid(field+".page_size", "%.80q: want a size like 2MB or 1GB", size)
		}
		if slices.ContainsFunc(list, func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size }) {
			return nil, invalid(field+".page_size", "%s is given twice", size)
		}
		if slices.Contains(f.HugepageSizes, size) {
			list = append(list, specs.LinuxHugepageLimit{Pagesize: size, Limit: h.GetLimit()})
			continue
		}
		if h.GetLimit() > 0 {
			return nil, unsupported(field+".page_size", "%s: this node can limit %q", size, f.HugepageSizes)
		}
	}
	return list, nil
}

func isPageSize(s string) bool {
	number := strings.TrimRight(s, "KMGB")
	_, err := strconv.ParseUint(number, 10, 32)
	unit := s[len(number):]
	return err == nil && (unit == "KB" || unit == "MB" || unit == "GB")
}

// unified are files of cgroup v2. Limits may be set so; what moves processes, hands a group on or freezes
// it may not.
func unified(field string, r *cri.LinuxContainerResources, f Features) (map[string]string, error) {
	asked := r.GetUnified()
	if len(asked) == 0 {
		return nil, nil
	}
	if !f.CgroupV2 {
		return nil, unsupported(field+".unified", "this node has cgroup v1")
	}
	out := make(map[string]string, len(asked))
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		value := asked[name]
		field := key(field+".unified", name)
		controller, file, ok := strings.Cut(name, ".")
		if !ok || controller == "" || file == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.") != "" {
			return nil, invalid(field, "want the name of a file like memory.high")
		}
		if controller == "cgroup" {
			return nil, invalid(field, "it sets no limit")
		}
		if strings.ContainsRune(value, 0) {
			return nil, invalid(field, "a zero byte")
		}
		out[name] = value
	}
	return out, nil
}
