// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package overlay keeps the folders that containers' root file systems are laid
// together from: unpacked layers, and what each container writes.
//
//	ROOT/
//	  layers/
//	    sha256-HEX/       a layer: complete, synced, never written to again
//	      fs/             what is in it
//	      root/           an empty folder with the attributes of fs/
//	      seal            what must be in fs/ (image/seal)
//	      layer.json      what Layer says
//	  drafts/N/           a layer that is being unpacked, or was when the process died
//	  containers/NAME/
//	    upper/  work/     what the container writes
//	  empty/              below an image without layers
//	  trash/N             waits to be deleted
//
// # From draft to layer
//
//	end the seal, write layer.json
//	syncfs                          data and metadata of all that is committed at once
//	rename to layers/               without replacing: the layer is there
//	fsync layers/                   the layer outlives a power cut
//	                                then the caller writes the store's record
//
// A process may be killed, or the power cut, after any of these steps: what stands
// in layers/ is complete, and what stands in drafts/ is thrown away at the next
// Open. One syncfs, and no fsync for each file, because ext4 commits its journal
// once for a syncfs and about once for each fsync: for 9,400 new files of 4.3 kB it
// took 0.14 s, one fdatasync each 3.0 s, and 1.0 s where sync_file_range had begun
// to write all of them before (medians of three, kernel 6.18, a disk that syncs in
// 0.3 ms; a slower disk only widens the gap). Beginning early does not help syncfs
// with small files, so image/unpack does it for large ones alone. syncfs also
// syncs what others have written to that file system; a pull therefore commits its
// layers together where it can.
//
// # Names
//
// A layer that does not depend on those below it is kept by its diffID and shared
// by all images that have it; one that does is kept by its [ChainID], which stands
// for it and all below it. It depends if the archive has things in folders that it
// does not mention, or hard links to files that it does not have: image/unpack
// finds out, and takes attributes and copies from the layers below. A layer
// without any below has the same name either way.
//
// The root folder of a layer is no reason to depend on others. overlayfs shows the
// attributes of the topmost root, so here a container's upper folder, and the
// topmost folder of a view, get them from the topmost layer whose archive has an
// entry for the root.
//
// # Damage
//
// Sealing guards against what a power cut could do between rename and fsync, on a
// disk that lies about syncs: [Store.Verify] reads a layer and compares it with
// its seal. It costs one read of the layer, so it is for layers that were
// committed since the last clean shutdown, not for each start. A damaged layer is
// removed and unpacked anew; nothing here decides that.
//
// # Invariants
//
//   - What is under a layer's name is never written to, nor replaced.
//   - Bytes are counted while unpacking and kept in layer.json: Layers adds nothing up
//     from the disk. What containers write can only be walked: [Store.Measure] does,
//     when a collector asks, and [Store.Usage] says what it found last.
//   - Removing is a rename; deleting happens in the background, goes on after a
//     restart, and needs no memory and few descriptors however deep a container has
//     nested its folders.
//   - Which layers and containers are needed is not known here: the store's records
//     say so. One process has the folder, which is the business of the store's lock.
//   - Names never come from outside: a digest is parsed before it becomes a path, and
//     a container's name is checked.
package overlay
