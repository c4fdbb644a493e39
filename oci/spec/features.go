// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

// Features are the facts about a node that Build depends on. Probe collects them once; after that they
// are a value like any other.
type Features struct {
	Arch   string // as Go's GOARCH
	Kernel Kernel

	CgroupV2        bool     // the one hierarchy; hybrid hosts count as v1
	CgroupNamespace bool     // Linux 4.6
	SwapAccounting  bool     // memory and swap can be limited together
	PSI             bool     // /proc/pressure
	HugepageSizes   []string // which the hugetlb controller can limit ("2MB", "1GB"); nil: no such controller

	Seccomp  bool
	AppArmor bool
	SELinux  bool

	// Capabilities are what a process may have here at all: known to the kernel and to this package,
	// and within the bounding set. By number.
	Capabilities []string

	RecursiveReadOnly bool // mount_setattr(2), Linux 5.12
	IDMappedMounts    bool // the same; whether a file system takes part is its own matter
}

// Kernel is a version of Linux. What follows the first two numbers says nothing about what it can do.
type Kernel struct{ Major, Minor int }

// AtLeast compares.
func (k Kernel) AtLeast(major, minor int) bool {
	return k.Major > major || k.Major == major && k.Minor >= minor
}
