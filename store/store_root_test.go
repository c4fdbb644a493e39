// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/hack/leak"
	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/storetest"
)

// TestFullDisk fills the file systems of both folders. Writes are refused, memory has what was
// acknowledged, and when there is space again all goes on.
func TestFullDisk(t *testing.T) {
	cfg := storetest.Folders(t)
	cfg.OnFault = nil
	leak.Check(t, leak.Mounts(cfg.Root, cfg.State))
	for _, folder := range []string{cfg.Root, cfg.State} {
		ok(t, os.MkdirAll(folder, 0o700))
		ok(t, unix.Mount("tmpfs", folder, "tmpfs", 0, "size=2m"))
		t.Cleanup(func() {
			if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	db, err := store.Open(t.Context(), cfg)
	ok(t, err)
	defer func() { ok(t, db.Close()) }()
	pods, live := 0, 0
	for round := range 3 {
		before := pods
		for ; err == nil; pods++ {
			err = db.PutPod(t.Context(), aPod(pods))
		}
		pods-- // the last one failed
		wantErr(t, err, unix.ENOSPC)
		for err = nil; err == nil; live++ {
			err = db.LivePods().Put(t.Context(), aPod(live).ID, store.Live{Config: make([]byte, 4096)}, "step")
		}
		live--
		wantErr(t, err, unix.ENOSPC)
		if pods < 100 || live < 100 || round == 0 && before != 0 {
			t.Errorf("only %d and %d records fitted", pods, live)
		}
		for range 3 {
			wantErr(t, db.PutPod(t.Context(), bigPod(pods)), unix.ENOSPC)
		}
		if n := len(ids(db)); n != pods {
			t.Errorf("%d pods in memory, %d acknowledged", n, pods)
		}
		ok(t, db.PutPodAsync(bigPod(9999)))
		storetest.Check(t, db)

		// What is removed makes room, if only after the next commit, as the file system stays full.
		for n := range 50 {
			pods--
			live--
			if err := errors.Join(db.DeletePodAsync(aPod(pods).ID), db.LivePods().Delete(t.Context(), aPod(live).ID)); err != nil && n > 5 {
				t.Fatal(err)
			}
		}
		ok(t, db.DeletePodAsync(bigPod(9999).ID))
		ok(t, unix.Mount("", cfg.Root, "", unix.MS_REMOUNT, "size=3m"))
		ok(t, db.Flush(t.Context()))
		storetest.Check(t, db)
		storetest.Crash(db)
		db, err = store.Open(t.Context(), cfg)
		ok(t, err)
		storetest.Check(t, db)
		if n := len(ids(db)); n != pods {
			t.Errorf("%d pods after a crash, %d acknowledged", n, pods)
		}
		ok(t, unix.Mount("", cfg.Root, "", unix.MS_REMOUNT, "size=2m"))
	}
	if left, err := filepath.Glob(filepath.Join(cfg.Root, "*.new")); err != nil || len(left) != 0 {
		t.Errorf("left %q, %v", left, err)
	}
}

// bigPod does not fit where little is left.
func bigPod(n int) store.Pod {
	p := aPod(n)
	p.Message = string(make([]byte, 100_000))
	return p
}
