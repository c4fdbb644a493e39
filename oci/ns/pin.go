// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Pin is where the network namespace of the pod id is pinned. dir is the folder of the pins; empty:
// DefaultDir.
func Pin(dir, id string) string {
	return filepath.Join(Request{PinDir: dir}.dir(), prefix+id)
}

// pin mounts the network namespace at its pin.
func (r Request) pin(ns *os.File, step func(string)) error {
	dir, path := r.dir(), Pin(r.PinDir, r.ID)
	if err := makeShared(dir); err != nil {
		return err
	}
	step("dir")
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return err // what is there is not this call's to remove
	}
	file.Close()
	step("file")
	source := fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
	if err := unix.Mount(source, path, "none", unix.MS_BIND, ""); err != nil {
		return errors.Join(&os.PathError{Op: "pin network namespace", Path: path, Err: err}, Remove(path))
	}
	step("pin")
	return nil
}

// makeShared makes dir a shared mount, as iproute2 does: a pin that is made there then appears in
// every mount namespace that has been copied from the host's, and one that is taken away disappears
// from them, so that no copy keeps a pod's network alive.
func makeShared(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	share := func() error { return unix.Mount("", dir, "none", unix.MS_SHARED, "") }
	err := share()
	if !errors.Is(err, unix.EINVAL) {
		return pathError("make shared", dir, err)
	}
	// No mount point yet. The lock is iproute2's: two who mount at once would stack, and each mount
	// of a shared folder on itself doubles the number of them (https://bugs.debian.org/949235).
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := flock(lock); err != nil {
		return pathError("lock", dir, err)
	}
	if err := share(); !errors.Is(err, unix.EINVAL) {
		return pathError("make shared", dir, err)
	}
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return pathError("bind on itself", dir, err)
	}
	return pathError("make shared", dir, share())
}

func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// pathError is nil where err is.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: path, Err: err}
}

// Open opens the network namespace that is pinned at pin. ErrNotNetNS where it is none; fs.ErrNotExist
// where nothing is.
func Open(pin string) (*os.File, error) {
	// Looked at before it is opened for good: what is no namespace may be a FIFO, where to open is to
	// wait.
	fd, err := unix.Open(pin, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, pathError("open", pin, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return nil, pathError("statfs", pin, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%s: %w: file system type %#x", pin, ErrNotNetNS, st.Type)
	}
	file, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY, 0)
	if err != nil {
		return nil, pathError("open", pin, err)
	}
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		file.Close()
		return nil, pathError("ask for its type", pin, err)
	}
	if kind != unix.CLONE_NEWNET {
		file.Close()
		return nil, fmt.Errorf("%s: %w: namespace of type %#x", pin, ErrNotNetNS, kind)
	}
	return file, nil
}

// Remove takes a pin away: all mounts that are stacked there, and the file. The namespace itself ends
// when nothing else holds it. It is the undo of Make: nothing there is a success, and so is a pin that
// was never finished.
//
// pin is what Pin returns; anything else is ErrInvalid, and is not touched.
func Remove(pin string) error {
	id, ours := strings.CutPrefix(filepath.Base(pin), prefix)
	if !ours || !filepath.IsAbs(pin) || filepath.Clean(pin) != pin {
		return fmt.Errorf("%w pin %.200q: want the absolute path of one of berth's", ErrInvalid, pin)
	}
	if err := checkID(id); err != nil {
		return err
	}
	// Someone who mounts as fast as this unmounts must not keep us here for ever.
	for range 1000 {
		err := unix.Unmount(pin, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue // there may be another one below
		case errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EINVAL): // EINVAL: nothing is mounted there
			return pathError("unmount", pin, err)
		}
		err = unix.Unlink(pin)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY): // EBUSY: mounted anew in between
			return pathError("unlink", pin, err)
		}
	}
	return pathError("unlink", pin, unix.EBUSY)
}

// List returns the ids of the pods that have a pin in dir (empty: DefaultDir), finished or not, in
// order. A folder that is not there has none.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(Request{PinDir: dir}.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ours := strings.CutPrefix(e.Name(), prefix); ours && checkID(id) == nil && !e.IsDir() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}
