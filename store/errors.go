// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import "errors"

var (
	// ErrLocked is returned by Open where another process has the folder. The message names the lock's
	// path and the process.
	ErrLocked = errors.New("locked by another process")
	// ErrNewer is returned by Open for a file of a newer version, which is left untouched. The message
	// names both versions.
	ErrNewer = errors.New("written by a newer version of berth")
	// ErrDamaged is returned by Open for a file that is not what was written, which is left untouched.
	// The message names the file, what is wrong, and the next step.
	ErrDamaged = errors.New("damaged")
	// ErrClosed is returned by writes after Close.
	ErrClosed = errors.New("store is closed")

	// ErrNotFound says that there is no record of that id.
	ErrNotFound = errors.New("no such record")
	// ErrAmbiguous says that more than one id begins with a prefix.
	ErrAmbiguous = errors.New("more than one id begins so")
	// ErrInvalid refuses a record with an id or digest of the wrong form, or a step that cannot be taken.
	ErrInvalid = errors.New("invalid record")
	// ErrDangling refuses a record that refers to one that is not there.
	ErrDangling = errors.New("refers to what is not there")
	// ErrInUse refuses to delete a record that another refers to.
	ErrInUse = errors.New("is in use")
	// ErrNameTaken refuses an image with a name that another image has.
	ErrNameTaken = errors.New("name belongs to another image")

	// ErrPanic is part of the error of a commit in which the database panicked or a page could not be
	// read. Nothing of that commit is visible; the file is written anew from memory before the next.
	ErrPanic = errors.New("database panicked")
)
