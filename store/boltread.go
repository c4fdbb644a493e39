// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"math"
)

// This file reads a bbolt file without bbolt. bbolt maps its file and trusts it: on a damaged or
// truncated one it panics, recurses without end, or touches pages that are not there, which a Go program
// does not survive. So nothing is given to bbolt before all of it was read here, where each offset and
// count is checked before it is used. What is accepted is a tree that bbolt walks without surprise:
// every page is in it once or free, of the right kind, with its elements within it and its keys in order.
//
// The format is that of bbolt's version 2, which has been the same since 2014: internal/common/meta.go,
// page.go, inode.go and bucket.go of go.etcd.io/bbolt. All integers are of the machine's order.
const (
	boltMagic     = 0xED0CDAED
	boltVersion   = 2
	boltNoList    = math.MaxUint64 // no free list in the file; ours always have one
	boltHeader    = 16             // of a page
	boltElement   = 16             // of a branch or leaf
	boltBucket    = 16             // in front of an inline bucket
	boltMetaLen   = 64
	boltMaxKey    = 32768
	boltMaxDepth  = 64 // a tree of two entries a page and 2^64 pages
	boltMaxNested = 8

	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageMeta     = 0x04
	pageFreelist = 0x10

	leafIsBucket = 0x01
)

// errBolt is what is wrong with the structure of a file.
var errBolt = errors.New("not a sound database")

// boltMeta is one of the two descriptions of a file.
type boltMeta struct {
	pageSize int64
	root     uint64
	freelist uint64
	pages    uint64 // one beyond the last that was ever used
	txid     uint64
}

// boltInfo tells of a file that was read.
type boltInfo struct {
	txid  uint64
	pages uint64 // in use or free
	free  uint64
	// fallback: one of the two descriptions is not valid, and if it is the newer one, what was read is
	// the commit before the last. A power cut in the middle of a commit leaves that, and then nobody was
	// told that the commit was done.
	fallback bool
}

// boltReader reads one file.
type boltReader struct {
	file  io.ReaderAt
	meta  boltMeta
	seen  []byte // by page: 0, or one of the following
	visit func(bucket, key, value []byte) error
}

const (
	seenUsed = 1
	seenFree = 2
)

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errBolt, fmt.Errorf(format, args...))
}

// readBolt reads a whole file of size bytes, and calls visit for each bucket at the top, with a nil key,
// and then for each of its entries, in the order of their keys. The slices are visit's to keep. An error that wraps errBolt tells what is
// wrong with the file; others come from reading it, or from visit.
func readBolt(file io.ReaderAt, size int64, visit func(bucket, key, value []byte) error) (boltInfo, error) {
	r := boltReader{file: file, visit: visit}
	fallback, err := r.chooseMeta(size)
	if err != nil {
		return boltInfo{}, err
	}
	r.seen = make([]byte, r.meta.pages)
	r.seen[0], r.seen[1] = seenUsed, seenUsed
	info := boltInfo{txid: r.meta.txid, pages: r.meta.pages, fallback: fallback}
	if err := r.readFreelist(); err != nil {
		return info, err
	}
	if err := r.tree(r.meta.root, nil, nil, nil, 0); err != nil {
		return info, err
	}
	for id, s := range r.seen {
		switch s {
		case seenFree:
			info.free++
		case 0:
			// Where a pointer to a tree has become one to a part of it, that is all that tells.
			return info, bad("page %d is neither used nor free", id)
		}
	}
	return info, nil
}

// chooseMeta finds the page size and the newer valid description, as bbolt does (db.go, getPageSize and
// meta). What bbolt takes for valid and is not sound is refused: bbolt would not look at the other one.
func (r *boltReader) chooseMeta(size int64) (fallback bool, err error) {
	first, valid0, err := r.readMeta(0, 0, size)
	if err != nil {
		return false, err
	}
	pageSize := first.pageSize
	if !valid0 {
		// The first page does not say how long it is. The second one does, wherever it is.
		if pageSize, err = r.findPageSize(size); err != nil {
			return false, err
		}
	}
	second, valid1, err := r.readMeta(1, pageSize, size)
	switch {
	case err != nil:
		return false, err
	case !valid0 && !valid1:
		return false, bad("no valid description of it")
	case valid0 && valid1 && second.pageSize != first.pageSize:
		return false, bad("page sizes of %d and of %d bytes", first.pageSize, second.pageSize)
	case !valid0 || valid1 && second.txid > first.txid:
		r.meta = second
	default:
		r.meta = first
	}
	if m := r.meta; m.pages < 4 || m.pages > uint64(size/m.pageSize) {
		return false, bad("%d pages of %d bytes in a file of %d bytes", m.pages, m.pageSize, size)
	}
	return !valid0 || !valid1, nil
}

// findPageSize looks for the second description where it can be.
func (r *boltReader) findPageSize(size int64) (int64, error) {
	for at := int64(1024); at <= 16<<20 && at < size-1024; at *= 2 {
		m, valid, err := r.readMeta(1, at, size)
		if err != nil {
			return 0, err
		}
		if valid && m.pageSize != at {
			return 0, bad("pages of %d bytes, and the second at %d", m.pageSize, at)
		}
		if valid {
			return at, nil
		}
	}
	return 0, bad("no valid description of it")
}

// readMeta reads the description in page 0 or 1, which is at an offset. It reports whether bbolt takes it
// for valid.
func (r *boltReader) readMeta(id uint64, offset, size int64) (m boltMeta, valid bool, err error) {
	var b [boltHeader + boltMetaLen]byte
	if offset+int64(len(b)) > size {
		return m, false, bad("only %d bytes long", size)
	}
	if _, err := r.file.ReadAt(b[:], offset); err != nil {
		return m, false, err
	}
	body := b[boltHeader:]
	sum := fnv.New64a()
	sum.Write(body[:boltMetaLen-8])
	if get32(body) != boltMagic || get32(body[4:]) != boltVersion || get64(body[boltMetaLen-8:]) != sum.Sum64() {
		return m, false, nil
	}
	m = boltMeta{
		pageSize: int64(get32(body[8:])),
		root:     get64(body[16:]),
		freelist: get64(body[32:]),
		pages:    get64(body[40:]),
		txid:     get64(body[48:]),
	}
	if m.pageSize < 1024 || m.pageSize > 64<<10 || m.pageSize&(m.pageSize-1) != 0 {
		return m, false, bad("pages of %d bytes", m.pageSize)
	}
	if get64(b[:]) != id || get16(b[8:]) != pageMeta {
		return m, false, bad("page %d says it is page %d of kind %#x", id, get64(b[:]), get16(b[8:]))
	}
	return m, true, nil
}

// The byte order of bbolt's files is the machine's.
func get16(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }
func get32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func get64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// page reads a page with those that continue it, after it was marked.
func (r *boltReader) page(id uint64) (b []byte, kind uint16, count int, err error) {
	if id < 2 || id >= r.meta.pages {
		return nil, 0, 0, bad("page %d of %d is referred to", id, r.meta.pages)
	}
	b = make([]byte, r.meta.pageSize)
	at := int64(id) * r.meta.pageSize
	if _, err := r.file.ReadAt(b, at); err != nil {
		return nil, 0, 0, err
	}
	more := uint64(get32(b[12:]))
	switch {
	case get64(b) != id:
		return nil, 0, 0, bad("page %d says it is page %d", id, get64(b))
	case id+more >= r.meta.pages:
		return nil, 0, 0, bad("page %d goes on for %d pages", id, more)
	}
	for p := id; p <= id+more; p++ {
		if r.seen[p] != 0 {
			return nil, 0, 0, bad("page %d is used twice, or free", p)
		}
		r.seen[p] = seenUsed
	}
	if more > 0 {
		b = append(make([]byte, 0, (int64(more)+1)*r.meta.pageSize), b...)
		b = b[:cap(b)]
		if _, err := r.file.ReadAt(b[r.meta.pageSize:], at+r.meta.pageSize); err != nil {
			return nil, 0, 0, err
		}
	}
	return b, get16(b[8:]), int(get16(b[10:])), nil
}

// readFreelist marks the free pages.
func (r *boltReader) readFreelist() error {
	if r.meta.freelist == boltNoList {
		return bad("no list of free pages")
	}
	b, kind, count, err := r.page(r.meta.freelist)
	if err != nil {
		return err
	}
	if kind != pageFreelist {
		return bad("page %d is no list of free pages but of kind %#x", r.meta.freelist, kind)
	}
	ids := b[boltHeader:]
	n := uint64(count)
	if n == 0xFFFF { // the number did not fit, and stands in front
		n, ids = get64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return bad("%d free pages are listed in %d bytes", n, len(ids))
	}
	for i := range n {
		id := get64(ids[8*i:])
		if id < 2 || id >= r.meta.pages || r.seen[id] != 0 {
			return bad("page %d is listed as free", id)
		}
		r.seen[id] = seenFree
	}
	return nil
}

// tree reads the pages from one down. Its keys begin with low and are below high, where those are given.
// Bucket is the path of names.
func (r *boltReader) tree(id uint64, bucket [][]byte, low, high []byte, depth int) error {
	if depth > boltMaxDepth {
		return bad("page %d is at depth %d", id, depth)
	}
	b, kind, count, err := r.page(id)
	if err != nil {
		return err
	}
	switch kind {
	case pageLeaf:
		if count == 0 && depth > 0 {
			return bad("page %d is a leaf without entries", id)
		}
		return r.leaf(b, count, bucket, low, high)
	case pageBranch:
		return r.branch(b, count, bucket, low, high, depth)
	}
	return bad("page %d of a tree is of kind %#x", id, kind)
}

func (r *boltReader) branch(b []byte, count int, bucket [][]byte, low, high []byte, depth int) error {
	if count == 0 {
		return bad("a branch without children")
	}
	type child struct {
		key []byte
		id  uint64
	}
	children := make([]child, 0, min(count, len(b)/boltElement))
	prev := low
	for e, err := range elements(b, count, false) {
		if err != nil {
			return err
		}
		if err := inOrder(prev, e, high); err != nil {
			return err
		}
		prev = e.key
		children = append(children, child{e.key, e.child})
	}
	for i, c := range children {
		upper := high
		if i+1 < len(children) {
			upper = children[i+1].key
		}
		if err := r.tree(c.id, bucket, c.key, upper, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (r *boltReader) leaf(b []byte, count int, bucket [][]byte, low, high []byte) error {
	prev := low
	for e, err := range elements(b, count, true) {
		if err != nil {
			return err
		}
		if err := inOrder(prev, e, high); err != nil {
			return err
		}
		prev = e.key
		if err := r.entry(e.flags, bucket, e.key, e.value); err != nil {
			return err
		}
	}
	return nil
}

// entry takes one entry of a leaf: a value, or a bucket.
func (r *boltReader) entry(flags uint32, bucket [][]byte, key, value []byte) error {
	switch {
	case flags == 0 && len(bucket) == 0:
		return bad("a value beside the buckets: %q", clip(string(key)))
	case flags == 0 && len(bucket) == 1:
		return r.visit(bucket[0], key, value)
	case flags == 0: // of a bucket in a bucket, which a later version may have
		return nil
	case flags != leafIsBucket:
		return bad("entry %q has the flags %#x", clip(string(key)), flags)
	case len(value) < boltBucket:
		return bad("bucket %q in %d bytes", clip(string(key)), len(value))
	case len(bucket) >= boltMaxNested:
		return bad("bucket %q is at depth %d", clip(string(key)), len(bucket))
	}
	path := append(bucket[:len(bucket):len(bucket)], key)
	if len(path) == 1 {
		if err := r.visit(key, nil, nil); err != nil {
			return err
		}
	}
	if root := get64(value); root != 0 {
		if len(value) != boltBucket {
			return bad("bucket %q in %d bytes", clip(string(key)), len(value))
		}
		return r.tree(root, path, nil, nil, 0)
	}
	// A small bucket lies in its parent as a page of its own length.
	inline := value[boltBucket:]
	if len(inline) < boltHeader || get64(inline) != 0 || get16(inline[8:]) != pageLeaf || get32(inline[12:]) != 0 {
		return bad("bucket %q holds no leaf", clip(string(key)))
	}
	return r.leaf(inline, int(get16(inline[10:])), path, nil, nil)
}

// boltElem is one element of a page.
type boltElem struct {
	index int
	key   []byte
	flags uint32 // of a leaf
	value []byte // of a leaf
	child uint64 // of a branch
}

// elements goes through a page. bbolt packs keys and values one after the other, without a gap, behind
// the elements: that is how an element that is missing or too many shows.
func elements(b []byte, count int, leaf bool) iter.Seq2[boltElem, error] {
	return func(yield func(boltElem, error) bool) {
		next := int64(boltHeader + count*boltElement)
		if next > int64(len(b)) || count == 0 && !allZero(b[boltHeader:]) {
			yield(boltElem{}, bad("%d elements in a page of %d bytes", count, len(b)))
			return
		}
		for i := range count {
			at := boltHeader + i*boltElement
			e := boltElem{index: i}
			var pos, keyLen, valueLen uint32
			if leaf {
				e.flags, pos, keyLen, valueLen = get32(b[at:]), get32(b[at+4:]), get32(b[at+8:]), get32(b[at+12:])
			} else {
				pos, keyLen, e.child = get32(b[at:]), get32(b[at+4:]), get64(b[at+8:])
			}
			mid := next + int64(keyLen)
			end := mid + int64(valueLen)
			if keyLen == 0 || keyLen > boltMaxKey || int64(at)+int64(pos) != next || end > int64(len(b)) {
				yield(boltElem{}, bad("element %d at %d with %d and %d bytes, in a page of %d", i, int64(at)+int64(pos), keyLen, valueLen, len(b)))
				return
			}
			e.key, e.value = b[next:mid:mid], b[mid:end:end]
			next = end
			if !yield(e, nil) {
				return
			}
		}
	}
}

// allZero reports whether where the first element of an empty page would be there is none.
func allZero(b []byte) bool {
	for _, c := range b[:min(boltElement, len(b))] {
		if c != 0 {
			return false
		}
	}
	return true
}

// inOrder holds that the key of an element is above that of the one before it, and below high. The first
// one of a page has the key by which its parent refers to the page: bbolt finds its way back by that
// (node.go, spill), and would else leave a pointer to the page behind, which is free then.
func inOrder(prev []byte, e boltElem, high []byte) error {
	if c := bytes.Compare(prev, e.key); prev != nil && (c > 0 || c == 0 && e.index > 0 || c != 0 && e.index == 0) {
		return bad("key %q after %q", clip(string(e.key)), clip(string(prev)))
	}
	if high != nil && bytes.Compare(e.key, high) >= 0 {
		return bad("key %q is to be below %q", clip(string(e.key)), clip(string(high)))
	}
	return nil
}
