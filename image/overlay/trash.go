// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// maxDepth is how deep a tree is followed with descriptors. What lies deeper, and a container may nest
// its folders a million times, is moved to the top of the trash and followed from there.
const maxDepth = 64

// trash deletes what is moved into a folder, one thing at a time.
type trash struct {
	path  string
	wake  chan struct{}   // holds one: something was moved in
	drain chan chan error // gets what a whole pass met
	stop  context.CancelFunc
	done  sync.WaitGroup
}

func newTrash(path string) *trash {
	ctx, stop := context.WithCancel(context.Background())
	t := &trash{path: path, wake: make(chan struct{}, 1), drain: make(chan chan error), stop: stop}
	t.wake <- struct{}{} // what an earlier process has left
	t.done.Go(func() { t.run(ctx) })
	return t
}

func (t *trash) close() {
	t.stop()
	t.done.Wait()
}

// take moves something into the trash. If it is not there, that is no error.
func (t *trash) take(path string) error {
	if err := os.Rename(path, filepath.Join(t.path, rand.Text())); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return nil
}

func (t *trash) run(ctx context.Context) {
	for {
		var reply chan error
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case reply = <-t.drain:
		}
		err := t.empty(ctx) // what cannot be deleted stays, and is tried again the next time
		if reply != nil {
			reply <- err
		}
	}
}

// empty deletes all that is in the trash. What cannot be deleted does not keep it from the rest.
func (t *trash) empty(ctx context.Context) error {
	folder, err := os.Open(t.path)
	if err != nil {
		return err
	}
	defer folder.Close()
	r := remover{top: int(folder.Fd())}
	for {
		r.moved = false
		if _, err := folder.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := folder.Readdirnames(-1)
		if err != nil {
			return err
		}
		var failed error
		for _, name := range names {
			if err := r.remove(ctx, r.top, name, 0); err != nil && failed == nil {
				failed = fmt.Errorf("trash %s: %w", name, err)
			}
		}
		if !r.moved {
			return failed
		}
	}
}

// A remover deletes trees below a folder.
type remover struct {
	top   int
	moved bool // something that was deep is now at the top
}

func (r *remover) remove(ctx context.Context, parent int, name string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := unix.Unlinkat(parent, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	if depth == maxDepth {
		r.moved = true
		return unix.Renameat(parent, name, r.top, rand.Text())
	}
	if err := r.removeContent(ctx, parent, name, depth); err != nil {
		return err
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

func (r *remover) removeContent(ctx context.Context, parent int, name string, depth int) error {
	folder, err := openFolder(parent, name)
	if err != nil {
		return err
	}
	defer folder.Close()
	for {
		names, err := folder.Readdirnames(1000)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, sub := range names {
			if err := r.remove(ctx, int(folder.Fd()), sub, depth+1); err != nil {
				return err
			}
		}
		// Removing may make the kernel skip what it has not shown yet.
		if _, err := folder.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// openFolder opens a folder in another, if it is one and nothing is mounted on it.
func openFolder(parent int, name string) (*os.File, error) {
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Drain waits until what has been removed is deleted from the disk, and returns
// what could not be.
func (s *Store) Drain(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case s.trash.drain <- reply:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
