// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"encoding/json"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/oci/spec"
)

func TestResources(t *testing.T) {
	type r = cri.LinuxContainerResources
	huge := func(size string, limit uint64) []*cri.HugepageLimit {
		return []*cri.HugepageLimit{{PageSize: size, Limit: limit}}
	}
	v1, small := node(), node()
	v1.CgroupV2 = false
	small.SwapAccounting, small.HugepageSizes = false, nil
	for name, tc := range map[string]struct {
		r     *r
		on    spec.Features
		want  string // JSON
		field string // below linux
		kind  error
	}{
		"nothing":    {nil, node(), `{}`, "", nil},
		"empty":      {&r{}, node(), `{}`, "", nil},
		"score":      {&r{OomScoreAdj: 5}, node(), `{}`, "", nil},
		"cpu":        {&r{CpuPeriod: 1000, CpuQuota: 1000, CpuShares: 262144, CpusetCpus: "0-3,8", CpusetMems: "0"}, node(), `{"cpu":{"shares":262144,"quota":1000,"period":1000,"cpus":"0-3,8","mems":"0"}}`, "", nil},
		"no quota":   {&r{CpuQuota: -1}, node(), `{"cpu":{"quota":-1}}`, "", nil},
		"memory":     {&r{MemoryLimitInBytes: 10}, node(), `{"memory":{"limit":10,"swap":10}}`, "", nil},
		"and swap":   {&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 30}, node(), `{"memory":{"limit":10,"swap":30}}`, "", nil},
		"all swap":   {&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: -1}, node(), `{"memory":{"limit":10,"swap":-1}}`, "", nil},
		"all memory": {&r{MemoryLimitInBytes: -1}, node(), `{"memory":{"limit":-1,"swap":-1}}`, "", nil},
		"huge pages": {&r{HugepageLimits: huge("2MB", 7)}, node(), `{"hugepageLimits":[{"pageSize":"2MB","limit":7}]}`, "", nil},
		"unified":    {&r{Unified: map[string]string{"memory.high": "5", "hugetlb.2MB.max": "0", "io.max": "8:0 rbps=1"}}, node(), `{"unified":{"hugetlb.2MB.max":"0","io.max":"8:0 rbps=1","memory.high":"5"}}`, "", nil},

		"memory, swap not counted":             {&r{MemoryLimitInBytes: 10}, small, `{"memory":{"limit":10}}`, "", nil},
		"no swap, not counted":                 {&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, small, `{"memory":{"limit":10}}`, "", nil},
		"swap, not counted":                    {&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 11}, small, "", "memory_swap_limit_in_bytes", spec.ErrUnsupported},
		"no huge pages where they do not go":   {&r{HugepageLimits: huge("2MB", 0)}, small, `{}`, "", nil},
		"huge pages where they do not go":      {&r{HugepageLimits: huge("2MB", 1)}, small, "", "hugepage_limits[0].page_size", spec.ErrUnsupported},
		"no huge pages of a size that is not":  {&r{HugepageLimits: huge("16GB", 0)}, node(), `{}`, "", nil},
		"huge pages of a size that is not":     {&r{HugepageLimits: huge("16GB", 1)}, node(), "", "hugepage_limits[0].page_size", spec.ErrUnsupported},
		"huge pages twice":                     {&r{HugepageLimits: append(huge("2MB", 1), huge("2MB", 2)...)}, node(), "", "hugepage_limits[1].page_size", spec.ErrInvalid},
		"a size that climbs":                   {&r{HugepageLimits: huge("../../x", 0)}, node(), "", "hugepage_limits[0].page_size", spec.ErrInvalid},
		"a size without unit":                  {&r{HugepageLimits: huge("2", 0)}, node(), "", "hugepage_limits[0].page_size", spec.ErrInvalid},
		"a size without number":                {&r{HugepageLimits: huge("MB", 0)}, node(), "", "hugepage_limits[0].page_size", spec.ErrInvalid},
		"unified on v1":                        {&r{Unified: map[string]string{"memory.high": "5"}}, v1, "", "unified", spec.ErrUnsupported},
		"nothing unified on v1":                {&r{Unified: map[string]string{}}, v1, `{}`, "", nil},
		"unified moves processes":              {&r{Unified: map[string]string{"cgroup.procs": "1"}}, node(), "", `unified["cgroup.procs"]`, spec.ErrInvalid},
		"unified kills":                        {&r{Unified: map[string]string{"cgroup.kill": "1"}}, node(), "", `unified["cgroup.kill"]`, spec.ErrInvalid},
		"unified climbs":                       {&r{Unified: map[string]string{"../memory.high": "1"}}, node(), "", `unified["../memory.high"]`, spec.ErrInvalid},
		"unified, no file":                     {&r{Unified: map[string]string{"memory": "1"}}, node(), "", `unified["memory"]`, spec.ErrInvalid},
		"unified, hidden file":                 {&r{Unified: map[string]string{".high": "1"}}, node(), "", `unified[".high"]`, spec.ErrInvalid},
		"unified, newline":                     {&r{Unified: map[string]string{"memory.high\n": "1"}}, node(), "", `unified["memory.high\n"]`, spec.ErrInvalid},
		"unified, zero byte":                   {&r{Unified: map[string]string{"memory.high": "1\x00"}}, node(), "", `unified["memory.high"]`, spec.ErrInvalid},
		"period too short":                     {&r{CpuPeriod: 999}, node(), "", "cpu_period", spec.ErrInvalid},
		"period too long":                      {&r{CpuPeriod: 1000001}, node(), "", "cpu_period", spec.ErrInvalid},
		"quota too small":                      {&r{CpuQuota: 999}, node(), "", "cpu_quota", spec.ErrInvalid},
		"negative quota":                       {&r{CpuQuota: -2}, node(), "", "cpu_quota", spec.ErrInvalid},
		"one share":                            {&r{CpuShares: 1}, node(), "", "cpu_shares", spec.ErrInvalid},
		"negative shares":                      {&r{CpuShares: -1}, node(), "", "cpu_shares", spec.ErrInvalid},
		"cpus that are none":                   {&r{CpusetCpus: "all"}, node(), "", "cpuset_cpus", spec.ErrInvalid},
		"memory nodes on two lines":            {&r{CpusetMems: "0\n1"}, node(), "", "cpuset_mems", spec.ErrInvalid},
		"negative memory":                      {&r{MemoryLimitInBytes: -2}, node(), "", "memory_limit_in_bytes", spec.ErrInvalid},
		"negative swap":                        {&r{MemorySwapLimitInBytes: -2}, node(), "", "memory_swap_limit_in_bytes", spec.ErrInvalid},
		"swap below memory":                    {&r{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 9}, node(), "", "memory_swap_limit_in_bytes", spec.ErrInvalid},
		"swap without memory":                  {&r{MemorySwapLimitInBytes: 9}, node(), "", "memory_swap_limit_in_bytes", spec.ErrInvalid},
		"limited swap beside unlimited memory": {&r{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: 9}, node(), "", "memory_swap_limit_in_bytes", spec.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := spec.Resources(tc.r, tc.on)
			if tc.field != "" {
				refused(t, err, "linux."+tc.field, tc.kind)
				// And by the name that it has in a container's config.
				_, err := spec.Build(with(func(in *spec.Input) { in.Features = tc.on; in.Container.Linux.Resources = tc.r }))
				refused(t, err, "container.linux.resources."+tc.field, tc.kind)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b, err := json.Marshal(got); err != nil || string(b) != tc.want {
				t.Errorf("resources %s, %v; want %s", b, err, tc.want)
			}
		})
	}
}

func TestOOMScore(t *testing.T) {
	for score, ok := range map[int64]bool{0: true, -1000: true, 1000: true, -997: true, 1001: false, -1001: false, 1 << 40: false} {
		s, err := spec.Build(with(func(in *spec.Input) { resources(in).OomScoreAdj = score }))
		if !ok {
			refused(t, err, "container.linux.resources.oom_score_adj", spec.ErrInvalid)
			continue
		}
		// Explicit even where it is zero: else it would be the executor's.
		if err != nil || s.Process.OOMScoreAdj == nil || *s.Process.OOMScoreAdj != int(score) {
			t.Errorf("%d: %+v, %v", score, s, err)
		}
	}
}
