// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lock makes the folders and takes them for this process. A live.db of another boot is removed: without
// looking into it, since what was not synced need not be sound after a power cut.
func (db *DB) lock(cfg Config, boot string) error {
	for _, l := range []struct{ folder, lock, file string }{
		{cfg.Root, durableLock, durableName},
		{cfg.State, liveLock, liveName},
	} {
		if err := os.MkdirAll(l.folder, 0o700); err != nil {
			return err
		}
		path := filepath.Join(l.folder, l.lock)
		held, text, err := lockFile(path)
		if err != nil {
			return err
		}
		db.locks = append(db.locks, held)
		if old := field(text, "boot"); l.file == liveName && old != "" && old != boot {
			if err := os.Remove(filepath.Join(l.folder, l.file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := writeLock(held, fmt.Sprintf("pid %d\nboot %s\n", os.Getpid(), boot)); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// unlock lets go of the folders. The lock files stay: to remove one is to take it from under somebody
// who waits at it.
func (db *DB) unlock() {
	for _, l := range db.locks {
		l.Close()
	}
	db.locks = nil
}

// lockFile locks a file, which is made if need be, for as long as it is open, and returns what it says.
func lockFile(path string) (_ *os.File, text string, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	b, rerr := io.ReadAll(io.LimitReader(f, 4096))
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		holder := "a process that has not said which it is"
		if pid := field(string(b), "pid"); pid != "" {
			holder = "process " + pid
		}
		return nil, "", fmt.Errorf("%s: %w: %s", path, ErrLocked, holder)
	case err != nil:
		return nil, "", fmt.Errorf("%s: %w", path, err)
	case rerr != nil:
		return nil, "", rerr
	}
	return f, string(b), nil
}

// writeLock says who holds a lock. It is synced: a power cut must not leave a live.db of which nobody
// knows that it is void.
func writeLock(f *os.File, text string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return f.Sync()
}

// field returns what follows a word in a line of its own.
func field(text, word string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, word+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
