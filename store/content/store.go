// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Store is a folder of blobs. Its methods may be called by many goroutines.
type Store struct {
	root *os.Root

	mu sync.Mutex
	// busy maps the path of a draft to what is closed when its writer is done.
	// +checklocks:mu
	busy map[string]chan struct{}

	// step is called before each step of a commit, under the names that doc.go gives; an error is
	// taken for that of the step. It is nil but in tests.
	step func(name string) error
}

// Info tells of a blob.
type Info struct {
	Digest  Digest
	Size    int64 // bytes
	ModTime time.Time
}

// Open opens a folder, which is made (with mode 0700) if it is not there.
// Drafts are left alone; see [Store.Sweep].
func Open(folder string) (*Store, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("content: %w", err)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fmt.Errorf("content: %w", err)
	}
	if err := prepare(root); err != nil {
		root.Close()
		return nil, fmt.Errorf("content: %w", err)
	}
	return &Store{root: root, busy: make(map[string]chan struct{})}, nil
}

// prepare makes the folders of the algorithms, and syncs them: a process that was killed between rename
// and fsync has left a blob that everybody sees and that a power cut would still take away.
func prepare(root *os.Root) error {
	for _, algorithm := range algorithms() {
		if err := root.MkdirAll(algorithm, 0o700); err != nil {
			return err
		}
		if err := syncFolder(root, algorithm); err != nil {
			return err
		}
	}
	return syncFolder(root, ".")
}

// Close lets go of the folder. Readers and writers that are open go on.
func (s *Store) Close() error { return s.root.Close() }

// A Reader reads one blob. It goes on when the blob is deleted.
type Reader struct {
	*io.SectionReader // Read, ReadAt, Seek, Size
	file              *os.File
}

// Close ends the reading.
func (r *Reader) Close() error { return r.file.Close() }

// Reader opens a blob, or returns ErrNotFound. The bytes were verified when the
// blob was committed and are not verified again; see [Store.Check].
func (s *Store) Reader(d Digest) (*Reader, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	f, err := s.root.Open(name)
	if err != nil {
		return nil, absent(d, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("content: %w", err)
	}
	return &Reader{io.NewSectionReader(f, 0, info.Size()), f}, nil
}

// Stat tells of a blob, or returns ErrNotFound.
func (s *Store) Stat(d Digest) (Info, error) {
	name, err := blobName(d)
	if err != nil {
		return Info{}, err
	}
	info, err := s.root.Lstat(name)
	if err != nil {
		return Info{}, absent(d, err)
	}
	return Info{Digest: d, Size: info.Size(), ModTime: info.ModTime()}, nil
}

// Delete removes a blob. One that is not there is no error. It does not wait for
// the disk: after a power cut the blob may be there again, and nobody names it.
func (s *Store) Delete(d Digest) error {
	name, err := blobName(d)
	if err != nil {
		return err
	}
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("content: %w", err)
	}
	return nil
}

// Walk calls fn for each blob, in no order, until it returns an error, which
// Walk returns. A blob that comes or goes meanwhile may be seen or not; fn may
// delete blobs.
func (s *Store) Walk(ctx context.Context, fn func(Info) error) error {
	return s.files(ctx, func(folder string, info fs.FileInfo) error {
		d := Digest(folder + ":" + info.Name())
		if d.Validate() != nil {
			return nil // a draft, or nothing of ours
		}
		return fn(Info{Digest: d, Size: info.Size(), ModTime: info.ModTime()})
	})
}

// files calls fn for each file in the folders of the algorithms.
func (s *Store) files(ctx context.Context, fn func(folder string, info fs.FileInfo) error) error {
	for _, algorithm := range algorithms() {
		entries, err := fs.ReadDir(s.root.FS(), algorithm)
		if err != nil {
			return fmt.Errorf("content: %w", err)
		}
		for _, entry := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			info, err := entry.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // gone since
			}
			if err != nil {
				return fmt.Errorf("content: %w", err)
			}
			if !info.Mode().IsRegular() {
				continue
			}
			if err := fn(algorithm, info); err != nil {
				return err
			}
		}
	}
	return nil
}

// Check reads a blob from its first to its last byte and returns ErrDigest if it
// is not what its name says, ErrNotFound if it is not there.
func (s *Store) Check(ctx context.Context, d Digest) error {
	r, err := s.Reader(d)
	if err != nil {
		return err
	}
	defer r.Close()
	h := d.NewHash()
	if err := copyContext(ctx, h, r); err != nil {
		return fmt.Errorf("content: %s: %w", d, err)
	}
	if got := sum(d.Algorithm(), h); got != d {
		return fmt.Errorf("content: %w: the blob %s hashes to %s", ErrDigest, d, got)
	}
	return nil
}

// Put writes a small blob (a manifest, a configuration) and returns its SHA-256
// digest. One that exists is no error.
func (s *Store) Put(ctx context.Context, b []byte) (Digest, error) {
	d := FromBytes(b)
	w, err := s.Writer(ctx, d, int64(len(b)))
	if errors.Is(err, ErrExists) {
		return d, nil
	}
	if err != nil {
		return "", err
	}
	defer w.Close()
	if w.Offset() > 0 { // a draft that a crash left: not worth continuing
		if err := w.Restart(); err != nil {
			return "", err
		}
	}
	if _, err := w.Write(b); err != nil {
		return "", err
	}
	return w.Commit()
}

// Sweep removes the drafts that nobody is writing and that were last written
// before a time; with time.Now() all of them. It returns how many bytes that
// freed.
func (s *Store) Sweep(ctx context.Context, before time.Time) (freed int64, err error) {
	err = s.files(ctx, func(folder string, info fs.FileInfo) error {
		if !isDraft(info.Name()) {
			return nil
		}
		name := path.Join(folder, info.Name())
		release, busy := s.tryAcquire(name)
		if busy != nil {
			return nil
		}
		defer release()
		// Only now that it is ours: its writer may have made a blob of it, or have written more.
		info, err := s.root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.ModTime().Before(before) {
			return nil
		}
		if err == nil {
			err = s.root.Remove(name)
		}
		if err != nil {
			return fmt.Errorf("content: %w", err)
		}
		freed += info.Size()
		return nil
	})
	return freed, err
}

// acquire waits until nobody else writes the draft of a name.
func (s *Store) acquire(ctx context.Context, name string) (release func(), err error) {
	for {
		release, busy := s.tryAcquire(name)
		if busy == nil {
			return release, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// tryAcquire returns what to call when the draft is done with, or, if somebody has it, what is closed
// when they are.
func (s *Store) tryAcquire(name string) (release func(), busy <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if done := s.busy[name]; done != nil {
		return nil, done
	}
	done := make(chan struct{})
	s.busy[name] = done
	return func() {
		s.mu.Lock()
		delete(s.busy, name)
		s.mu.Unlock()
		close(done)
	}, nil
}

// at tells tests that a step is about to be taken.
func (s *Store) at(step string) error {
	if s.step == nil {
		return nil
	}
	return s.step(step)
}

// blobName is the path of a blob below the folder.
func blobName(d Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("content: %w", err)
	}
	return path.Join(d.Algorithm(), d.Hex()), nil
}

// absent makes ErrNotFound of a file that is not there.
func absent(d Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("content: %w: %s", ErrNotFound, d)
	}
	return fmt.Errorf("content: %w", err)
}

// syncFolder makes the names in a folder outlive a power cut.
func syncFolder(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// noSpace reports whether an error is the disk's, and not what the caller did.
func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO)
}

// copyContext is io.Copy with an end.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
