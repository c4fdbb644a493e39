// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// ReadFile reads a file of layers that lie above each other, the topmost first, as a
// container would see it: nothing is mounted, and no link leads out of the layers. It
// returns fs.ErrNotExist where there is no regular file, and ErrTooLarge for one of
// more than limit bytes.
func ReadFile(layers []*os.File, name string, limit int64) ([]byte, error) {
	for links := 0; ; links++ {
		if links > maxLinks {
			return nil, fmt.Errorf("%s: %w", name, unix.ELOOP)
		}
		b, next, err := readOnce(layers, name, limit)
		if err != nil || next == "" {
			return b, err
		}
		name = next
	}
}

// readOnce walks until the file, or until a name leads elsewhere, which it returns
// with what remains of the path.
func readOnce(layers []*os.File, name string, limit int64) (b []byte, next string, err error) {
	missing := &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	at, err := mergedRoot(layers)
	if err != nil {
		return nil, "", err
	}
	root := true
	defer func() {
		if !root {
			at.close()
		}
	}()
	walked, rest := "/", strings.TrimLeft(name, "/")
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			return nil, path.Join(path.Dir(path.Clean(walked)), "/") + "/" + rest, nil
		}
		folder, in, st, err := at.child(part)
		switch {
		case err != nil:
			return nil, "", err
		case folder != nil:
			if !root {
				at.close()
			}
			at, root, walked = folder, false, path.Join(walked, part)
		case in < 0:
			return nil, "", missing
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			target, err := readLink(in, part)
			if err != nil {
				return nil, "", err
			}
			if !strings.HasPrefix(target, "/") {
				target = walked + "/" + target
			}
			return nil, target + "/" + rest, nil
		case st.Mode&unix.S_IFMT == unix.S_IFREG && strings.Trim(rest, "/") == "":
			b, err := readAt(in, part, limit)
			return b, "", err
		default:
			return nil, "", missing
		}
	}
	return nil, "", missing // a folder
}

func readLink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	return string(buf[:max(n, 0)]), err
}

func readAt(dir int, name string, limit int64) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, name, limit)
	}
	return b, err
}
