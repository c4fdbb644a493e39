// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package unpack turns the archive of a layer into a folder that overlayfs can
// use as a lower layer, while the archive arrives.
//
//	blob ─▶ inflate ─┬─▶ SHA-256 (diffID)
//	                 └─▶ tar ─▶ files, beneath one directory descriptor
//	                        └─▶ image/seal: what must be there
//
// The three run side by side and share 8 buffers of 256 KiB. The caller's
// goroutine reads and inflates.
//
// # What an archive may do
//
// An archive comes from strangers. Whatever it says, nothing is made, changed or
// read outside of the folder: a path is walked name by name from the folder's
// descriptor, each name opened with openat2(2) (kernel 5.6) and RESOLVE_BENEATH,
// RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS and RESOLVE_NO_XDEV. A symbolic link
// among the parents of an entry is followed as if the folder were the root, as
// containerd, docker and CRI-O do, but by this package and not by the kernel.
//
//	name ".", "/", "./"        the layer's root; must be a folder
//	"/a", "a//b", "./a/"       as "a", "a/b", "a"
//	".." anywhere, "", NUL     ErrName; also in the target of a hard link
//	longer than the kernel's   ErrName
//	not UTF-8                  taken as the bytes they are
//	type unknown               ErrType
//	device 0:0, xattr          ErrReserved: trusted.overlay.* and user.overlay.* and that device are how
//	  of overlayfs             overlayfs itself remembers
//	xattr security.*           dropped, but for security.capability: labels and signatures are the node's
//	                           policy, not the image's
//	too many entries, bytes    ErrTooLarge, see Limits
//
// # What overlayfs needs
//
//	.wh.NAME          a character device 0:0 in NAME's place. If this archive has a NAME of its own, before
//	                  or after, that one stays: whiteouts hide lower layers only. A folder NAME becomes opaque
//	.wh..wh..opq      trusted.overlay.opaque=y on the folder, which keeps what this archive puts into it.
//	                  On the root, where overlayfs does not look at it, Result.RootOpaque says so as well
//	.wh..wh.*         what aufs kept for itself: skipped, with all that lies below
//	a folder in the   opaque: what a tar of all layers in order would have removed must not shine through
//	place of another
//	type
//
// # Layers that depend on what is below
//
// An archive without an entry for a parent folder makes that folder with default
// attributes, which mask the lower layer's: /tmp would lose its mode 1777. A hard
// link may name a file that only a lower layer has. Lower layers need not be there
// while an archive is unpacked, so both are noted, and [Unpacker.Settle] completes
// them once the lower layers are: parents take the attributes (mode, owner,
// extended attributes, time) of the topmost lower folder of that path, and a link
// gets a copy of the lower file, under both names. Such a layer belongs to its
// chain and must be kept by its chainID; one that is not [Result.Dependent] may be
// kept by its diffID and shared. The root is no such parent, else no layer could
// be shared: [Result.RootGiven] says whether the layer has attributes of its own.
//
// Where the lower layer has no folder of that path (none, or a symbolic link,
// which the new folder masks as it does with every other runtime), the parent has
// mode 0755, the process's owner and the time 0.
//
// # Streams
//
// A media type says whether a blob is a layer at all. Whether it is compressed,
// and how, its first bytes say: registries hold plain archives under the type of
// gzip, and other runtimes have always gone by the bytes. Members of gzip and
// frames of zstd may follow one another; after the last member of gzip there may
// be zeros, as gzip(1) allows. Any other bytes are an error. What follows the end
// of the tar is hashed and otherwise ignored.
//
// zstd's window is capped at 32 MiB (zstd -20; all levels to -19 and all of
// klauspost/compress need 8 MiB), and all layers of an Unpacker together at
// [Options].Windows, so that memory does not grow with what images ask for.
//
// # Figures
//
// Growth of a process at its peak, for one layer (TestMemory): gzip 3 MB for one
// file of 300 MB and 8 MB for 30,000 small ones, zstd 12 MB, with a window of
// 32 MiB 37 MB; 23 MB for links or headers that try to cost the most.
//
// Processor time, all processes, on a tmpfs (BenchmarkUnpack; GNU tar and gzip(1) or
// zstd(1), which compute no SHA-256 and no CRC, beside it):
//
//	300 MB in one file    plain 0.39 s (tar 0.25)   gzip 2.15 s (2.55)   zstd 0.74 s (0.79)
//	48 MB in 9,400 files  plain 0.27 s (0.15)       gzip 0.63 s (0.51)   zstd 0.31 s (0.22)
//
// Of what making files takes there, half is openat2 and write, and 15 % the reading
// of tar headers. On ext4 creating a file costs both the same, and more than all
// the rest. One goroutine makes the files; more of them were not tried, since the
// other processors are busy with inflating and with other layers.
//
// # Invariants
//
//   - Memory is bounded whatever the archive: buffers, a window, 64 descriptors, and
//     what is retained about parents and links, which has limits.
//   - Nothing is synced here: whoever commits the folder syncs its file system once.
//   - Sizes are counted while writing: nobody ever walks the folder to know them.
//   - A folder that Unpack or Settle returned an error for is of no use but to be removed.
package unpack
