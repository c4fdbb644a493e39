// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// paxXattr is where star, GNU tar, docker and buildkit put extended attributes.
const paxXattr = "SCHILY.xattr."

type xattr struct {
	name  string
	value []byte
}

// xattrsOf returns the extended attributes of an entry that are to be set, sorted by name.
func xattrsOf(h *tar.Header) ([]xattr, error) {
	var out []xattr
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		take, err := taken(name)
		if err != nil {
			return nil, err
		}
		if take {
			out = append(out, xattr{name, []byte(value)})
		}
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

// taken says whether an archive may set an attribute; doc.go says why.
func taken(name string) (bool, error) {
	switch {
	case strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."):
		return false, fmt.Errorf("%w: attribute %.100q", ErrReserved, name)
	case strings.IndexByte(name, 0) >= 0:
		return false, fmt.Errorf("%w: attribute %.100q", ErrName, name)
	case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "trusted."):
		return true, nil
	}
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true, nil
	}
	return false, nil
}

// setXattrs sets attributes of a file of a kind. That user.* cannot be had here, because the file system
// has none or because only files and folders may have them, is no reason to refuse an image; a
// capability that is lost is.
func setXattrs(xattrs []xattr, kind uint32, set func(name string, value []byte) error) error {
	for _, x := range xattrs {
		err := set(x.name, x.value)
		if err == nil {
			continue
		}
		if strings.HasPrefix(x.name, "user.") {
			if errors.Is(err, unix.ENOTSUP) {
				continue
			}
			if errors.Is(err, unix.EPERM) && kind != unix.S_IFREG && kind != unix.S_IFDIR {
				continue
			}
		}
		return fmt.Errorf("%.100q: %w", x.name, err)
	}
	return nil
}
