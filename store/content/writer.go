// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package content

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	draftPrefix = "draft-"

	// writeback is after how many bytes the kernel is asked to begin to write them to the disk, so
	// that the fsync of a large layer does not have all of it to do and stall everybody else's.
	writeback = 8 << 20
)

// A Writer writes one blob. Its methods may be called by one goroutine at a time.
//
// It ends with Commit, which makes the blob; with Close, which leaves a draft that
// the next Writer of the same digest or ref continues; or with Discard, which
// leaves nothing. Close may follow any of them and is then without effect, so
// that it can be deferred.
type Writer struct {
	store *Store
	want  Digest // "": not known
	size  int64  // -1: not known
	draft string // path below the folder

	file    *os.File
	hash    hash.Hash
	offset  int64
	flushed int64 // up to where the kernel was asked to write back
	release func()
	once    sync.Once
	failed  error // what ended it
}

// Writer begins to write the blob of a digest, or to continue: Offset says how
// many bytes are there, and the caller goes on with the next one. It returns
// ErrExists if the blob is there. If another Writer of the digest is open it waits
// for that one's end, or the context's.
//
// Size is the number of bytes of the whole blob, -1 if it is not known. Beyond it
// nothing is written, so whoever sends cannot fill the disk.
//
// Hashing what a draft holds takes as long as reading it does; the context ends
// that too.
func (s *Store) Writer(ctx context.Context, want Digest, size int64) (*Writer, error) {
	name, err := blobName(want)
	if err != nil {
		return nil, err
	}
	return s.open(ctx, &Writer{store: s, want: want, size: size, draft: draftName(want.Algorithm(), want.String())}, name)
}

// Ingest is Writer for content whose digest is not known before its end. The ref,
// any string, names the draft. The blob's digest will be a SHA-256.
func (s *Store) Ingest(ctx context.Context, ref string, size int64) (*Writer, error) {
	return s.open(ctx, &Writer{store: s, size: size, draft: draftName(sha256Name, "ref "+ref)}, "")
}

func (s *Store) open(ctx context.Context, w *Writer, blob string) (*Writer, error) {
	release, err := s.acquire(ctx, w.draft)
	if err != nil {
		return nil, err
	}
	w.release = release
	if blob != "" {
		if _, err := s.root.Lstat(blob); err == nil {
			release()
			return nil, fmt.Errorf("content: %w: %s", ErrExists, w.want)
		}
	}
	if err := w.resume(ctx); err != nil {
		if w.file != nil {
			w.file.Close()
		}
		release()
		return nil, fmt.Errorf("content: %w", err)
	}
	return w, nil
}

// resume opens the draft and hashes what it holds.
func (w *Writer) resume(ctx context.Context) error {
	if err := w.store.at("open"); err != nil {
		return err
	}
	f, err := w.store.root.OpenFile(w.draft, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrPermission) {
		// Its last writer was killed between chmod and rename. (Root may open it all the same.)
		if err = w.store.root.Chmod(w.draft, 0o600); err == nil {
			f, err = w.store.root.OpenFile(w.draft, os.O_RDWR|os.O_CREATE, 0o600)
		}
	}
	if err != nil {
		return err
	}
	w.file = f
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if w.size >= 0 && info.Size() > w.size {
		return w.reset() // it was of something else
	}
	w.hash = w.newHash()
	if err := copyContext(ctx, w.hash, f); err != nil {
		return err
	}
	w.offset, err = f.Seek(0, io.SeekCurrent)
	w.flushed = w.offset
	return err
}

// reset empties the draft.
func (w *Writer) reset() error {
	if err := w.file.Truncate(0); err != nil {
		return err
	}
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.hash = w.newHash()
	w.offset, w.flushed = 0, 0
	return nil
}

func (w *Writer) newHash() hash.Hash { return Digest(w.algorithm() + ":").NewHash() }

func (w *Writer) algorithm() string {
	if w.want == "" {
		return sha256Name
	}
	return w.want.Algorithm()
}

// Offset is how many bytes have been written, by this Writer and those before it.
func (w *Writer) Offset() int64 { return w.offset }

// Restart drops what has been written, for a server that cannot continue.
func (w *Writer) Restart() error {
	if w.failed != nil {
		return w.failed
	}
	if err := w.reset(); err != nil {
		return w.fail(fmt.Errorf("content: %w", err))
	}
	return nil
}

// Write appends to the draft. Beyond the announced size it writes nothing and
// returns ErrSize. When the disk is full, or fails, the draft is removed, so that
// its space is free for others, and the Writer has ended.
func (w *Writer) Write(p []byte) (int, error) {
	if w.failed != nil {
		return 0, w.failed
	}
	if w.size >= 0 && int64(len(p)) > w.size-w.offset {
		return 0, w.fail(fmt.Errorf("content: %w: more than the %d bytes that were announced", ErrSize, w.size))
	}
	err := w.store.at("write")
	n := 0
	if err == nil {
		n, err = w.file.Write(p)
	}
	w.hash.Write(p[:n])
	w.offset += int64(n)
	if err != nil {
		err = fmt.Errorf("content: %w", err)
		if noSpace(err) {
			return n, w.fail(err)
		}
		return n, err
	}
	if w.offset-w.flushed >= writeback {
		// Advice: what fails here fails again in fsync, which is heard.
		_ = unix.SyncFileRange(int(w.file.Fd()), w.flushed, w.offset-w.flushed, unix.SYNC_FILE_RANGE_WRITE)
		w.flushed = w.offset
	}
	return n, nil
}

// Commit makes a blob of the draft and returns its digest. On return the blob is
// on the disk. It returns ErrSize or ErrDigest, and the draft is removed, if the
// bytes are not those that were announced, and whatever the error nothing is left
// of what was written.
func (w *Writer) Commit() (Digest, error) {
	if w.failed != nil {
		return "", w.failed
	}
	if w.size >= 0 && w.offset != w.size {
		return "", w.fail(fmt.Errorf("content: %w: %d bytes of %d", ErrSize, w.offset, w.size))
	}
	got := sum(w.algorithm(), w.hash)
	if w.want != "" && got != w.want {
		return "", w.fail(fmt.Errorf("content: %w: %s is to be %s", ErrDigest, got, w.want))
	}
	if err := w.commit(got); err != nil {
		// If the folder could not be synced there is a blob that may not outlive a power cut, and
		// whoever asked for it next would be told that it exists.
		_ = w.store.root.Remove(path.Join(path.Dir(w.draft), got.Hex()))
		return "", w.fail(fmt.Errorf("content: %w", err))
	}
	w.end(ErrClosed)
	return got, nil
}

// commit takes the steps that doc.go lists.
func (w *Writer) commit(d Digest) error {
	folder := path.Dir(w.draft)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"chmod", func() error { return w.file.Chmod(0o444) }},
		{"sync", w.file.Sync},
		{"rename", func() error { return w.store.root.Rename(w.draft, path.Join(folder, d.Hex())) }},
		{"sync folder", func() error { return syncFolder(w.store.root, folder) }},
	} {
		if err := w.store.at(step.name); err != nil {
			return err
		}
		if err := step.do(); err != nil {
			return err
		}
	}
	return w.store.at("done")
}

// Close ends the writing. What has been written stays as a draft.
func (w *Writer) Close() error {
	w.end(ErrClosed)
	return nil
}

// Discard ends the writing and removes the draft.
func (w *Writer) Discard() error {
	if w.failed == nil {
		_ = w.fail(ErrClosed)
	}
	return nil
}

// fail ends the writing with an error and removes the draft: its bytes are wrong,
// or in the way. It returns the error.
func (w *Writer) fail(err error) error {
	// The space is free when nobody has the file open: end closes it.
	_ = w.store.root.Remove(w.draft)
	w.end(err)
	return err
}

func (w *Writer) end(err error) {
	w.once.Do(func() {
		w.failed = err
		w.file.Close()
		w.release()
	})
}

// draftName is the path of a draft below the folder.
func draftName(algorithm, ref string) string {
	return path.Join(algorithm, draftPrefix+FromBytes([]byte(ref)).Hex())
}

func isDraft(name string) bool { return strings.HasPrefix(name, draftPrefix) }
