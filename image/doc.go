// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package image turns the names of images into root file systems: it pulls, lists and
// removes images, and lays layers and a container's own folder together.
//
//	Pull ─▶ registry.Resolve ─▶ manifest, configuration
//	           │
//	           ├─▶ layer job ─▶ fetch ─▶ [digest ∥ inflate ∥ diffID ∥ unpack] ─▶ draft ─┐
//	           ├─▶ layer job ─▶ …                                                       ├─▶ commit
//	           └─▶ layer job ─▶ …            settled above the layers that lie below ───┘      │
//	                                                        the store's record: image ◀────────┘
//
// # One job for a layer
//
// A layer is unpacked by a job of its own, which belongs to no pull: whoever needs
// the layer waits for it, two pulls share it, and it ends when nobody has waited for
// a minute. A layer waits for the one below it only to be settled and committed, so
// jobs cannot wait for each other in a circle. Layers that are ready at the same time
// are synced together.
//
// # Order of a commit
//
//	files of the layer ─▶ syncfs ─▶ rename ─▶ fsync ─▶ record of the layer ─▶ record of the image
//
// An image that is listed has all its layers. What a crash leaves before the last of
// these is a layer that no record names, and Open removes it.
//
// # Invariants
//
//   - The id of an image is the digest of its configuration, wherever it came from.
//   - A name belongs to one image. The image that it is taken from stays, by digest.
//   - An image that a container uses keeps its layers: once removed it has no names
//     and is not shown, and goes with the last container.
//   - What the disk may have lost is found before it is used: after an unclean end
//     of the machine, layers since the last clean one are read and compared; one that
//     is damaged goes, with its images, so that a kubelet pulls them again.
package image
