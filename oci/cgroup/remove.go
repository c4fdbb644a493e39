// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Remove removes the group's folders and all below them, children first. Gone is a success. A
// folder that is busy is tried again when the group has emptied (Empty's events), until ctx
// ends: then the error is a *RemainError if processes are left, else it wraps EBUSY and ctx's
// error. It kills nothing. What could be removed is removed, whatever the rest does. One attempt
// is made even if ctx has already ended. ErrRoot for the root of a hierarchy.
func (g Group) Remove(ctx context.Context) error {
	if g.version == 0 {
		return errZero
	}
	dirs := g.dirs()
	for _, dir := range dirs {
		if err := refuseRoot(dir); err != nil {
			return err
		}
	}
	l := usual()
	for look := l.first; ; look = min(2*look, l.last) {
		var busy, failed error
		for _, dir := range dirs {
			switch err := removeTree(dir); {
			case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOTEMPTY):
				busy = err
			case err != nil:
				failed = errors.Join(failed, err)
			}
		}
		if failed != nil || busy == nil {
			return failed
		}
		if err := g.waitEmpty(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		// Empty and yet busy: from Linux 6.19 on a process that has ended holds its group for a
		// moment more; or someone makes folders as fast as they are removed here.
		if ctx.Err() == nil && sleep(ctx, look) == nil {
			continue
		}
		if e := g.remain(ctx.Err()); len(e.Processes) > 0 {
			return e
		}
		return fmt.Errorf("%w: %w", busy, ctx.Err())
	}
}

// removeTree removes a folder and all below it. The folder itself is tried first: mostly there
// is nothing below. One that stays does not keep the others from going.
func removeTree(dir string) error {
	err := rmdir(dir)
	if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	names, err2 := childDirs(dir)
	if err2 != nil {
		return err2
	}
	if len(names) == 0 {
		return err // it is busy by its own processes
	}
	var below error
	for _, n := range names {
		below = errors.Join(below, removeTree(dir+"/"+n))
	}
	if below != nil {
		return below
	}
	return rmdir(dir)
}

func rmdir(dir string) error {
	_, err := retry(func() (int, error) { return 0, unix.Rmdir(dir) })
	if err == nil || isGone(err) {
		return nil
	}
	return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
}
