// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountTable reads /proc/PID/mountinfo.
func mountTable(pid string) ([]*mountinfo.Info, error) {
	f, err := os.Open("/proc/" + pid + "/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, nil)
}

// mounts lists mounts of this process's mount namespace, and of pid 1's, which may be another: a test
// that runs in a namespace of its own must not leave anything on the host either.
func mounts(sc *scope, all bool) (things, error) {
	seen := make(things)
	for _, pid := range []string{"self", "1"} {
		table, err := mountTable(pid)
		if err != nil {
			return nil, err
		}
		origins := originsOf(sc.under, table)
		for _, m := range table {
			// Numbers of mounts are unique over all namespaces, so what both tables show is one
			// mount. The number of a removed one is given out again: with the place it is an identity.
			id := fmt.Sprintf("%d %d:%d %s", m.ID, m.Major, m.Minor, m.Mountpoint)
			if _, known := seen[id]; known || !all && !sc.ownMount(m, origins) {
				continue
			}
			where := ""
			if pid == "1" {
				where = " on the host"
			}
			seen[id] = fmt.Sprintf("%s%s (%s, %s)", m.Mountpoint, where, m.FSType, m.Source)
		}
	}
	return seen, nil
}

// origin is where a folder lies in its file system, which is how mountinfo shows what a bind mount is
// made of: a path below the root of the file system, not one below "/".
type origin struct {
	major, minor int
	path         string
}

func originsOf(folders []string, table []*mountinfo.Info) []origin {
	var list []origin
	for _, folder := range folders {
		var on *mountinfo.Info
		for _, m := range table {
			// The longest mount point holds it; of several at one place the last is on top.
			if below(folder, m.Mountpoint) && (on == nil || len(m.Mountpoint) >= len(on.Mountpoint)) {
				on = m
			}
		}
		if on != nil {
			inside := strings.TrimPrefix(folder, on.Mountpoint)
			list = append(list, origin{on.Major, on.Minor, filepath.Join(on.Root, inside)})
		}
	}
	return list
}

func (sc *scope) ownMount(m *mountinfo.Info, origins []origin) bool {
	for _, folder := range slices.Concat(sc.under, sc.mounts) {
		if below(m.Mountpoint, folder) {
			return true
		}
	}
	for _, folder := range sc.under {
		// Layers stand in the options of an overlay, an image file is the source of a loop mount.
		if mentions(m.Source, folder) || mentions(m.VFSOptions, folder) {
			return true
		}
	}
	return slices.ContainsFunc(origins, func(o origin) bool {
		return o.major == m.Major && o.minor == m.Minor && below(m.Root, o.path)
	})
}

// pinnedNetNS lists files that hold, or were made to hold, a network namespace.
func pinnedNetNS(sc *scope, _ bool) (things, error) {
	seen := make(things)
	for _, pattern := range sc.netns {
		pins, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, pin := range pins {
			var (
				file unix.Stat_t
				in   unix.Statfs_t
			)
			if err := errors.Join(unix.Stat(pin, &file), unix.Statfs(pin, &in)); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				return nil, fmt.Errorf("%s: %w", pin, err)
			}
			name := fmt.Sprintf("%s (net:[%d])", pin, file.Ino)
			if in.Type != unix.NSFS_MAGIC {
				name = pin + " (a file that pins nothing)"
			}
			// With the inode: another namespace under an old name is new.
			seen[fmt.Sprintf("%s %d", pin, file.Ino)] = name
		}
	}
	return seen, nil
}

// cgroups lists cgroups of every mounted hierarchy.
func cgroups(sc *scope, all bool) (things, error) {
	table, err := mountTable("self")
	if err != nil {
		return nil, err
	}
	seen := make(things)
	walked := make(map[string]bool)
	for _, m := range table {
		hierarchy := fmt.Sprintf("%d:%d %s", m.Major, m.Minor, m.Root)
		if m.FSType != "cgroup" && m.FSType != "cgroup2" || walked[hierarchy] {
			continue
		}
		walked[hierarchy] = true
		err := walkFolders(m.Mountpoint, func(folder string) {
			if p := strings.TrimPrefix(folder, m.Mountpoint); p != "" && (all || sc.ownCgroup(p)) {
				procs, _ := os.ReadFile(folder + "/cgroup.procs")
				seen[folder] = fmt.Sprintf("%s (%d processes)", folder, strings.Count(string(procs), "\n"))
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return seen, nil
}

// walkFolders visits folder and every folder below. One that vanishes meanwhile is left out.
func walkFolders(folder string, visit func(string)) error {
	return filepath.WalkDir(folder, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			// A cgroup may be removed between two looks: ENODEV from one that is going.
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			visit(p)
		}
		return nil
	})
}

// files lists everything below the folders of Files, without entering other file systems: a mount
// that is left is reported as a mount, not as all that can be seen through it.
func files(sc *scope, _ bool) (things, error) {
	seen := make(things)
	for _, folder := range sc.files {
		var top unix.Stat_t
		if err := unix.Lstat(folder, &top); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", folder, err)
		}
		err := filepath.WalkDir(folder, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || p == folder && err == nil {
				return nil
			} else if err != nil {
				return err
			}
			seen[p] = p
			if !d.IsDir() {
				return nil
			}
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err == nil && st.Dev != top.Dev {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return seen, nil
}

// topmost drops paths whose folder is in the set as well, and counts them in the folder's name.
func topmost(paths things) things {
	inside := make(map[string]int)
	top := make(things)
	for p := range paths {
		root := p
		for dir := filepath.Dir(p); dir != "/"; dir = filepath.Dir(dir) {
			if _, ok := paths[dir]; ok {
				root = dir
			}
		}
		if root == p {
			top[p] = paths[p]
		} else {
			inside[root]++
		}
	}
	for root, n := range inside {
		top[root] = fmt.Sprintf("%s and %d below", paths[root], n)
	}
	return top
}
