// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// beneath lets a name stand for what lies in a folder, and for nothing else.
	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

	maxLinks    = 40 // symbolic links on the way to one folder, as the kernel has it
	openFolders = 64
)

// A folder is open. Its path has no symbolic links.
type folder struct {
	path string
	fd   int
	used uint64
}

// folders keeps some folders open, by the paths under which archives name them.
type folders struct {
	root  *folder
	open  map[string]*folder
	clock uint64
}

func newFolders(root *os.File) folders {
	return folders{root: &folder{fd: int(root.Fd())}, open: make(map[string]*folder, openFolders)}
}

func (f *folders) find(path string) *folder {
	if path == "" {
		return f.root
	}
	d := f.open[path]
	if d != nil {
		f.clock++
		d.used = f.clock
	}
	return d
}

// keep takes a folder over. Where there are many, the one that was not used for longest is closed; the
// two that were used last never are, since a hard link needs both.
func (f *folders) keep(path string, d *folder) {
	if old := f.open[path]; old != nil {
		unix.Close(old.fd)
	} else if len(f.open) >= openFolders {
		var oldest string
		for path, other := range f.open {
			if oldest == "" || other.used < f.open[oldest].used {
				oldest = path
			}
		}
		unix.Close(f.open[oldest].fd)
		delete(f.open, oldest)
	}
	f.clock++
	d.used = f.clock
	f.open[path] = d
}

// forget closes all folders but one: a name that led to them may lead elsewhere now.
func (f *folders) forget(but *folder) {
	for path, d := range f.open {
		if d != but {
			unix.Close(d.fd)
			delete(f.open, path)
		}
	}
}

func openFolder(parent int, name string) (int, error) {
	return unix.Openat2(parent, name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: beneath,
	})
}

// A missing is the error of a folder that does not exist.
type missing struct {
	path string // as far as this archive knows its symbolic links, they are resolved
	gone bool   // the archive itself has taken it away
}

func (m *missing) Error() string { return fmt.Sprintf("no folder %q", m.path) }

// folder returns the folder of a clean path, which stays open until the next but
// one call. With create, what does not exist is made; else the error is a *missing.
func (t *tree) folder(path string, create bool) (*folder, error) {
	if d := t.folders.find(path); d != nil {
		return d, nil
	}
	w := walk{t: t, at: t.folders.root, rest: path, create: create}
	// Most of the way is usually known.
	for parent, _ := split(path); parent != ""; parent, _ = split(parent) {
		if d := t.folders.find(parent); d != nil {
			w.at, w.rest = d, path[len(parent)+1:]
			break
		}
	}
	d, err := w.run()
	if err != nil {
		return nil, err
	}
	if !w.owned { // a symbolic link to a folder that is open, or to the root
		fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		d = &folder{path: d.path, fd: fd}
	}
	t.folders.keep(path, d)
	return d, nil
}

// A walk goes down from a folder, name by name.
type walk struct {
	t      *tree
	at     *folder
	owned  bool // at is ours to close
	rest   string
	links  int
	create bool
}

func (w *walk) move(d *folder, owned bool) {
	if w.owned {
		unix.Close(w.at.fd)
	}
	w.at, w.owned = d, owned
}

func (w *walk) run() (*folder, error) {
	for w.rest != "" {
		var name string
		name, w.rest, _ = strings.Cut(w.rest, "/")
		var err error
		switch name {
		case "", ".":
		case "..": // only a symbolic link has it
			err = w.up()
		default:
			err = w.down(name)
		}
		if err != nil {
			w.move(nil, false)
			return nil, err
		}
	}
	return w.at, nil
}

func (w *walk) up() error {
	path, _ := split(w.at.path)
	parent := walk{t: w.t, at: w.t.folders.root, rest: path}
	d, err := parent.run()
	if err == nil {
		w.move(d, parent.owned)
	}
	return err
}

func (w *walk) down(name string) error {
	path := join(w.at.path, name)
	if len(path) > maxPath || strings.Count(path, "/") >= maxDepth {
		return fmt.Errorf("%w: with its links resolved it is too long", ErrName)
	}
	fd, err := openFolder(w.at.fd, name)
	switch {
	case err == nil:
		w.move(&folder{path: path, fd: fd}, true)
		return nil
	case errors.Is(err, unix.ENOENT) && w.create:
		return w.make(name, path, false)
	case errors.Is(err, unix.ENOENT):
		return &missing{path: strings.TrimSuffix(join(path, w.rest), "/")}
	case !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR):
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return w.through(name, path)
}

// through goes on where something that is no folder stands.
func (w *walk) through(name, path string) error {
	var target [maxPath + 1]byte
	n, err := unix.Readlinkat(w.at.fd, name, target[:])
	if err == nil {
		if w.links++; w.links > maxLinks || n+len(w.rest) > 2*maxPath {
			return fmt.Errorf("%w: too many symbolic links at %q", ErrParent, path)
		}
		if n > 0 && target[0] == '/' {
			w.move(w.t.folders.root, false)
		}
		w.rest = string(target[:n]) + "/" + w.rest
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(w.at.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if !isWhiteout(&st) {
		return fmt.Errorf("%w: %q", ErrParent, path)
	}
	if !w.create {
		return &missing{path: path, gone: true}
	}
	if err := w.t.remove(w.at, name, &st); err != nil {
		return err
	}
	return w.make(name, path, true)
}

// make makes a folder that the archive does not mention. One in the place of a whiteout is opaque, and
// is no heir of what was taken away.
func (w *walk) make(name, path string, opaque bool) error {
	d, err := w.t.makeFolder(w.at, name)
	if err != nil {
		return err
	}
	w.move(d, true)
	if opaque {
		if err := w.t.setOpaque(d); err != nil {
			return err
		}
	} else if err := w.t.noteImplicit(path); err != nil {
		return err
	}
	return w.t.settleFolder(d, w.t.implicitAttributes())
}

// isOpaque says whether a folder hides what lower layers have in it.
func isOpaque(fd int) (bool, error) {
	var b [1]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr, b[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	return err == nil && n == 1 && b[0] == 'y', err
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
