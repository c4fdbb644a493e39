// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// This file asks the machine. Nothing else in the package does.

// Probe collects the facts about this node. An error means that the node is too odd to say; what the
// kernel merely lacks is a false.
func Probe() (Features, error) { return node{}.probe() }

// node is where the machine is looked at: "" is the real one, a test has a folder.
type node struct{ root string }

func (n node) path(p string) string { return filepath.Join("/", n.root, p) }

func (n node) exists(p string) bool {
	_, err := os.Stat(n.path(p))
	return err == nil
}

// text returns a small file's content without the space around it; "" where there is no such file.
func (n node) text(p string) (string, error) {
	b, err := os.ReadFile(n.path(p))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

func (n node) probe() (Features, error) {
	f := Features{Arch: runtime.GOARCH}
	var err error
	if f.Kernel, err = kernelVersion(); err != nil {
		return Features{}, err
	}
	if f.CgroupV2, err = n.cgroupV2(); err != nil {
		return Features{}, err
	}
	f.CgroupNamespace = n.exists("/proc/self/ns/cgroup")
	f.PSI = n.exists("/proc/pressure/memory")
	// Only there with CONFIG_SECCOMP_FILTER, since Linux 4.14.
	f.Seccomp = n.exists("/proc/sys/kernel/seccomp/actions_avail")
	f.SELinux = n.exists("/sys/fs/selinux/enforce")
	on, err := n.text("/sys/module/apparmor/parameters/enabled")
	if err != nil {
		return Features{}, err
	}
	f.AppArmor = on == "Y" && n.exists("/sys/kernel/security/apparmor")
	if f.SwapAccounting, err = n.swapAccounting(f.CgroupV2); err != nil {
		return Features{}, err
	}
	if f.HugepageSizes, err = n.hugepages(f.CgroupV2); err != nil {
		return Features{}, err
	}
	if f.Capabilities, err = boundingSet(); err != nil {
		return Features{}, err
	}
	// EBADF where the call exists.
	has := !errors.Is(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}), unix.ENOSYS)
	f.RecursiveReadOnly, f.IDMappedMounts = has, has
	return f, nil
}

func kernelVersion() (Kernel, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Kernel{}, fmt.Errorf("uname: %w", err)
	}
	return parseKernel(unix.ByteSliceToString(uts.Release[:]))
}

func parseKernel(release string) (Kernel, error) {
	var k Kernel
	if _, err := fmt.Sscanf(release, "%d.%d", &k.Major, &k.Minor); err != nil {
		return Kernel{}, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return k, nil
}

func (n node) cgroupV2() (bool, error) {
	if n.root != "" {
		return n.exists("/sys/fs/cgroup/cgroup.controllers"), nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return false, fmt.Errorf("statfs /sys/fs/cgroup: %w", err)
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

func (n node) swapAccounting(v2 bool) (bool, error) {
	if !v2 {
		return n.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"), nil
	}
	// The root of the hierarchy has no such file, and neither has a group for which the memory
	// controller is not enabled: ask our own group, and if it is the root those right below.
	text, err := n.text("/proc/self/cgroup")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(text) {
		own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if ok && n.exists(filepath.Join("/sys/fs/cgroup", own, "memory.swap.max")) {
			return true, nil
		}
	}
	found, err := filepath.Glob(n.path("/sys/fs/cgroup/*/memory.swap.max"))
	return len(found) > 0, err
}

func (n node) hugepages(v2 bool) ([]string, error) {
	if v2 {
		controllers, err := n.text("/sys/fs/cgroup/cgroup.controllers")
		if err != nil || !slices.Contains(strings.Fields(controllers), "hugetlb") {
			return nil, err
		}
	} else if !n.exists("/sys/fs/cgroup/hugetlb") {
		return nil, nil
	}
	entries, err := os.ReadDir(n.path("/sys/kernel/mm/hugepages"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var sizes []uint64 // in kB
	for _, e := range entries {
		kb, ok := strings.CutPrefix(e.Name(), "hugepages-")
		size, err := strconv.ParseUint(strings.TrimSuffix(kb, "kB"), 10, 64)
		if !ok || err != nil || size == 0 {
			return nil, fmt.Errorf("/sys/kernel/mm/hugepages: %q: no size", e.Name())
		}
		sizes = append(sizes, size)
	}
	slices.Sort(sizes)
	names := make([]string, 0, len(sizes))
	for _, kb := range sizes {
		names = append(names, pageSize(kb))
	}
	return names, nil
}

// pageSize writes a size as the names of the control files have it (mem_fmt in mm/hugetlb_cgroup.c).
func pageSize(kb uint64) string {
	switch {
	case kb >= 1<<20:
		return strconv.FormatUint(kb>>20, 10) + "GB"
	case kb >= 1<<10:
		return strconv.FormatUint(kb>>10, 10) + "MB"
	default:
		return strconv.FormatUint(kb, 10) + "KB"
	}
}

func boundingSet() ([]string, error) {
	var names []string
	for n, name := range capabilityNames() {
		on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more
		}
		if err != nil {
			return nil, fmt.Errorf("read the capability bounding set: %w", err)
		}
		if on == 1 {
			names = append(names, name)
		}
	}
	return names, nil
}

// maxHostDevices bounds what FindDevices returns: far more than a node has.
const maxHostDevices = 1 << 16

// FindDevices lists the device nodes of the host at path, or, if path is a folder, below it, by path.
// A link is followed if it is path itself, and not below. Left out are FIFOs and sockets, what lives
// in file systems that a container has of its own (devpts, /dev/shm, /dev/mqueue), and /dev/console.
func FindDevices(path string) ([]HostDevice, error) {
	path = filepath.Clean(path)
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		d, err := hostDevice(path, unix.Stat)
		if err != nil {
			return nil, err
		}
		if d == nil {
			return nil, &os.PathError{Op: "find devices", Path: path, Err: errors.New("not a device")}
		}
		return []HostDevice{*d}, nil
	}
	var found []HostDevice
	// With a slash, so that a link to a folder is followed.
	err = filepath.WalkDir(path+"/", func(p string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // unplugged meanwhile
		case err != nil:
			return err
		case e.IsDir() && skipsFolder(p, path):
			return fs.SkipDir
		case e.Type()&fs.ModeDevice == 0 || p == "/dev/console":
			return nil
		case len(found) == maxHostDevices:
			return &os.PathError{Op: "find devices", Path: path, Err: errors.New("too many")}
		}
		d, err := hostDevice(filepath.Clean(p), unix.Lstat)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d != nil {
			found = append(found, *d)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b HostDevice) int { return strings.Compare(a.Path, b.Path) })
	return found, nil
}

// skipsFolder is for folders below top that a container has of its own.
func skipsFolder(p, top string) bool {
	if filepath.Clean(p) == top {
		return false
	}
	switch filepath.Base(p) {
	case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev": // as runc's devices.HostDevices
		return true
	}
	return false
}

// hostDevice returns nil for what is no device.
func hostDevice(path string, stat func(string, *unix.Stat_t) error) (*HostDevice, error) {
	var st unix.Stat_t
	if err := stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	d := &HostDevice{
		Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		Mode: fs.FileMode(st.Mode & 0o777), UID: st.Uid, GID: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return nil, nil
	}
	return d, nil
}
