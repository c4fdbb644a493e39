// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package seal keeps the list of what an unpacked layer's folder must hold, and
// checks the folder against it.
//
// A disk that loses power may bring files back short, or full of zeros, under
// names and dates that look right; a layer is read-only for ever, so nobody would
// notice before a program in it fails. The list is written while the archive is
// unpacked, from what was in the archive and not from what the disk says, so a
// comparison after an unclean shutdown finds the damage.
//
//	"berth seal 1\n"
//	record...            uvarint length, kind, fields
//	end record           number of records, CRC-32C of all bytes before it
//
// It is a journal: what stands later in it wins.
//
//	node     what stands under a path: type, mode, owner, size, time, CRC-32C of the content
//	link     one more name of the node under another path
//	opaque   this folder hides what lower layers have in it
//	drop     the path was taken away again (an archive may name a path twice)
//
// # Why CRC-32C
//
// The adversary is a disk, not a person: who can write into the folder can write
// the list as well. Processors compute it at more than 10 GB/s, so the content is
// covered while it is written, at no price that can be measured beside SHA-256 of
// the archive. Extended attributes are not covered, but for that of opaque
// folders: they live in the inode, which the file system's own journal protects.
//
// # Invariants
//
//   - The writer and the checker need memory for one record each, and the checker
//     16 bytes for each path that was dropped.
//   - A list without its end record, or with another sum, is damaged, and so is the
//     layer: nothing can be said for it.
//   - Nothing is opened but beneath the folder's descriptor, without following links.
package seal
