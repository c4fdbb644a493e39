// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"
)

// ErrDamaged says that a folder is not what its list says, or that the list itself is not whole.
var ErrDamaged = errors.New("layer is damaged")

// A Kind says what a record tells.
type Kind uint8

// The kinds; doc.go says what each is. They are stored: never renumber them.
const (
	Node Kind = iota + 1
	Link
	Opaque
	Drop
	end
)

// A Record is one line of the list. Paths are relative to the layer's root,
// without "." and ".."; the root is "".
type Record struct {
	Kind Kind
	Path string

	Target string // Link: the path of the node

	// Of a Node.
	Implicit bool   // a folder that the archive did not mention
	Mode     uint32 // st_mode: type and permissions
	UID, GID uint32
	Rdev     uint64 // of a device
	Size     int64  // bytes, of a regular file or a symbolic link's text
	ModTime  time.Time
	Sum      uint32 // of a regular file's content or a symbolic link's text
}

// Sum continues a CRC-32C; it begins with 0.
func Sum(sum uint32, b []byte) uint32 {
	return crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), b)
}

const (
	magic = "berth seal 1\n"

	// maxRecord bounds what a damaged length can make the reader allocate: two paths and some numbers.
	maxRecord = 4*4096 + 256
)

// append appends the record, with its length before it.
func (r *Record) append(b []byte) []byte {
	body := make([]byte, 0, 128)
	flags := byte(0)
	if r.Implicit {
		flags = 1
	}
	body = append(body, byte(r.Kind), flags)
	body = appendString(body, r.Path)
	switch r.Kind {
	case Link:
		body = appendString(body, r.Target)
	case Node:
		for _, n := range []uint64{uint64(r.Mode), uint64(r.UID), uint64(r.GID), r.Rdev, uint64(r.Size)} {
			body = binary.AppendUvarint(body, n)
		}
		body = binary.AppendVarint(body, r.ModTime.Unix())
		body = binary.AppendUvarint(body, uint64(r.ModTime.Nanosecond()))
		body = binary.LittleEndian.AppendUint32(body, r.Sum)
	}
	return append(binary.AppendUvarint(b, uint64(len(body))), body...)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// parse reads the body of a record.
func (r *Record) parse(b []byte) bool {
	f := fields{rest: b, ok: true}
	*r = Record{Kind: Kind(f.byte()), Implicit: f.byte()&1 != 0, Path: f.string()}
	switch r.Kind {
	case Link:
		r.Target = f.string()
	case Node:
		r.Mode, r.UID, r.GID = uint32(f.uvarint()), uint32(f.uvarint()), uint32(f.uvarint())
		r.Rdev, r.Size = f.uvarint(), int64(f.uvarint())
		sec := f.varint()
		r.ModTime = time.Unix(sec, int64(f.uvarint()))
		r.Sum = f.uint32()
	case Opaque, Drop:
	default:
		return false
	}
	return f.ok && len(f.rest) == 0
}

// fields takes fields off the front of a record. Past its end all are zero, and ok is false.
type fields struct {
	rest []byte
	ok   bool
}

func (f *fields) take(n int) []byte {
	if n < 0 || n > len(f.rest) {
		f.ok, f.rest = false, nil
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) byte() byte {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *fields) uint32() uint32 {
	if b := f.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (f *fields) uvarint() uint64 {
	n, size := binary.Uvarint(f.rest)
	if size <= 0 {
		f.take(-1)
		return 0
	}
	f.take(size)
	return n
}

func (f *fields) varint() int64 {
	n, size := binary.Varint(f.rest)
	if size <= 0 {
		f.take(-1)
		return 0
	}
	f.take(size)
	return n
}

func (f *fields) string() string {
	n := f.uvarint()
	if n > uint64(len(f.rest)) {
		f.take(-1)
		return ""
	}
	return string(f.take(int(n)))
}
