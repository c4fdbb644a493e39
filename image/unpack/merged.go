// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A merged is several folders that overlayfs would show as one, the topmost
// first. It reads layers as overlayfs does, but needs no mount and no privilege.
type merged []int

// mergedRoot returns the roots of layers, down to the first that hides the others. They remain the
// caller's, and are not to be closed as a merged.
func mergedRoot(layers []*os.File) (merged, error) {
	var m merged
	for _, layer := range layers {
		fd := int(layer.Fd())
		m = append(m, fd)
		if opaque, err := isOpaque(fd); opaque || err != nil {
			return m, err
		}
	}
	return m, nil
}

func (m merged) close() {
	for _, fd := range m {
		unix.Close(fd)
	}
}

// child looks for a name. If it is a folder, that is returned and has to be closed; if it is anything
// else, the folder that has it. All is zero if there is nothing.
func (m merged) child(name string) (folder merged, in int, st unix.Stat_t, err error) {
	in = -1
	defer func() {
		if err != nil {
			folder.close()
			folder = nil
		}
	}()
	for _, fd := range m {
		var here unix.Stat_t
		err := unix.Fstatat(fd, name, &here, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return folder, in, st, err
		case isWhiteout(&here):
			return folder, in, st, nil
		case here.Mode&unix.S_IFMT != unix.S_IFDIR:
			if folder == nil {
				return nil, fd, here, nil
			}
			return folder, in, st, nil // masked by the folders above
		}
		if folder == nil {
			st = here
		}
		sub, err := openFolder(fd, name)
		if err != nil {
			return folder, in, st, err
		}
		folder = append(folder, sub)
		if opaque, err := isOpaque(sub); opaque || err != nil {
			return folder, in, st, err
		}
	}
	return folder, in, st, nil
}

// errNotThere says that no layer has a path.
var errNotThere = errors.New("no layer has it")

// folderAt returns the folder of a path, without following links. It has to be closed.
func (m merged) folderAt(path string) (merged, error) {
	at, owned := m, false
	for path != "" {
		var name string
		name, path = firstOf(path)
		next, _, _, err := at.child(name)
		if owned {
			at.close()
		}
		if err != nil {
			return nil, err
		}
		if next == nil {
			return nil, errNotThere
		}
		at, owned = next, true
	}
	if !owned {
		return at.dup()
	}
	return at, nil
}

func (m merged) dup() (merged, error) {
	var out merged
	for _, fd := range m {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			out.close()
			return nil, err
		}
		out = append(out, fd)
	}
	return out, nil
}

// resolve returns a path with the symbolic links among its parents resolved, as if m were the root. The
// last name is left as it is.
func (m merged) resolve(path string) (string, error) {
	parent, base := split(path)
	var done []string
	for links, rest := 0, parent; rest != ""; {
		var name string
		name, rest = firstOf(rest)
		switch name {
		case "", ".":
			continue
		case "..":
			done = done[:max(0, len(done)-1)]
			continue
		}
		target, err := m.linkAt(strings.Join(done, "/"), name)
		switch {
		case err != nil:
			return "", err
		case target == "":
			done = append(done, name)
			continue
		}
		if links++; links > maxLinks || len(target)+len(rest) > 2*maxPath {
			return "", fmt.Errorf("%w: too many symbolic links in %.200q", ErrParent, path)
		}
		if target[0] == '/' {
			done = nil
		}
		rest = target + "/" + rest
	}
	return strings.Join(slices.Concat(done, []string{base}), "/"), nil
}

// linkAt returns the text of a symbolic link, or "" if it is a folder.
func (m merged) linkAt(parent, name string) (string, error) {
	at, err := m.folderAt(parent)
	if err != nil {
		return "", err
	}
	defer at.close()
	sub, in, st, err := at.child(name)
	defer sub.close()
	switch {
	case err != nil:
		return "", err
	case sub != nil:
		return "", nil
	case in < 0 || st.Mode&unix.S_IFMT != unix.S_IFLNK:
		return "", errNotThere
	}
	target := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(in, name, target)
	return string(target[:n]), err
}
