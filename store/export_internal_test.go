// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// FailDurable has fn called at the points of commits of berth.db; see boltFile.fail.
func (db *DB) FailDurable(tb testing.TB, fn func(point string) error) {
	tb.Helper()
	failAt(tb, db.durable, fn)
}

// FailLive is FailDurable for live.db.
func (db *DB) FailLive(tb testing.TB, fn func(point string) error) {
	tb.Helper()
	failAt(tb, db.live, fn)
}

func failAt(tb testing.TB, w *writer, fn func(point string) error) {
	tb.Helper()
	err := w.run(context.WithoutCancel(tb.Context()), func(error) error {
		w.file.fail = fn
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// Encode and Decode are how records become JSON, and the reverse.
func Encode[R any](r *R) ([]byte, error) { return encode(r) }
func Decode[R any](b []byte) (*R, error) { return decode[R](b) }

// Frame is the value for a payload.
func Frame(bucket, key string, payload []byte) []byte { return frame(bucket, key, payload) }

// VersionValue is the value that says of which version a file is.
func VersionValue(version int) []byte { return versionEntry(version).value }

// RawPut writes into a file that is not open; an empty value deletes.
func RawPut(path, bucket, key string, value []byte) error {
	return raw(path, func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		if len(value) == 0 {
			return b.Delete([]byte(key))
		}
		return b.Put([]byte(key), value)
	})
}

// RawDeleteBucket deletes a bucket from a file that is not open.
func RawDeleteBucket(path, bucket string) error {
	return raw(path, func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(bucket)) })
}

func raw(path string, fn func(*bbolt.Tx) error) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	err = db.Update(fn)
	return errors.Join(err, db.Close())
}

// Queued is how many writes wait for the next commit of berth.db.
func (db *DB) Queued() int {
	db.durable.mu.Lock()
	defer db.durable.mu.Unlock()
	return len(db.durable.queue)
}

// Unlocked calls fn with a copy of a file that is open, and puts what it has made of it in its place.
func Unlocked(path string, fn func(path string) error) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".copy", b, 0o600); err != nil {
		return err
	}
	if err := fn(path + ".copy"); err != nil {
		return err
	}
	return os.Rename(path+".copy", path)
}
