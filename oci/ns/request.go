// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ns

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Errors of this package. Each comes wrapped, with the value that it is about.
var (
	// ErrInvalid is returned for an id, a folder, a host name or a sysctl that cannot be right.
	ErrInvalid = errors.New("invalid")

	// ErrNotOwned is returned for a sysctl that belongs to no namespace, or to one that the pod shares
	// with the host: to write it would change the node.
	ErrNotOwned = errors.New("not the pod's own")

	// ErrNotNetNS is returned by Open for a pin that is no network namespace (any more): Make was
	// killed before it had pinned one, or the machine has been started anew.
	ErrNotNetNS = errors.New("no network namespace")
)

const (
	// DefaultDir is where iproute2 keeps its namespaces, so that `ip netns` knows ours too.
	DefaultDir = "/run/netns"

	// prefix begins the name of each of our pins; nothing else in the folder is touched.
	prefix = "berth-"

	// maxHostname is the kernel's __NEW_UTS_LEN, in bytes.
	maxHostname = 64

	// maxSysctl is one page less the final zero, which is what the kernel takes in one write.
	maxSysctl = 4095
)

// Request says which namespaces a pod is to have of its own, and what is to be set in them.
type Request struct {
	// ID is the pod's: letters, digits, '_', '.', '-', at most 128.
	ID string

	Net, IPC, UTS bool

	// Hostname, of at most 64 bytes, is set in the UTS namespace. Empty: as on the node.
	Hostname string

	// Sysctls are set in the namespaces. Names are written as for sysctl(8): with dots, or with
	// slashes where a dot belongs to a name (net/ipv4/conf/eth0.1/forwarding).
	Sysctls map[string]string

	// PinDir is the folder of the pin, absolute and clean; empty: DefaultDir. It is made if it is
	// missing, and becomes a shared mount, as with iproute2.
	PinDir string
}

// Check returns what is wrong with the request: ErrInvalid, or ErrNotOwned for a sysctl. It asks the
// kernel nothing, so that a pod can be refused before anything is made. Make begins with it.
//
// These are the sysctls of which each namespace has its own (ipc/ipc_sysctl.c, ipc/mq_sysctl.c and
// net/sysctl_net.c of Linux 6.18; the kubelet's list is the same but for the three …_next_id):
//
//	ipc  kernel.shm*, kernel.msg*, kernel.sem, kernel.sem_next_id, kernel.auto_msgmni, fs.mqueue.*
//	net  net.*
//
// Of net.* some belong to the node alone; those do not exist, or cannot be written, inside a
// namespace of a pod (Linux 5.13 on), and Make fails with what the kernel says.
func (r Request) Check() error {
	if err := checkID(r.ID); err != nil {
		return err
	}
	if dir := r.dir(); !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || dir == "/" || hasControl(dir) {
		return fmt.Errorf("%w folder for pins %q: want an absolute path", ErrInvalid, dir)
	}
	if err := r.checkHostname(); err != nil {
		return err
	}
	_, err := r.settings()
	return err
}

func (r Request) dir() string {
	if r.PinDir == "" {
		return DefaultDir
	}
	return r.PinDir
}

func (r Request) checkHostname() error {
	switch {
	case r.Hostname == "":
		return nil
	case !r.UTS:
		return fmt.Errorf("host name %.80q: %w: the pod has no UTS namespace", r.Hostname, ErrNotOwned)
	case len(r.Hostname) > maxHostname:
		return fmt.Errorf("%w host name %.80q: %d bytes, the kernel takes %d", ErrInvalid, r.Hostname, len(r.Hostname), maxHostname)
	case hasControl(r.Hostname):
		return fmt.Errorf("%w host name %q: control character", ErrInvalid, r.Hostname)
	}
	return nil
}

// setting is one sysctl: its path below /proc/sys.
type setting struct{ name, path, value string }

// settings returns what Sysctls asks for, in the order of the paths.
func (r Request) settings() ([]setting, error) {
	byPath := make(map[string]setting, len(r.Sysctls))
	for _, name := range slices.Sorted(maps.Keys(r.Sysctls)) {
		path, err := sysctlPath(name)
		if err != nil {
			return nil, err
		}
		if err := r.owns(name, path); err != nil {
			return nil, err
		}
		if other, twice := byPath[path]; twice {
			return nil, fmt.Errorf("%w sysctl %q: also given as %q", ErrInvalid, name, other.name)
		}
		// A final newline is what `echo 1 > …` writes. One in the middle, or a zero, would end the
		// value for the kernel, but not for whoever has approved it.
		value := r.Sysctls[name]
		if len(value) > maxSysctl || hasControl(strings.ReplaceAll(strings.TrimSuffix(value, "\n"), "\t", " ")) {
			return nil, fmt.Errorf("%w sysctl %q: value %.80q: too long, or a control character", ErrInvalid, name, value)
		}
		byPath[path] = setting{name, path, value}
	}
	return slices.SortedFunc(maps.Values(byPath), func(a, b setting) int { return strings.Compare(a.path, b.path) }), nil
}

// sysctlPath turns a name into a path below /proc/sys. As for sysctl(8), whichever of dot and slash
// comes first is the separator, and the other stands for a dot in a name.
func sysctlPath(name string) (string, error) {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.Map(func(c rune) rune {
			switch c {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return c
		}, name)
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || hasControl(part) {
			return "", fmt.Errorf("%w sysctl name %.80q", ErrInvalid, name)
		}
	}
	return path, nil
}

// owns says whether the pod has a namespace of its own that the sysctl belongs to.
func (r Request) owns(name, path string) error {
	var own bool
	var kind string
	switch rest, isNet := strings.CutPrefix(path, "net/"); {
	case isNet && rest != "":
		own, kind = r.Net, "network"
	case isIPC(path):
		own, kind = r.IPC, "IPC"
	default:
		return fmt.Errorf("sysctl %.80q: %w: it belongs to the node", name, ErrNotOwned)
	}
	if !own {
		return fmt.Errorf("sysctl %.80q: %w: the pod uses the node's %s namespace", name, ErrNotOwned, kind)
	}
	return nil
}

// isIPC is a list and no pattern: what a later kernel names kernel.shm… may be the node's.
func isIPC(path string) bool {
	switch path {
	case "kernel/shmmax", "kernel/shmall", "kernel/shmmni", "kernel/shm_rmid_forced", "kernel/shm_next_id",
		"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/msg_next_id", "kernel/auto_msgmni",
		"kernel/sem", "kernel/sem_next_id":
		return true
	}
	rest, ok := strings.CutPrefix(path, "fs/mqueue/")
	return ok && rest != "" && !strings.Contains(rest, "/")
}

func checkID(id string) error {
	ok := id != "" && len(id) <= 128 && id[0] != '.' && id[0] != '-'
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '.', c == '-':
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%w pod id %.140q: want up to 128 letters, digits, '_', '.', '-'", ErrInvalid, id)
	}
	return nil
}

func hasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }
