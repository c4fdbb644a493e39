// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"

	"github.com/berth-cri/berth/image/seal"
)

var (
	// ErrNotFound is returned where there is no layer or container of that name.
	ErrNotFound = errors.New("no such layer or container")
	// ErrDamaged says that a layer is not what it was when it was committed.
	ErrDamaged = seal.ErrDamaged
	// ErrName refuses a container's name that could not be a file's.
	ErrName = errors.New("bad name of a container")
	// ErrTooManyLayers says that overlayfs cannot stack so many: 500 (OVL_MAX_STACK).
	ErrTooManyLayers = errors.New("too many layers")
	// ErrNoLayers refuses to show an image that has none.
	ErrNoLayers = errors.New("image has no layers")
	// ErrDone is returned by a draft that was committed or discarded.
	ErrDone = errors.New("draft is done")
)
