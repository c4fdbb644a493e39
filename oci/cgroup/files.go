// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// readFile reads a whole file into buf, and into a larger one only if it must, so that a caller
// with room enough on its stack costs no allocation. Kernel files give their whole text at one
// read if there is room.
func readFile(path string, buf []byte) ([]byte, error) {
	return readAt(unix.AT_FDCWD, path, buf)
}

// readAt is readFile below an open folder.
func readAt(dir int, name string, buf []byte) ([]byte, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return readFD(fd, buf)
}

// readFD reads from the start of the file to its end.
func readFD(fd int, buf []byte) ([]byte, error) {
	for n := 0; ; {
		if n == len(buf) {
			buf = append(buf, make([]byte, max(len(buf), 4096))...)
		}
		m, err := unix.Pread(fd, buf[n:], int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case m == 0:
			return buf[:n], nil
		default:
			n += m
		}
	}
}

// writeFile writes to a file that is there. Unlike os.WriteFile it never makes one.
func writeFile(path, text string) error {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := retry(func() (int, error) { return unix.Write(fd, []byte(text)) }); err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// retry repeats a call that a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// isGone says whether an error means that the folder of the file is, or may be, gone: a file of
// a folder that was removed cannot be opened (ENOENT), one that was open before gives ENODEV.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

// exists says whether path is there.
func exists(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil
}

// walk lists dir and every folder below it, parents first. What is gone is left out.
func walk(dir string) ([]string, error) {
	return walkInto(nil, dir)
}

func walkInto(dirs []string, dir string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		if isGone(err) {
			return dirs, nil
		}
		return dirs, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	dirs = append(dirs, dir)
	// kernfs counts a folder's folders in its link count: two means none. That spares most
	// groups the reading of some 70 entries.
	if st.Nlink == 2 {
		return dirs, nil
	}
	names, err := childDirs(dir)
	if err != nil {
		return dirs, err
	}
	for _, n := range names {
		if dirs, err = walkInto(dirs, dir+"/"+n); err != nil {
			return dirs, err
		}
	}
	return dirs, nil
}

// childDirs names the folders in dir; none if dir is gone.
func childDirs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if isGone(err) {
			return nil, nil
		}
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
