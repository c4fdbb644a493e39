// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

// #include "mntns.h"
import "C"

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// mountNS is where root file systems and the pods' /dev/shm are mounted, so that
// the host's mountinfo does not grow by them.
//
// Where the host's "/" is shared (as with systemd), the executor is in the
// namespace itself: a copy of the host's with "/" still shared, so that volumes
// that the host mounts later appear in it, and what a Bidirectional volume mounts
// appears on the host. Only the folder dir is private.
//
// Where "/" is private, mounts that the host makes later would not appear in a
// copy. So the executor stays in the host's namespace, the namespace keeps just
// the pods' /dev/shm, and what a container needs of it is cloned to the host for
// the moment of its start.
type mountNS struct {
	dir    string // STATE/m
	fd     int    // the namespace
	inside bool   // this process is in it
}

func openMountNS(state string) (*mountNS, error) {
	if text := C.GoString(&C.berth_mnt_error[0]); text != "" {
		return nil, fmt.Errorf("mount namespace: %s", text)
	}
	if C.berth_mnt_fd < 0 {
		return nil, errors.New("mount namespace: not made: the process was not started as an executor")
	}
	return &mountNS{
		dir:    filepath.Join(state, "m"),
		fd:     int(C.berth_mnt_fd),
		inside: C.berth_mnt_host_shared != 0,
	}, nil
}

// path returns the place for a mount of this pod or container.
func (m *mountNS) path(id, what string) string { return filepath.Join(m.dir, id, what) }

// run calls fn in the namespace. If the process is not in it, fn runs on a
// thread of its own that ends with it: the thread's namespace cannot be trusted
// to be as before.
func (m *mountNS) run(fn func() error) error {
	if m.inside {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare file system attributes: %w", err)
			return
		}
		if err := unix.Setns(m.fd, unix.CLONE_NEWNS); err != nil {
			done <- fmt.Errorf("enter the mount namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// mountShm mounts a pod's /dev/shm, size bytes large. Mounted already is no error.
func (m *mountNS) mountShm(pod string, size int64) error {
	target := m.path(pod, "shm")
	if err := os.MkdirAll(target, 0o711); err != nil {
		return err
	}
	return m.run(func() error {
		if on, err := isMount(target); err != nil || on {
			return err
		}
		const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		if err := unix.Mount("shm", target, "tmpfs", flags, fmt.Sprintf("mode=1777,size=%d", size)); err != nil {
			return &os.PathError{Op: "mount tmpfs", Path: target, Err: err}
		}
		return nil
	})
}

// lendShm makes a pod's /dev/shm appear for a container's start and returns its
// path and the function that takes it back. A container that has pivoted has a
// mount of its own.
func (m *mountNS) lendShm(pod, container string) (path string, giveBack func() error, err error) {
	source := m.path(pod, "shm")
	if m.inside {
		return source, func() error { return nil }, nil
	}
	var tree int
	err = m.run(func() error {
		tree, err = unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return err
	})
	if err != nil {
		return "", nil, fmt.Errorf("clone %s: %w", source, err)
	}
	defer unix.Close(tree)
	path = m.path(container, "shm")
	if err := os.MkdirAll(path, 0o711); err != nil {
		return "", nil, err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", nil, fmt.Errorf("move mount to %s: %w", path, err)
	}
	return path, func() error { return detach(path) }, nil
}

// unmountShm ends a pod's /dev/shm. Not mounted is no error.
func (m *mountNS) unmountShm(pod string) error {
	if err := m.run(func() error { return detach(m.path(pod, "shm")) }); err != nil {
		return err
	}
	return removeMountPoint(m.path(pod, "shm"))
}

// mountRoot mounts what r describes and returns the root's path. The mount is
// made in the namespace that the container's own is copied from.
func (m *mountNS) mountRoot(container string, lower []string, upper, work string, volatile bool) (string, error) {
	target := m.path(container, "rootfs")
	if err := os.MkdirAll(target, 0o711); err != nil {
		return "", err
	}
	fd, err := overlay(lower, upper, work, volatile)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("move mount to %s: %w", target, err)
	}
	return target, nil
}

// unmountRoot detaches a root file system. Not mounted is no error.
func (m *mountNS) unmountRoot(container string) error {
	if err := detach(m.path(container, "rootfs")); err != nil {
		return err
	}
	return removeMountPoint(m.path(container, "rootfs"))
}

// sweep detaches what a dead executor left mounted for a start that was under
// way: everything below dir but the pods' shm of an executor that is inside.
func (m *mountNS) sweep(keep map[string]bool) error {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		for _, what := range []string{"rootfs", "shm"} {
			path := m.path(e.Name(), what)
			errs = append(errs, detach(path), removeMountPoint(path))
			if what == "shm" {
				errs = append(errs, m.run(func() error { return detach(path) }))
			}
		}
		_ = os.Remove(filepath.Join(m.dir, e.Name()))
	}
	return errors.Join(errs...)
}

// detach takes the mounts at path away, as many as are stacked there. A path that
// is no mount point, or not there, is no error.
func detach(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return &os.PathError{Op: "detach", Path: path, Err: err}
		}
	}
}

func removeMountPoint(path string) error {
	// Rmdir, never RemoveAll: if something is still mounted there after all, its
	// content is not ours to delete.
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	_ = unix.Rmdir(filepath.Dir(path)) // the last one leaves; others are still there
	return nil
}

// isMount says whether something is mounted at path itself.
func isMount(path string) (bool, error) {
	var here, above unix.Statx_t
	const mask = unix.STATX_MNT_ID
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, mask, &here); err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if err := unix.Statx(unix.AT_FDCWD, filepath.Dir(path), unix.AT_SYMLINK_NOFOLLOW, mask, &above); err != nil {
		return false, &os.PathError{Op: "statx", Path: filepath.Dir(path), Err: err}
	}
	return here.Mnt_id != above.Mnt_id, nil
}

// overlay returns a detached overlay mount. With "lowerdir+" (kernel 6.5) the
// number and the length of the layers' paths are bound only by the kernel's 500;
// before, all of them must fit a page.
func overlay(lower []string, upper, work string, volatile bool) (int, error) {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(ctx)
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(ctx, key, value); err != nil {
			return fmt.Errorf("overlay %s=%s: %w%s", key, value, err, fsMessages(ctx))
		}
		return nil
	}
	if err := setLower(set, lower); err != nil {
		return -1, err
	}
	if upper != "" {
		if err := errors.Join(set("upperdir", upper), set("workdir", work)); err != nil {
			return -1, err
		}
		if volatile {
			if err := unix.FsconfigSetFlag(ctx, "volatile"); err != nil {
				return -1, fmt.Errorf("overlay volatile: %w%s", err, fsMessages(ctx))
			}
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("overlay of %d layers, upper %s: %w%s", len(lower), upper, err, fsMessages(ctx))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount overlay: %w", err)
	}
	return fd, nil
}

func setLower(set func(key, value string) error, lower []string) error {
	if len(lower) == 0 {
		return errors.New("overlay: no layers")
	}
	first := set("lowerdir+", lower[0])
	if errors.Is(first, unix.EINVAL) { // unknown key: before kernel 6.5
		escaped := make([]string, len(lower))
		for i, l := range lower {
			escaped[i] = strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(l)
		}
		return set("lowerdir", strings.Join(escaped, ":"))
	}
	if first != nil {
		return first
	}
	for _, l := range lower[1:] {
		if err := set("lowerdir+", l); err != nil {
			return err
		}
	}
	return nil
}

// fsMessages returns what the kernel says of a file system context, "" if nothing.
func fsMessages(ctx int) string {
	var b [1024]byte
	n, err := unix.Read(ctx, b[:])
	if err != nil || n <= 0 {
		return ""
	}
	return ": " + strings.TrimSpace(string(b[:n]))
}
