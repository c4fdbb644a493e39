// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a container has written.
type Usage struct {
	Bytes  int64 // on the disk
	Inodes int64
	Time   time.Time // when it was measured
}

// Usage says what Measure found last, from memory. It is not ok if nothing was measured yet.
func (s *Store) Usage(name string) (u Usage, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, ok = s.used[name]
	return u, ok
}

// Measure walks what a container has written. It takes as long as the container
// has many files, so it is for a collector that runs by itself, and not for one
// who waits. Folders nested deeper than 64 are counted, what is in them is not.
// Files that vanish meanwhile are no error.
func (s *Store) Measure(ctx context.Context, name string) (Usage, error) {
	if err := checkName(name); err != nil {
		return Usage{}, err
	}
	upper, err := os.OpenFile(s.path(containersFolder, name, upperFolder), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return Usage{}, fmt.Errorf("%w: container %s", ErrNotFound, name)
	}
	if err != nil {
		return Usage{}, fmt.Errorf("overlay: %w", err)
	}
	var m meter
	var st unix.Stat_t
	if err := unix.Fstat(int(upper.Fd()), &st); err != nil {
		upper.Close()
		return Usage{}, fmt.Errorf("overlay: %w", err)
	}
	m.add(&st)
	if err := m.walk(ctx, upper, 0); err != nil {
		return Usage{}, fmt.Errorf("overlay: %w", err)
	}
	u := Usage{Bytes: int64(math.Round(m.bytes)), Inodes: int64(math.Round(m.inodes)), Time: time.Now()}
	s.mu.Lock()
	s.used[name] = u
	s.mu.Unlock()
	if _, err := os.Lstat(s.path(containersFolder, name)); errors.Is(err, os.ErrNotExist) { // removed meanwhile
		s.mu.Lock()
		delete(s.used, name)
		s.mu.Unlock()
		return Usage{}, fmt.Errorf("%w: container %s", ErrNotFound, name)
	}
	return u, nil
}

// A meter adds up files. Each name of a file adds its share, so that nobody has to remember which files
// have been seen: a container can have millions with two names.
type meter struct{ bytes, inodes float64 }

func (m *meter) add(st *unix.Stat_t) {
	share := 1.0
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		share /= float64(st.Nlink)
	}
	m.inodes += share
	m.bytes += share * float64(st.Blocks*512)
}

// walk adds up what is in a folder, and closes it.
func (m *meter) walk(ctx context.Context, folder *os.File, depth int) error {
	defer folder.Close()
	for {
		names, err := folder.Readdirnames(1000)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := m.visit(ctx, folder, name, depth); err != nil {
				return err
			}
		}
	}
}

func (m *meter) visit(ctx context.Context, folder *os.File, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(folder.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	m.add(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth == maxDepth {
		return nil
	}
	sub, err := openFolder(int(folder.Fd()), name)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return nil // it is no more what it was
	case err != nil:
		return err
	}
	return m.walk(ctx, sub, depth+1)
}
