// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package store is what the node remembers: pods, containers, images, layers, and
// how far each piece of work has come.
//
// # Two files, because there are two lifetimes
//
//	ROOT/berth.db        on a disk, synced. What must outlive a reboot, so that pods are then
//	│                    shown as ended and their attachments are released. No value of an
//	│                    environment variable, and no configuration as received.
//	├── meta
//	│   ├── version      "berth 1 CRC": the format of everything else, readable for ever
//	│   └── run          how many processes had the file, and how the last one ended
//	├── pods
//	│   └── PodID        Pod
//	├── containers
//	│   └── ContainerID  Container ──▶ pods
//	├── images
//	│   └── ImageID      Image ──▶ layers, blobs
//	└── layers
//	    └── LayerID      Layer ──▶ layers (its parent), blobs
//
//	STATE/live.db            on a tmpfs, not synced. Survives the death of the daemon, is void
//	│                        after a reboot, and reaches no disk.
//	├── meta
//	│   ├── version
//	│   └── boot             the boot id of the kernel for which all of it holds
//	├── pod-config
//	│   └── PodID            the configuration as received, opaque
//	├── pod-effective
//	│   └── PodID            what was made of it, opaque
//	├── pod-record
//	│   └── PodID            join key
//	├── pod-steps
//	│   └── PodID/NUMBER     Step: one entry of the ledger
//	└── container-config, container-effective, container-record, container-steps
//	    └── ...              the same by ContainerID; container-record ──▶ a pod
//
//	ROOT/berth.lock, STATE/live.lock    held by flock; who holds it, and the boot
//	ROOT/berth.db.new, STATE/live.db.new    a file being made; renamed when it is whole
//
// Records are JSON, opaque values are as they are, and each value has a checksum
// over its bucket, its key and itself (codec.go).
//
// # Reading
//
// Everything is read into memory once. Lists and lookups come from there and never
// wait for a lock that is held over a commit. Records are replaced, never changed,
// so a reader has what it has.
//
// Found by: id or the beginning of one; state (a word of package sandbox, opaque
// here); the pod of a container; the name of an image; the layers of an image; the
// parent of a layer. Names of pods and containers are no keys: a name comes again
// with the next attempt.
//
// # Writing
//
// Each file has one goroutine that writes. It takes all that queued while the last
// commit ran: a commit is two calls of fdatasync, whoever is alone waits for nobody,
// and many share.
//
//	Update, Put, Delete ──▶ queue ──▶ stage ──▶ commit ──▶ visible ──▶ return
//	                          ▲                   │
//	PutAsync, DeleteAsync ────┴─▶ visible         └─ error: returned to all that waited;
//	                              return             asynchronous writes stay at the head
//	                                                 of the queue
//
// When bbolt panics or the outcome of a commit is in doubt, the file is made anew
// from memory, which holds what was acknowledged: before the next commit, or soon.
//
// # Invariants
//
//   - What a reader sees is durable, or was written by PutAsync or DeleteAsync.
//   - Writes reach the file in the order in which they were queued.
//   - A container's pod, an image's layers and a layer's parent are there; an image
//     name belongs to one image. A write that would break that is refused; Check
//     looks for it all the same. A container may name an image that is gone.
//   - bbolt is given a file only after all of it was read by boltread.go and found
//     sound: it trusts its file, and a Go program does not survive what it does on
//     a damaged one.
//   - A file is never changed in place before it has been verified, nor is one that
//     is refused.
//   - A function that is given to the store has no effects: it may run twice.
//
// # What remains of damage
//
// A bit that flips on the disk is found when the file is opened: the structure is
// checked to the last offset, and each value by its checksum. Not found, because
// without effect, are flips in unused bytes. A flip in the description of the last
// commit looks like a power cut during it: the commit before is taken. After a clean
// end that loses nothing, for the last commit is then the one that says so.
//
// While the file is open bbolt reads it again, through a mapping. A page that then
// cannot be read, because the disk fails or the file was cut off, is an error of the
// commit (runtime/debug.SetPanicOnFault), and so is a panic. A page that comes back
// other than it was written, well formed, and pointing to itself would have bbolt
// recurse until the process dies; the next one would refuse the file.
package store
