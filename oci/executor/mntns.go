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
	onePer bool   // an overlay takes its layers one by one
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
		inside: C.berth_mnt_inside != 0,
		onePer: overlayTakesOnePer(),
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

// mountRoot mounts o as a container's root and returns its path. The mount is
// made in the namespace that the container's own is copied from.
func (m *mountNS) mountRoot(container string, o overlay) (string, error) {
	target := m.path(container, "rootfs")
	if err := os.MkdirAll(target, 0o711); err != nil {
		return "", err
	}
	if err := o.mount(target, m.onePer); err != nil {
		return "", err
	}
	return target, nil
}

// detachRoot detaches a root file system. Not mounted is no error.
func (m *mountNS) detachRoot(container string) error {
	return detach(m.path(container, "rootfs"))
}

// unmountRoot detaches a root file system and removes its folder. Not mounted is
// no error.
func (m *mountNS) unmountRoot(container string) error {
	if err := detach(m.path(container, "rootfs")); err != nil {
		return err
	}
	return removeMountPoint(m.path(container, "rootfs"))
}

// sweep detaches what a dead executor left mounted for a start that was under
// way: everything below dir but the pods' shm. The folders of the containers that
// are there stay; those of others go.
func (m *mountNS) sweep(pods, containers map[string]bool) error {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if pods[e.Name()] {
			continue
		}
		for _, what := range []string{"rootfs", "shm"} {
			path := m.path(e.Name(), what)
			errs = append(errs, detach(path))
			if containers[e.Name()] {
				continue
			}
			errs = append(errs, removeMountPoint(path))
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
