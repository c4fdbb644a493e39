// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-cri/berth/store"
)

// Folders returns the configuration of a store in two folders of the test's own,
// where there is none yet.
func Folders(tb testing.TB) store.Config {
	tb.Helper()
	folder := tb.TempDir()
	return store.Config{
		Root:    filepath.Join(folder, "root"),
		State:   filepath.Join(folder, "state"),
		OnFault: func(err error) { tb.Errorf("store: %v", err) },
	}
}

// MemoryFolders is Folders where a sync costs nothing, for tests that open hundreds of
// stores and are not about the disk. Where there is no /dev/shm it is Folders.
func MemoryFolders(tb testing.TB) store.Config {
	tb.Helper()
	cfg := Folders(tb)
	folder, err := os.MkdirTemp("/dev/shm", "berth-test-") //nolint:usetesting // TempDir is on a disk
	if err != nil {
		return cfg
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			tb.Error(err)
		}
	})
	cfg.Root, cfg.State = filepath.Join(folder, "root"), filepath.Join(folder, "state")
	return cfg
}

// Open opens a store in folders of the test's own. See [OpenAt].
func Open(tb testing.TB) *store.DB {
	tb.Helper()
	return OpenAt(tb, Folders(tb))
}

// OpenAt opens a store. When the test has ended, and the test has not closed it
// before, each problem that [store.DB.Check] finds fails the test, and the store is
// closed.
//
// A test that goes on with the same folders after a crash of its own making calls
// [Crash] and then OpenAt again.
func OpenAt(tb testing.TB, cfg store.Config) *store.DB {
	tb.Helper()
	db, err := store.Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		Check(tb, db)
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	return db
}

// Check fails the test with each problem of a store that is open.
func Check(tb testing.TB, db *store.DB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), time.Minute)
	defer cancel()
	problems, err := db.Check(ctx)
	if err != nil && !errors.Is(err, store.ErrClosed) {
		tb.Error(err)
	}
	for _, p := range problems {
		tb.Error(p)
	}
}

// Crash ends a store as kill -9 would end its process.
func Crash(db *store.DB) { db.Abandon() }
