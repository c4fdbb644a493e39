// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// machine makes a folder that looks like one.
func machine(t *testing.T, files map[string]string) node {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return node{root: root}
}

func TestProbeMachines(t *testing.T) {
	type facts struct {
		V2, NS, Swap, PSI, Seccomp, AppArmor, SELinux bool
		Huge                                          []string
	}
	for name, tc := range map[string]struct {
		files map[string]string
		want  facts
	}{
		"nothing": {nil, facts{}},
		"v2 and all": {map[string]string{
			"/sys/fs/cgroup/cgroup.controllers":                         "cpuset cpu io memory hugetlb pids\n",
			"/sys/fs/cgroup/system.slice/berth.service/memory.swap.max": "max\n",
			"/proc/self/cgroup":                                         "0::/system.slice/berth.service\n",
			"/proc/self/ns/cgroup":                                      "",
			"/proc/pressure/memory":                                     "",
			"/proc/sys/kernel/seccomp/actions_avail":                    "kill allow\n",
			"/sys/module/apparmor/parameters/enabled":                   "Y\n",
			"/sys/kernel/security/apparmor/profiles":                    "",
			"/sys/fs/selinux/enforce":                                   "1",
			"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":    "0",
			"/sys/kernel/mm/hugepages/hugepages-1048576kB/x":            "",
			"/sys/kernel/mm/hugepages/hugepages-64kB/x":                 "",
		}, facts{V2: true, NS: true, Swap: true, PSI: true, Seccomp: true, AppArmor: true, SELinux: true, Huge: []string{"64KB", "2MB", "1GB"}}},
		"v2, in the root group": {map[string]string{
			"/sys/fs/cgroup/cgroup.controllers":           "memory\n",
			"/sys/fs/cgroup/init.scope/memory.swap.max":   "max\n",
			"/proc/self/cgroup":                           "0::/\n",
			"/sys/kernel/mm/hugepages/hugepages-2048kB/x": "",
		}, facts{V2: true, Swap: true}},
		"v2 without swap accounting": {map[string]string{
			"/sys/fs/cgroup/cgroup.controllers":       "memory\n",
			"/sys/fs/cgroup/init.scope/memory.max":    "max\n",
			"/proc/self/cgroup":                       "0::/init.scope\n",
			"/sys/module/apparmor/parameters/enabled": "N\n",
			"/sys/kernel/security/apparmor/profiles":  "",
		}, facts{V2: true}},
		"v1": {map[string]string{
			"/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": "9\n",
			"/sys/fs/cgroup/hugetlb/cgroup.procs":               "",
			"/sys/kernel/mm/hugepages/hugepages-2048kB/x":       "",
			"/sys/module/apparmor/parameters/enabled":           "Y\n", // but its file system is not mounted
		}, facts{Swap: true, Huge: []string{"2MB"}}},
		"v1 without hugetlb": {map[string]string{
			"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9\n",
			"/sys/kernel/mm/hugepages/hugepages-2048kB/x": "",
		}, facts{}},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := machine(t, tc.files).probe()
			if err != nil {
				t.Fatal(err)
			}
			got := facts{f.CgroupV2, f.CgroupNamespace, f.SwapAccounting, f.PSI, f.Seccomp, f.AppArmor, f.SELinux, f.HugepageSizes}
			if !slices.Equal(got.Huge, tc.want.Huge) {
				t.Errorf("huge pages %q; want %q", got.Huge, tc.want.Huge)
			}
			got.Huge, tc.want.Huge = nil, nil
			if got.V2 != tc.want.V2 || got.NS != tc.want.NS || got.Swap != tc.want.Swap || got.PSI != tc.want.PSI ||
				got.Seccomp != tc.want.Seccomp || got.AppArmor != tc.want.AppArmor || got.SELinux != tc.want.SELinux {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
	if _, err := machine(t, map[string]string{"/sys/fs/cgroup/hugetlb/x": "", "/sys/kernel/mm/hugepages/hugepages-manykB/x": ""}).probe(); err == nil {
		t.Error("a size that is none is no error")
	}
}

func TestParseKernel(t *testing.T) {
	for release, want := range map[string]Kernel{
		"6.18.44": {6, 18}, "5.4.0-150-generic": {5, 4}, "4.19": {4, 19}, "6.1-rc5": {6, 1}, "10.0.0+": {10, 0},
	} {
		if got, err := parseKernel(release); err != nil || got != want {
			t.Errorf("%s: %+v, %v", release, got, err)
		}
	}
	if k, err := parseKernel("linux"); err == nil {
		t.Errorf("no version: %+v", k)
	}
	for _, tc := range []struct {
		k            Kernel
		major, minor int
		want         bool
	}{{Kernel{5, 4}, 5, 4, true}, {Kernel{5, 4}, 5, 5, false}, {Kernel{6, 0}, 5, 19, true}, {Kernel{4, 99}, 5, 0, false}} {
		if got := tc.k.AtLeast(tc.major, tc.minor); got != tc.want {
			t.Errorf("%+v at least %d.%d: %v", tc.k, tc.major, tc.minor, got)
		}
	}
}
