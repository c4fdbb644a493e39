// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/berth-cri/berth/store"
	"github.com/berth-cri/berth/store/storetest"
)

func durablePath(cfg store.Config) string { return filepath.Join(cfg.Root, "berth.db") }
func livePath(cfg store.Config) string    { return filepath.Join(cfg.State, "live.db") }

func TestLocked(t *testing.T) {
	for _, shared := range []string{"root", "state", "both"} {
		t.Run(shared, func(t *testing.T) {
			cfg := storetest.Folders(t)
			db := storetest.OpenAt(t, cfg)
			other := storetest.Folders(t)
			want := filepath.Join(cfg.Root, "berth.lock")
			switch shared {
			case "root":
				other.Root = cfg.Root
			case "state":
				other.State = cfg.State
				want = filepath.Join(cfg.State, "live.lock")
			default:
				other = cfg
			}
			for range 2 {
				_, err := store.Open(t.Context(), other)
				wantErr(t, err, store.ErrLocked)
				if pid := fmt.Sprintf("process %d", os.Getpid()); err == nil || !strings.Contains(err.Error(), pid) || !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not name %s and %s: %v", pid, want, err)
				}
			}
			ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"})) // whoever has it has not noticed
			ok(t, db.Close())
			storetest.OpenAt(t, other)
		})
	}
}

// TestModes holds that others can neither read nor change what is there.
func TestModes(t *testing.T) {
	cfg := storetest.Folders(t)
	storetest.OpenAt(t, cfg)
	for _, folder := range []string{cfg.Root, cfg.State} {
		info, err := os.Stat(folder)
		ok(t, err)
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", folder, info.Mode())
		}
		entries, err := os.ReadDir(folder)
		ok(t, err)
		if len(entries) != 2 {
			t.Errorf("%s holds %v", folder, entries)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
			}
		}
	}
}

func TestRuns(t *testing.T) {
	cfg := storetest.Folders(t)
	cfg.BootID = "first"
	type told struct {
		run, lastClean  uint64
		clean, rebooted bool
		live            bool // the live record is still there
	}
	steps := []struct {
		name string
		boot string
		end  func(*store.DB)
		want told // at its beginning
	}{
		{"new", "first", func(db *store.DB) { ok(t, db.Close()) }, told{run: 1, clean: true, rebooted: true}},
		{"after a clean end", "first", func(db *store.DB) { ok(t, db.Close()) }, told{run: 2, lastClean: 1, clean: true, live: true}},
		{"after another", "first", storetest.Crash, told{run: 3, lastClean: 2, clean: true, live: true}},
		{"after a crash", "first", storetest.Crash, told{run: 4, lastClean: 2, live: true}},
		{"after another crash", "first", storetest.Crash, told{run: 5, lastClean: 2, live: true}},
		{"after a power cut", "second", func(db *store.DB) { ok(t, db.Close()) }, told{run: 6, lastClean: 2, rebooted: true}},
		{"after a clean end again", "second", func(db *store.DB) { ok(t, db.Close()) }, told{run: 7, lastClean: 6, clean: true, live: true}},
		{"after a reboot", "third", func(db *store.DB) { ok(t, db.Close()) }, told{run: 8, lastClean: 7, clean: true, rebooted: true}},
	}
	for i, step := range steps {
		cfg.BootID = step.boot
		db := storetest.OpenAt(t, cfg)
		_, live := db.LivePods().Get("p")
		got := told{db.Run(), db.LastCleanRun(), db.CleanShutdown(), db.Rebooted(), live}
		if got != step.want {
			t.Errorf("%s: %+v, want %+v", step.name, got, step.want)
		}
		if _, found := db.Pod("p"); found != (i > 0) {
			t.Errorf("%s: the pod is there: %v", step.name, found)
		}
		ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
		ok(t, db.LivePods().Put(t.Context(), "p", store.Live{Config: []byte("c")}))
		step.end(db)
	}
}

// TestRebootVoidsLive holds that a live.db of another boot is void whatever it holds, also where nothing
// but live.db itself knows its boot.
func TestRebootVoidsLive(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, cfg store.Config)
	}{
		{"sound", func(*testing.T, store.Config) {}},
		{"garbage", func(t *testing.T, cfg store.Config) { ok(t, os.WriteFile(livePath(cfg), []byte("garbage"), 0o600)) }},
		{"of a newer version", func(t *testing.T, cfg store.Config) { setVersion(t, livePath(cfg), 99) }},
		{"without its lock", func(t *testing.T, cfg store.Config) { ok(t, os.Remove(filepath.Join(cfg.State, "live.lock"))) }},
		{"gone", func(t *testing.T, cfg store.Config) { ok(t, os.RemoveAll(cfg.State)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := storetest.Folders(t)
			cfg.BootID = "first"
			db := storetest.OpenAt(t, cfg)
			everything(t, db)
			ok(t, db.Close())
			c.damage(t, cfg)
			cfg.BootID = "second"
			db = storetest.OpenAt(t, cfg)
			if _, found := db.LivePods().Get(fullPod().ID); found || !db.Rebooted() {
				t.Errorf("live record found: %v, rebooted: %v", found, db.Rebooted())
			}
			if _, found := db.Pod(fullPod().ID); !found {
				t.Error("the pod is gone")
			}
			ok(t, db.LivePods().Put(t.Context(), fullPod().ID, store.Live{}))
		})
	}
}

// TestBootOfTheKernel holds that the kernel's boot id is what counts where none is given.
func TestBootOfTheKernel(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	ok(t, db.Close())
	if db = storetest.OpenAt(t, cfg); db.Rebooted() {
		t.Error("rebooted")
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	ok(t, err)
	lock, err := os.ReadFile(filepath.Join(cfg.State, "live.lock"))
	ok(t, err)
	if !strings.Contains(string(lock), strings.TrimSpace(string(b))) {
		t.Errorf("the lock says %q", lock)
	}
}

// setVersion gives a file a version, as berths to come would.
func setVersion(t *testing.T, path string, version int) {
	t.Helper()
	ok(t, store.RawPut(path, "meta", "version", store.VersionValue(version)))
}

// TestRefused lists files that are not opened, and holds that they are left as they are and can be opened
// when they have been set right.
func TestRefused(t *testing.T) {
	edit := func(fn func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			ok(t, err)
			ok(t, os.WriteFile(path, fn(b), 0o600))
		}
	}
	raw := func(bucket, key, value string) func(*testing.T, string) {
		return func(t *testing.T, path string) { ok(t, store.RawPut(path, bucket, key, []byte(value))) }
	}
	for _, c := range []struct {
		name  string
		do    func(t *testing.T, path string)
		want  error
		words []string
	}{
		{"newer", func(t *testing.T, path string) { setVersion(t, path, 7) }, store.ErrNewer, []string{"version 7", "up to 1", "newer one"}},
		{"empty", edit(func([]byte) []byte { return nil }), store.ErrDamaged, nil},
		{"one byte", edit(func(b []byte) []byte { return b[:1] }), store.ErrDamaged, nil},
		{"one page", edit(func(b []byte) []byte { return b[:4096] }), store.ErrDamaged, nil},
		{"two pages", edit(func(b []byte) []byte { return b[:8192] }), store.ErrDamaged, nil},
		{"without its last used page", edit(func(b []byte) []byte { return b[:3*4096+100] }), store.ErrDamaged, nil},
		{"text", edit(func([]byte) []byte { return []byte(strings.Repeat("all is well\n", 10000)) }), store.ErrDamaged, nil},
		{"zeros", edit(func(b []byte) []byte { clear(b); return b }), store.ErrDamaged, nil},
		{"ones", edit(func(b []byte) []byte { return []byte(strings.Repeat("\xff", len(b))) }), store.ErrDamaged, nil},
		{"both descriptions are gone", edit(func(b []byte) []byte { clear(b[:8192]); return b }), store.ErrDamaged, nil},
		{"a folder", func(t *testing.T, path string) {
			ok(t, os.Remove(path))
			ok(t, os.Mkdir(path, 0o700))
		}, store.ErrDamaged, nil},
		{"no version", raw("meta", "version", ""), store.ErrDamaged, []string{"no version"}},
		{"a version that is no number", raw("meta", "version", "berth x 12345678"), store.ErrDamaged, []string{"version"}},
		{"a version with a wrong checksum", raw("meta", "version", "berth 7 12345678"), store.ErrDamaged, []string{"version"}},
		{"an unknown bucket", raw("new", "x", string(store.Frame("new", "x", []byte("{}")))), store.ErrDamaged, []string{"unknown bucket"}},
		{"no frame", raw("meta", "run", "x"), store.ErrDamaged, []string{`meta "run"`}},
		{"a frame of another kind", raw("meta", "run", "\x02\x00\x00\x00\x00{}"), store.ErrDamaged, []string{`meta "run"`}},
		{"a wrong checksum", raw("meta", "run", "\x01\x00\x00\x00\x00{}"), store.ErrDamaged, []string{`meta "run"`, "checksum"}},
		{"a value under the wrong key", raw("meta", "run", string(store.Frame("meta", "boot", []byte("{}")))), store.ErrDamaged, []string{`meta "run"`, "checksum"}},
		{"no JSON", raw("meta", "run", string(store.Frame("meta", "run", []byte("{")))), store.ErrDamaged, []string{`meta "run"`}},
	} {
		for _, file := range []string{"berth.db", "live.db"} {
			t.Run(file+" "+c.name, func(t *testing.T) {
				cfg := storetest.Folders(t)
				path, other := durablePath(cfg), livePath(cfg)
				next := "begins anew"
				if file == "live.db" {
					path, other = other, path
					next = "taken for ended"
				}
				db := storetest.OpenAt(t, cfg)
				everything(t, db)
				want := collect(db)
				ok(t, db.Close())
				good, err := os.ReadFile(path)
				ok(t, err)
				c.do(t, path)

				before, beforeOther := state(t, path), state(t, other)
				_, err = store.Open(t.Context(), cfg)
				wantErr(t, err, c.want)
				words := append([]string{path, "nothing was changed"}, c.words...)
				if c.want == store.ErrDamaged { //nolint:errorlint // a case of the table
					words = append(words, next)
				}
				for _, word := range words {
					if err == nil || !strings.Contains(err.Error(), word) {
						t.Errorf("the error does not say %q: %v", word, err)
					}
				}
				if after := state(t, path); after != before {
					t.Error("the file was touched")
				}
				if after := state(t, other); after != beforeOther {
					t.Error("the other file was touched")
				}

				ok(t, os.RemoveAll(path))
				ok(t, os.WriteFile(path, good, 0o600))
				db = storetest.OpenAt(t, cfg)
				if !reflect.DeepEqual(collect(db), want) {
					t.Error("what was there has changed")
				}
			})
		}
	}
}

// state is all of a file that a refusal must leave.
func state(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	ok(t, err)
	b, _ := os.ReadFile(path)
	return fmt.Sprint(info.Mode(), info.Size(), info.ModTime(), string(b))
}

// TestMissingBucket is damage as well: writing into it could not succeed.
func TestMissingBucket(t *testing.T) {
	cfg := storetest.Folders(t)
	db := storetest.OpenAt(t, cfg)
	ok(t, db.Close())
	ok(t, store.RawDeleteBucket(durablePath(cfg), "layers"))
	_, err := store.Open(t.Context(), cfg)
	wantErr(t, err, store.ErrDamaged)
	if err == nil || !strings.Contains(err.Error(), "no bucket layers") {
		t.Errorf("error is %v", err)
	}
}

// TestLeftovers holds that what a process was making when it died is not taken for a file.
func TestLeftovers(t *testing.T) {
	cfg := storetest.Folders(t)
	for range 2 { // with no file yet, and with one
		for _, path := range []string{durablePath(cfg), livePath(cfg)} {
			ok(t, os.MkdirAll(filepath.Dir(path), 0o700))
			ok(t, os.WriteFile(path+".new", []byte("half"), 0o600))
		}
		db := storetest.OpenAt(t, cfg)
		ok(t, db.PutPod(t.Context(), store.Pod{ID: "p"}))
		ok(t, db.Close())
		for _, path := range []string{durablePath(cfg), livePath(cfg)} {
			if _, err := os.Stat(path + ".new"); err == nil {
				t.Errorf("%s.new is still there", path)
			}
		}
	}
}

func TestFoldersInTheWay(t *testing.T) {
	cfg := storetest.Folders(t)
	ok(t, os.WriteFile(cfg.Root, nil, 0o600))
	if _, err := store.Open(t.Context(), cfg); err == nil {
		t.Error("opened with a file for a root")
	}
	cfg = storetest.Folders(t)
	ok(t, os.WriteFile(cfg.State, nil, 0o600))
	if _, err := store.Open(t.Context(), cfg); err == nil {
		t.Error("opened with a file for a state folder")
	}
	ok(t, os.Remove(cfg.State))
	storetest.OpenAt(t, cfg) // the root was let go
}
