// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// capabilityNames by number: include/uapi/linux/capability.h.
func capabilityNames() [41]string {
	return [...]string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
		"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
		"CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
		"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
		"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
		"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
		"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
		"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

// defaultCapabilities are what a container has without being asked: docker's list, which images are
// made for.
func defaultCapabilities() capSet {
	var s capSet
	for n, name := range capabilityNames() {
		switch name {
		case "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
			"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
			"CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE":
			s |= 1 << n
		}
	}
	return s
}

// capSet is a set of capabilities, a bit for each number.
type capSet uint64

func (s capSet) names() []string {
	var list []string
	for n, name := range capabilityNames() {
		if s&(1<<n) != 0 {
			list = append(list, name)
		}
	}
	return list
}

// capabilities decides on the five sets.
//
//	bounding, effective, permitted  the default ones, plus what is added, less what is dropped
//	ambient                         add_ambient_capabilities alone, less what is dropped
//	inheritable                     as ambient, which the kernel lets exist only within it
//
// The CRI's comment wants added ones to be inheritable. That is CVE-2022-24769: a file of the image with
// inheritable capabilities would give them to any user who runs it. The established runtimes leave the
// set empty since.
//
// ALL stands for what the node can give. What is named and cannot be given stays in the sets: the
// executor, whose bounding set decides, leaves it out, as for any process of this node.
func (b *builder) capabilities() error {
	const field = "container.linux.security_context.capabilities."
	c := b.security.GetCapabilities()
	add, addAll, err := b.capSet(field+"add_capabilities", c.GetAddCapabilities())
	if err != nil {
		return err
	}
	drop, dropAll, err := b.capSet(field+"drop_capabilities", c.GetDropCapabilities())
	if err != nil {
		return err
	}
	ambient, allAmbient, err := b.capSet(field+"add_ambient_capabilities", c.GetAddAmbientCapabilities())
	if err != nil {
		return err
	}
	all := b.allCapabilities()
	if allAmbient {
		ambient |= all
	}
	set := defaultCapabilities()
	switch {
	case b.privileged:
		set, drop = all, 0
	case addAll && !dropAll:
		set = all
	case dropAll:
		// With both it is what is named: ALL takes everything away first.
		set = 0
	}
	set = (set | add | ambient) &^ drop
	ambient &^= drop
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: set.names(), Effective: set.names(), Permitted: set.names(),
		Inheritable: ambient.names(), Ambient: ambient.names(),
	}
	return nil
}

// allCapabilities are those that a process of this node may have.
func (b *builder) allCapabilities() capSet {
	var s capSet
	for n, name := range capabilityNames() {
		if slices.Contains(b.Features.Capabilities, name) {
			s |= 1 << n
		}
	}
	return s
}

// capSet reads a list of names, with or without CAP_, in any case. A name that does not exist is an
// error: to leave it out would be to drop less than was asked for.
func (b *builder) capSet(field string, names []string) (set capSet, all bool, err error) {
	known := capabilityNames()
	for i, name := range names {
		upper := strings.ToUpper(name)
		if upper == "ALL" {
			all = true
			continue
		}
		n := slices.Index(known[:], "CAP_"+strings.TrimPrefix(upper, "CAP_"))
		if n < 0 {
			return 0, false, invalid(at(field, i), "%.80q: no such capability", name)
		}
		set |= 1 << n
	}
	return set, all, nil
}
