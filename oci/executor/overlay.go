// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// overlay describes a container's root file system.
type overlay struct {
	lower       []string // the topmost first
	upper, work string   // "": nothing can be written, and lower has two or more
	volatile    bool     // no sync at unmount (kernel 5.10)
}

// mount mounts o at target. On error nothing is mounted there, and a folder that
// is missing is named.
//
// With onePer the number of layers is bound only by the kernel's 500, else by what
// fits a page: some 220.
func (o overlay) mount(target string, onePer bool) error {
	folders, err := o.open()
	defer func() {
		for _, f := range folders {
			unix.Close(f.fd)
		}
	}()
	if err != nil {
		return err
	}
	if o.volatile {
		// The kernel's mark of an earlier volatile mount, which forbids another because
		// the machine may have crashed in between. It has not: the mark is of a create
		// that was taken back, and is now asked for again.
		if err := os.RemoveAll(filepath.Join(o.work, "work", "incompat", "volatile")); err != nil {
			return err
		}
	}
	if onePer {
		return o.mountOnePer(target, folders)
	}
	return o.mountAtOnce(target, folders)
}

// folder is one that is open, and so has a name that is short and plain.
type folder struct {
	path string
	fd   int
}

// open opens lower, then upper and work.
func (o overlay) open() (folders []folder, err error) {
	paths := append([]string(nil), o.lower...)
	if o.upper != "" {
		paths = append(paths, o.upper, o.work)
	}
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return folders, &os.PathError{Op: "overlay of", Path: path, Err: err}
		}
		folders = append(folders, folder{path, fd})
	}
	return folders, nil
}

func (f folder) short() string { return fmt.Sprintf("/proc/self/fd/%d", f.fd) }

// plain is the path, for people who read mountinfo, if it can be an option as it
// is: fsconfig(2) takes 255 bytes, and these characters have a meaning.
func (f folder) plain() string {
	if len(f.path) > 255 || strings.ContainsAny(f.path, `\:,`) {
		return f.short()
	}
	return f.path
}

func (o overlay) mountOnePer(target string, folders []folder) error {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetString(ctx, "source", "overlay"); err != nil {
		return fmt.Errorf("overlay source: %w%s", err, fsMessages(ctx))
	}
	for i, f := range folders {
		key := "lowerdir+"
		switch i - len(o.lower) {
		case 0:
			key = "upperdir"
		case 1:
			key = "workdir"
		}
		if err := unix.FsconfigSetString(ctx, key, f.plain()); err != nil {
			return fmt.Errorf("overlay %s=%s: %w%s", key, f.path, err, fsMessages(ctx))
		}
	}
	if o.volatile {
		if err := unix.FsconfigSetFlag(ctx, "volatile"); err != nil {
			return fmt.Errorf("overlay volatile: %w%s", err, fsMessages(ctx))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return fmt.Errorf("overlay of %d layers, upper %q: %w%s", len(o.lower), o.upper, err, fsMessages(ctx))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move mount to %s: %w", target, err)
	}
	return nil
}

func (o overlay) mountAtOnce(target string, folders []folder) error {
	options := o.options(folders, folder.plain)
	if len(options) >= os.Getpagesize() {
		options = o.options(folders, folder.short)
	}
	if len(options) >= os.Getpagesize() { // the kernel would take what fits
		return fmt.Errorf("overlay of %d layers: %w", len(o.lower), unix.E2BIG)
	}
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay of %d layers, upper %q: %w (the kernel's log says more)", len(o.lower), o.upper, err)
	}
	return nil
}

func (o overlay) options(folders []folder, name func(folder) string) string {
	names := make([]string, len(folders))
	for i, f := range folders {
		names[i] = name(f)
	}
	n := len(o.lower)
	options := "lowerdir=" + strings.Join(names[:n], ":")
	if o.upper != "" {
		options += ",upperdir=" + names[n] + ",workdir=" + names[n+1]
	}
	if o.volatile {
		options += ",volatile"
	}
	return options
}

// overlayTakesOnePer says whether the kernel has "lowerdir+" (6.7). Where it is
// unknown it is refused at once, but before 6.5 every option is taken, and
// refused only when the mount is made.
func overlayTakesOnePer() bool {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(ctx)
	return unix.FsconfigSetString(ctx, "lowerdir+", "/") == nil &&
		errors.Is(unix.FsconfigSetFlag(ctx, "no-such-option"), unix.EINVAL)
}

// fsMessages returns what the kernel says of a file system context, "" if nothing.
func fsMessages(ctx int) string {
	var all strings.Builder
	for {
		var b [1024]byte
		n, err := unix.Read(ctx, b[:])
		if err != nil || n <= 0 { // ENODATA: that was all
			return all.String()
		}
		all.WriteString(": " + strings.TrimSpace(string(b[:n])))
	}
}
