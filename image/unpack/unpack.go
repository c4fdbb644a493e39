// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/berth-cri/berth/image/seal"
	"github.com/berth-cri/berth/store/content"
)

// Limits of one archive. A zero field means its default.
type Limits struct {
	Entries int64 // names in the archive; 2,000,000 unless set
	// Bytes of the uncompressed archive, and, separately, of all files as they appear (holes of sparse
	// files included); 1 TiB unless set. A caller sets it to what the disk can take.
	Bytes int64
	// Sparse bounds the holes of sparse files, which cost an archive nothing but the reader time; 64 GiB unless set.
	Sparse int64
	// Noted bounds the parents and the links that are noted for Settle; 200,000 unless set. Names of links
	// are kept in memory, and are bound to 8 MiB besides.
	Noted int
}

// Options of an Unpacker. A zero field means its default.
type Options struct {
	Limits Limits
	// Windows is how many bytes of zstd windows all layers together may have at a time; 32 MiB unless set,
	// and never less. A layer that would go beyond waits, before it has read more than 64 KiB.
	Windows int64
}

// An Unpacker unpacks layers. Its methods may be called by many goroutines.
type Unpacker struct {
	limits  Limits
	windows *budget
	rings   sync.Pool // of *ring
	readers sync.Pool // of *bufio.Reader
}

// New returns an Unpacker.
func New(o Options) *Unpacker {
	l := &o.Limits
	setDefault(&l.Entries, 2_000_000)
	setDefault(&l.Bytes, 1<<40)
	setDefault(&l.Sparse, 64<<30)
	if l.Noted <= 0 {
		l.Noted = 200_000
	}
	return &Unpacker{limits: o.Limits, windows: newBudget(max(o.Windows, maxWindow))}
}

func setDefault(n *int64, to int64) {
	if *n <= 0 {
		*n = to
	}
}

// A Source is the blob of a layer.
type Source struct {
	// Blob is read to its end or to the first error, which is returned as it is. Unpack never returns
	// before a Read that is under way does.
	Blob      io.Reader
	MediaType string
	DiffID    content.Digest // what the uncompressed archive must hash to; "" if nobody knows
}

// A Target is where a layer goes. Both remain the caller's.
type Target struct {
	Root *os.File     // an empty folder, that nobody else writes to
	Seal *seal.Writer // gets a record of each thing that is made
}

// A Result tells of an unpacked layer.
type Result struct {
	DiffID  content.Digest
	Entries int64 // in the archive
	Inodes  int64 // in the folder, with the root
	Bytes   int64 // on the disk: each file in whole blocks, and a block for each folder
	Size    int64 // of all files as they appear

	ImplicitParents int // folders that the archive has things in, but no entry for
	ForeignLinks    int // names whose file only a lower layer can have

	RootGiven  bool // the archive has an entry for the root
	RootOpaque bool // all lower layers are hidden

	tree *tree // closed; Settle goes on with what it has noted
}

// Dependent says whether the layer depends on those below it: then it needs
// [Unpacker.Settle], and is to be kept by its chainID.
func (r *Result) Dependent() bool { return r.ImplicitParents > 0 || r.ForeignLinks > 0 }

// Unpack unpacks a layer. On error the target is of no use but to be removed.
//
// Preconditions: the file system of the target supports extended attributes
// trusted.* if the archive has opaque folders, which need CAP_SYS_ADMIN, as
// devices need CAP_MKNOD and owners CAP_CHOWN. The process's umask does not matter.
func (u *Unpacker) Unpack(ctx context.Context, from Source, to Target) (*Result, error) {
	if !IsLayer(from.MediaType) {
		return nil, fmt.Errorf("%w: %q", ErrMediaType, from.MediaType)
	}
	t, err := newTree(u.limits, to)
	if err != nil {
		return nil, err
	}
	defer t.close()
	diffID, err := u.stream(ctx, from.Blob, t.extract)
	if err != nil {
		return nil, err
	}
	if from.DiffID != "" && from.DiffID != diffID {
		return nil, fmt.Errorf("%w: it is %s, want %s", ErrDiffID, diffID, from.DiffID)
	}
	if err := t.finishFolders(); err != nil {
		return nil, err
	}
	return t.result(diffID), nil
}
