// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// The migrations here are of no release. Each migration of a release has a test beside these, with the
// golden files of the release before it.

func openAt(t *testing.T, folder string, durable, live []migration) (*DB, error) {
	t.Helper()
	return open(t.Context(), Config{Root: filepath.Join(folder, "root"), State: filepath.Join(folder, "state")}, durable, live)
}

// rename is a migration that gives each pod another name.
func rename(name string) migration {
	return migration{"rename pods to " + name, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucketPods))
		return b.ForEach(func(k, v []byte) error {
			payload, err := unframe(bucketPods, string(k), v)
			if err != nil {
				return err
			}
			p, err := decode[Pod](payload)
			if err != nil {
				return err
			}
			p.Name += name
			if payload, err = encode(p); err != nil {
				return err
			}
			return b.Put(k, frame(bucketPods, string(k), payload))
		})
	}}
}

func TestMigrate(t *testing.T) {
	folder := t.TempDir()
	do := func(steps int, want string) {
		t.Helper()
		db, err := openAt(t, folder, []migration{rename("a"), rename("b"), rename("c")}[:steps], nil)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		p, _ := db.Pod("p")
		if p.Name != want {
			t.Errorf("after %d migrations: %q, want %q", steps, p.Name, want)
		}
		if p.ID == "" {
			if err := db.PutPod(t.Context(), Pod{ID: "p", Name: "n"}); err != nil {
				t.Fatal(err)
			}
		}
		if problems, err := db.Check(t.Context()); err != nil || len(problems) != 0 {
			t.Errorf("%v, %v", problems, err)
		}
	}
	do(0, "") // makes it
	do(0, "n")
	do(1, "na")
	do(1, "na") // once
	do(3, "nabc")
	do(3, "nabc")

	before, err := os.ReadFile(filepath.Join(folder, "root", durableName))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openAt(t, folder, []migration{rename("a"), rename("b")}, nil); !errors.Is(err, ErrNewer) {
		t.Errorf("with a newer file: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(folder, "root", durableName))
	if err != nil || string(after) != string(before) {
		t.Errorf("the newer file was touched: %v", err)
	}

	// One that is new is of the newest version at once.
	folder = t.TempDir()
	do(3, "")
	do(3, "n")
}

// TestMigrateFails holds that a migration that fails, or panics, leaves everything as it was.
func TestMigrateFails(t *testing.T) {
	folder := t.TempDir()
	db, err := openAt(t, folder, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.PutPod(t.Context(), Pod{ID: "p", Name: "n"}); err != nil {
		t.Fatal(err)
	}
	if err := db.LivePods().Put(t.Context(), "p", Live{Config: []byte("c")}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	bad := migration{"break", func(*bbolt.Tx) error { return broken }}
	worse := migration{"panic", func(*bbolt.Tx) error { panic("worse") }}
	for _, c := range []struct {
		durable, live []migration
		want          error
	}{
		{[]migration{rename("a"), bad}, nil, broken},
		{[]migration{rename("a"), worse}, nil, ErrPanic},
		{nil, []migration{bad}, broken},
	} {
		if _, err := openAt(t, folder, c.durable, c.live); !errors.Is(err, c.want) {
			t.Errorf("error is %v, want %v", err, c.want)
		}
		db, err := openAt(t, folder, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := db.Pod("p")
		l, _ := db.LivePods().Get("p")
		if p.Name != "n" || string(l.Config) != "c" {
			t.Errorf("%q, %q", p.Name, l.Config)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
