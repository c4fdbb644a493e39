// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// put is one change to a file: a value that is already framed, or nil to delete.
type put struct {
	bucket string
	key    string
	value  []byte
}

// boltFile is a bbolt file that is only written to; all that is in it was read by readBolt before.
// Its methods are called by one goroutine, which has set debug.SetPanicOnFault: bbolt reads through a
// mapping, and a page that cannot be read is a fault.
type boltFile struct {
	path    string
	synced  bool
	buckets []string

	db   *bbolt.DB
	file *os.File // db's
	txid int      // of the last commit that succeeded
	// suspect says that the file may hold more, or less, than what was acknowledged, and that db is not to
	// be used.
	suspect bool

	// fault is told of panics, with their stacks, which are not for those who wait.
	fault func(error)

	// fail is called under the names "commit", "committed" and "rewrite", and its error or panic is taken
	// for that of the commit. It is nil but in tests.
	fail func(point string) error
}

// options are those under which a file is opened. It has been read and found sound before.
func (f *boltFile) options() *bbolt.Options {
	return &bbolt.Options{
		Timeout:      time.Second, // nobody has it: the folder is locked
		FreelistType: bbolt.FreelistMapType,
		NoSync:       !f.synced,
		NoGrowSync:   !f.synced,
		NoStatistics: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
			f.file, err = os.OpenFile(name, flag, mode)
			return f.file, err
		},
	}
}

// open opens a file that is there.
func (f *boltFile) open() (err error) {
	defer f.recovered(&err)
	f.db, err = bbolt.Open(f.path, 0o600, f.options())
	if err != nil {
		return err
	}
	if f.txid, err = f.lastTx(); err != nil {
		return err
	}
	f.suspect = false
	return nil
}

// close closes the file, if there is one.
func (f *boltFile) close() error {
	if f.db == nil || f.suspect {
		return nil // a database that panicked may hold its own locks for ever
	}
	db := f.db
	f.db = nil
	return db.Close()
}

// create makes a file with the entries of contents, which takes the place of one that is there: its name
// never stands for a part of it. The file is then open.
func (f *boltFile) create(contents iter.Seq[put]) (err error) {
	next := &boltFile{path: f.path + ".new", buckets: f.buckets, fault: f.fault}
	defer next.recovered(&err)
	if err := os.Remove(next.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	defer func() { _ = os.Remove(next.path) }() // what is left of a failure
	if err := next.open(); err != nil {
		return err
	}
	err = next.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range next.buckets {
			b, err := tx.CreateBucket([]byte(name))
			if err != nil {
				return err
			}
			b.FillPercent = 0.9 // entries come in the order of their keys
		}
		sorted := slices.SortedFunc(contents, func(a, b put) int {
			return cmp.Or(cmp.Compare(a.bucket, b.bucket), cmp.Compare(a.key, b.key))
		})
		return write(tx, sorted)
	})
	if err == nil && f.synced {
		err = next.db.Sync()
	}
	if cerr := next.close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(next.path, f.path)
	}
	if err == nil && f.synced {
		err = syncFolder(filepath.Dir(f.path))
	}
	if err != nil {
		return err
	}
	return f.open()
}

// rewrite makes the file anew with contents, because what is in it is in doubt.
func (f *boltFile) rewrite(contents iter.Seq[put]) error {
	if err := f.point("rewrite"); err != nil {
		return err
	}
	return f.create(contents)
}

// commit writes puts, all or none. When it returns nil they are as durable as the file is; when it
// returns an error, and suspect is set, the file may hold them nevertheless.
func (f *boltFile) commit(puts []put) (err error) {
	defer f.recovered(&err)
	if err := f.point("commit"); err != nil {
		return err
	}
	err = f.db.Update(func(tx *bbolt.Tx) error { return write(tx, puts) })
	if err == nil {
		err = f.point("committed")
	}
	if err == nil {
		f.txid++
		return nil
	}
	// If only the last sync failed the file shows the commit, but the disk may not have it, and the
	// kernel may not say so a second time (fsync(2), and bbolt's next commit would overwrite the only
	// description that surely is on the disk).
	if last, lerr := f.lastTx(); lerr != nil || last != f.txid {
		f.abandon()
	}
	return err
}

func (f *boltFile) point(name string) error {
	if f.fail == nil {
		return nil
	}
	return f.fail(name)
}

// lastTx returns the number of the last commit that the file shows.
func (f *boltFile) lastTx() (id int, err error) {
	err = f.db.View(func(tx *bbolt.Tx) error {
		id = tx.ID()
		return nil
	})
	return id, err
}

// abandon gives the database up.
func (f *boltFile) abandon() {
	if !f.suspect {
		f.suspect = true
		_ = f.db.Close() // it has failed, not panicked: its locks are free
	}
}

// recovered, deferred, makes an error of a panic or a fault in bbolt. The database is not touched again,
// not even closed: its locks may be held. Only its file is, with the lock on that; a mapping stays.
func (f *boltFile) recovered(err *error) {
	if p := recover(); p != nil {
		f.suspect = true
		if f.file != nil {
			_ = unix.Flock(int(f.file.Fd()), unix.LOCK_UN) // which the mapping would hold
			f.file.Close()
		}
		*err = fmt.Errorf("%w: %v", ErrPanic, p)
		f.fault(fmt.Errorf("store: %s: %w\n%s", f.path, *err, debug.Stack()))
	}
}

// write makes changes in a transaction.
func write(tx *bbolt.Tx, puts []put) error {
	for _, p := range puts {
		b := tx.Bucket([]byte(p.bucket))
		if b == nil {
			return fmt.Errorf("no bucket %s", p.bucket)
		}
		var err error
		if p.value == nil {
			err = b.Delete([]byte(p.key))
		} else {
			err = b.Put([]byte(p.key), p.value)
		}
		if err != nil {
			return fmt.Errorf("%s %q: %w", p.bucket, p.key, err)
		}
	}
	return nil
}

// syncFolder makes the names in a folder outlive a power cut.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
