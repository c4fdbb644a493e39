// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limits is what this process may not exceed where it lacks CAP_SYS_RESOURCE, as
// in a container or a guest. To ask for more would fail every start of a
// container, so each request is clamped to what can be had.
type limits struct {
	resource bool // CAP_SYS_RESOURCE: no limit but the kernel's
	oomScore int  // our own oom_score_adj: it may be raised, not lowered
	bounding uint64
}

func ownLimits() (limits, error) {
	var l limits
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return l, err
	}
	if l.oomScore, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return l, fmt.Errorf("/proc/self/oom_score_adj: %w", err)
	}
	var data [2]unix.CapUserData
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &data[0]); err != nil {
		return l, fmt.Errorf("capget: %w", err)
	}
	l.resource = data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
	for n := range unix.CAP_LAST_CAP + 1 {
		if on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0); err == nil && on == 1 {
			l.bounding |= 1 << n
		}
	}
	return l, nil
}

// oomScoreAdj is always explicit, since a container would else inherit ours.
func (l limits) oomScoreAdj(asked *int) *int {
	score := 0
	if asked != nil {
		score = *asked
	}
	if !l.resource {
		score = max(score, l.oomScore)
	}
	return &score
}

// rlimits bounds what is asked by our own hard limits, which every child of ours
// begins with.
func (l limits) rlimits(asked []specs.POSIXRlimit) ([]configs.Rlimit, error) {
	list := make([]configs.Rlimit, 0, len(asked))
	for _, r := range asked {
		n := slices.Index(rlimitNames[:], strings.TrimPrefix(r.Type, "RLIMIT_"))
		if n < 0 {
			return nil, invalid("rlimit %q: no such limit", r.Type)
		}
		if r.Soft > r.Hard {
			return nil, invalid("rlimit %s: soft %d is above hard %d", r.Type, r.Soft, r.Hard)
		}
		if !l.resource {
			var own unix.Rlimit
			if err := unix.Getrlimit(n, &own); err != nil {
				return nil, fmt.Errorf("getrlimit %s: %w", r.Type, err)
			}
			r.Hard = min(r.Hard, own.Max)
			r.Soft = min(r.Soft, r.Hard)
		}
		list = append(list, configs.Rlimit{Type: n, Hard: r.Hard, Soft: r.Soft})
	}
	return list, nil
}

// rlimitNames by number: include/uapi/asm-generic/resource.h, the same on every
// architecture that berth is built for.
var rlimitNames = [...]string{ //nolint:gochecknoglobals // a table
	"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE",
	"MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
}

// capabilities drops what is not in our bounding set: no child of ours can have it.
func (l limits) capabilities(asked *specs.LinuxCapabilities) *configs.Capabilities {
	if asked == nil {
		return nil
	}
	within := func(names []string) []string {
		list := make([]string, 0, len(names))
		for _, name := range names {
			if n := slices.Index(capabilityNames[:], name); n < 0 || l.bounding&(1<<n) != 0 {
				list = append(list, name) // an unknown one is libcontainer's to refuse
			}
		}
		return list
	}
	return &configs.Capabilities{
		Bounding: within(asked.Bounding), Effective: within(asked.Effective), Permitted: within(asked.Permitted),
		Inheritable: within(asked.Inheritable), Ambient: within(asked.Ambient),
	}
}

// capabilityNames by number: include/uapi/linux/capability.h.
var capabilityNames = [...]string{ //nolint:gochecknoglobals // a table
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
	"CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
	"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}
