// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import "errors"

var (
	// ErrMediaType refuses a blob that is not the archive of a layer, or is encrypted.
	ErrMediaType = errors.New("not a layer's media type")
	// ErrArchive says that the archive, or what it is compressed with, is malformed or ends too soon.
	ErrArchive = errors.New("bad archive")
	// ErrDiffID says that the uncompressed archive does not hash to the expected diffID.
	ErrDiffID = errors.New("diffID does not match")
	// ErrTooLarge says that the archive goes beyond the limits.
	ErrTooLarge = errors.New("archive is too large")

	// ErrName refuses an entry's name, or a hard link's target.
	ErrName = errors.New("name is not allowed")
	// ErrType refuses an entry of unknown type, or one whose type does not go with its name.
	ErrType = errors.New("type is not allowed")
	// ErrReserved refuses what overlayfs keeps for itself: its extended attributes and its whiteout device.
	ErrReserved = errors.New("reserved for overlayfs")
	// ErrAttribute refuses an owner, mode or device number that the kernel cannot express.
	ErrAttribute = errors.New("attribute is out of range")
	// ErrParent says that a parent of an entry is no folder, or that links lead around in a circle.
	ErrParent = errors.New("parent is not a folder")
	// ErrLink says that a hard link's target does not exist, or is a folder.
	ErrLink = errors.New("bad hard link")
)
