// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package crilog

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Open opens the log file at path for writing by position, and returns it with
// its size, the offset at which a writer goes on. A file that is not there is
// created with the permissions perm less the umask; the folder is not.
//
// What is there must be a regular file. Anything else, a symbolic link
// included, is refused with [ErrNotRegular], without waiting for a FIFO's
// reader and without touching what a link names: whoever can write to the
// folder must not lead a writer that is root elsewhere. Links in the path's
// folders are followed; on many nodes /var/log/pods is one.
//
// Errors are of type [*fs.PathError]. When there is one, no file was created
// (unless fstat fails for the file that was: no local file system does that).
// Open may wait for as long as the file system that holds path does.
func Open(path string, perm os.FileMode) (*os.File, int64, error) {
	// O_NONBLOCK is for a FIFO; a file under a lease fails with EWOULDBLOCK.
	// O_CLOEXEC is set by os.OpenFile.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, perm.Perm())
	if err != nil {
		// The errno says little: ELOOP for a link, but also for a loop of folders,
		// ENXIO for a socket and for a FIFO that nobody reads.
		if fi, lerr := os.Lstat(path); lerr == nil && !fi.Mode().IsRegular() {
			return nil, 0, notRegular(path, fi)
		}
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = notRegular(path, fi)
	}
	if err == nil {
		err = clearNonblock(f)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

func notRegular(path string, fi fs.FileInfo) error {
	return &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("%w (mode %v)", ErrNotRegular, fi.Mode())}
}

// clearNonblock takes O_NONBLOCK from f. It is without effect on a regular file
// today, but open(2) warns not to rely on that, and it would go along with the
// descriptor to whoever is handed it.
func clearNonblock(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := c.Control(func(fd uintptr) { serr = unix.SetNonblock(int(fd), false) }); err != nil {
		return err
	}
	if serr != nil {
		return &fs.PathError{Op: "fcntl", Path: f.Name(), Err: serr}
	}
	return nil
}
