// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// fileOf makes a database with small pages, which has a tree of several levels, inline and large values
// and free pages in few bytes, and returns it with what it held at its last two commits.
func fileOf(tb testing.TB) (file []byte, last, before map[string]string) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "small.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 1024, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		tb.Fatal(err)
	}
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	entry := func(n, size int) put {
		key := fmt.Sprintf("key%03d", n)
		return put{"pods", key, frame("pods", key, bytes.Repeat([]byte{byte(n)}, size))}
	}
	must(db.Update(func(tx *bbolt.Tx) error {
		for _, name := range smallBuckets() {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		puts := []put{versionEntry(1), {"small", "inline", frame("small", "inline", []byte("x"))}, entry(500, 1500)}
		for n := range 40 {
			puts = append(puts, entry(n, 20+n/2))
		}
		return write(tx, puts)
	}))
	must(db.Update(func(tx *bbolt.Tx) error {
		var puts []put
		for n := range 10 {
			puts = append(puts, put{"pods", fmt.Sprintf("key%03d", 3*n), nil})
		}
		return write(tx, puts)
	}))
	must(db.Update(func(tx *bbolt.Tx) error { return write(tx, []put{entry(7, 900)}) }))
	contents := func() map[string]string {
		b, err := os.ReadFile(path)
		must(err)
		m, _, err := readAll(b)
		must(err)
		return m
	}
	before = contents()
	must(db.Update(func(tx *bbolt.Tx) error { return write(tx, []put{entry(7, 10), entry(600, 10)}) }))
	must(db.Close())
	b, err := os.ReadFile(path)
	must(err)
	return b, contents(), before
}

// readAll reads a file as load does, up to the checksum of each value.
func readAll(b []byte) (map[string]string, boltInfo, error) {
	out := make(map[string]string)
	info, err := readBolt(bytes.NewReader(b), int64(len(b)), func(bucket, key, value []byte) error {
		if key == nil {
			out[string(bucket)] = ""
			return nil
		}
		if string(key) == keyVersion {
			_, err := fileVersion([]put{{string(bucket), string(key), value}})
			out[string(bucket)+" "+string(key)] = string(value)
			return err
		}
		payload, err := unframe(string(bucket), string(key), value)
		if err != nil {
			return fmt.Errorf("%w: %w", errBolt, err)
		}
		out[string(bucket)+" "+string(key)] = string(payload)
		return nil
	})
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w: %w", errBolt, err)
	}
	for _, name := range smallBuckets() {
		if _, ok := out[name]; !ok && err == nil {
			err = bad("no bucket %s", name)
		}
	}
	return out, info, err
}

func smallBuckets() []string { return []string{"meta", "pods", "small", "empty"} }

// TestReadBolt holds that a file reads as bbolt reads it.
func TestReadBolt(t *testing.T) {
	file, last, before := fileOf(t)
	if len(last) != len(before)+1 || len(last) < 30 {
		t.Fatalf("%d entries, then %d", len(before), len(last))
	}
	_, info, err := readAll(file)
	if err != nil || info.free == 0 || info.fallback {
		t.Errorf("%+v, %v", info, err)
	}
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	want := make(map[string]string)
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			want[string(name)] = ""
			return b.ForEach(func(k, v []byte) error {
				if string(k) != keyVersion {
					v = v[frameLen:]
				}
				want[string(name)+" "+string(k)] = string(v)
				return nil
			})
		})
	})
	if err != nil || !maps.Equal(last, want) {
		t.Errorf("%v; got %d entries, want %d", err, len(last), len(want))
	}
}

// TestReadWhatBoltWrites holds that no file is refused that bbolt has written, whatever was put and
// deleted, with pages that are split and merged, lists of free pages that grow, and commits that fail.
func TestReadWhatBoltWrites(t *testing.T) {
	commits := 600
	if testing.Short() {
		commits = 100
	}
	path := filepath.Join(t.TempDir(), "x")
	f := &boltFile{path: path, buckets: []string{"a", "b", "c"}, fault: func(err error) { t.Error(err) }}
	if err := f.create(func(func(put) bool) {}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.close() }()
	r := rand.New(rand.NewPCG(1, 2))
	want := make(map[string]string)
	for n := range commits {
		next := maps.Clone(want)
		var puts []put
		for range 1 + r.IntN(30) {
			bucket := f.buckets[r.IntN(3)]
			key := fmt.Sprintf("%0*d", 1+r.IntN(60), r.IntN(300))
			p := put{bucket, key, nil}
			if r.IntN(100) < 50+30*(n/100%2)-20 { // it grows, then shrinks
				p.value = frame(bucket, key, bytes.Repeat([]byte("v"), r.IntN(1<<r.IntN(14))))
				next[bucket+" "+key] = string(p.value)
			} else {
				delete(next, bucket+" "+key)
			}
			puts = append(puts, p)
		}
		if n%7 == 3 {
			if err := f.commit(append(puts, put{"none", "x", []byte("x")})); err == nil || f.suspect {
				t.Fatalf("commit %d: %v", n, err)
			}
		}
		if err := f.commit(puts); err != nil {
			t.Fatal(err)
		}
		want = next
		entries, err := readFile(path)
		if err != nil {
			t.Fatalf("after %d commits: %v", n+1, err)
		}
		got := make(map[string]string)
		for _, e := range entries {
			if e.value != nil {
				got[e.bucket+" "+e.key] = string(e.value)
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("after %d commits: differs in %q", n+1, differing(got, want))
		}
	}
}

// TestEveryByte damages each byte of a file in turn. Each time the file is refused, or
// it reads as it did, or, where the description of the last commit is hit, as it did before that. What is
// accepted bbolt can open and write to.
func TestEveryByte(t *testing.T) {
	file, last, before := fileOf(t)
	folder := t.TempDir()
	refused, same, older := 0, 0, 0
	_, info, err := readAll(file)
	if err != nil {
		t.Fatal(err)
	}
	file = file[:info.pages*1024]
	b := bytes.Clone(file)
	for i := range file {
		if i%1024 >= 128 && i%16 != 0 && bytes.Count(file[i-16:min(i+16, len(file))], []byte{0}) == 32 {
			continue // unused, as are those around it
		}
		damages := []byte{file[i] ^ 1<<(i%8)}
		if i%1024 < 128 { // the structure
			damages = append(damages, ^file[i], file[i]+1, file[i]-1)
		}
		for _, damage := range damages {
			copy(b, file)
			b[i] = damage
			got, info, err := readAll(b)
			switch {
			case err != nil:
				refused++
				if !errors.Is(err, errBolt) {
					t.Fatalf("byte %d: %v", i, err)
				}
				continue
			case info.fallback && maps.Equal(got, before):
				older++
			case maps.Equal(got, last):
				same++
			default:
				t.Fatalf("byte %d of page %d, %#x made %#x: accepted, and reads as something else: %q", i%1024, i/1024, file[i], damage, differing(last, got))
			}
			if i%61 == 0 { // opening takes a while
				openAccepted(t, folder, b)
			}
		}
	}
	t.Logf("%d refused, %d read as before, %d as the commit before", refused, same, older)
	if refused < len(file)/4 || older == 0 || same == 0 {
		t.Error("the test does not test")
	}
}

func differing(a, b map[string]string) (keys []string) {
	for key := range a {
		if b[key] != a[key] {
			keys = append(keys, key)
		}
	}
	for key := range b {
		if _, ok := a[key]; !ok {
			keys = append(keys, key)
		}
	}
	return keys
}

// TestEveryLength cuts a file off at each length.
func TestEveryLength(t *testing.T) {
	file, last, _ := fileOf(t)
	_, info, err := readAll(file)
	if err != nil {
		t.Fatal(err)
	}
	used := int(info.pages) * 1024
	for n := range len(file) {
		got, _, err := readAll(file[:n])
		if n < used && !errors.Is(err, errBolt) || n >= used && (err != nil || !maps.Equal(got, last)) {
			t.Errorf("cut to %d of %d bytes, %d of them used: %v", n, len(file), used, err)
		}
	}
}

// openAccepted holds that bbolt does with an accepted file what it does with any.
func openAccepted(t *testing.T, folder string, b []byte) {
	t.Helper()
	path := filepath.Join(folder, "accepted.db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{FreelistType: bbolt.FreelistMapType, NoSync: true, NoGrowSync: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for n := range 3 { // both descriptions are written anew
		err := db.Update(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
				if err := b.ForEach(func(k, _ []byte) error { return nil }); err != nil {
					return err
				}
				if err := b.Delete([]byte("key010")); err != nil {
					return err
				}
				return b.Put(fmt.Appendf(nil, "key9%d", n), bytes.Repeat([]byte("x"), 500))
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzFile changes several places of a file at once: fuzz gives pairs of an offset and a byte, and what
// the checksum of a description covers is made right, so that the rest of it is looked at.
func FuzzFile(f *testing.F) {
	file, last, before := fileOf(f)
	f.Add([]byte{0, 0, 1})
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		var edits []byte
		for range 1 + r.IntN(6) {
			at := r.IntN(len(file))
			if r.IntN(2) == 0 { // the head of a page, where the structure is
				at = at/1024*1024 + r.IntN(120)
			}
			edits = append(edits, byte(at), byte(at>>8), byte(r.IntN(256)))
		}
		f.Add(edits)
	}
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := bytes.Clone(file)
		for ; len(edits) >= 3; edits = edits[3:] {
			b[(int(edits[0])|int(edits[1])<<8)%len(b)] = edits[2]
		}
		for _, page := range []int{0, 1024} {
			meta := b[page+boltHeader : page+boltHeader+boltMetaLen]
			sum := fnv.New64a()
			sum.Write(meta[:boltMetaLen-8])
			copy(meta[boltMetaLen-8:], binary64(sum.Sum64()))
		}
		got, _, err := readAll(b)
		if err != nil {
			if !errors.Is(err, errBolt) {
				t.Fatal(err)
			}
			return
		}
		// With checksums made right a forger could leave out whole buckets; what is there is genuine.
		for key, value := range got {
			if last[key] != value && before[key] != value {
				t.Errorf("%q reads as something else", key)
			}
		}
		openAccepted(t, t.TempDir(), b)
	})
}

func binary64(v uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
	return b
}

// FuzzOpen gives whole files to Open, as both files of a store.
func FuzzOpen(f *testing.F) {
	small, _, _ := fileOf(f)
	f.Add(small)
	for _, name := range []string{"berth.db", "live.db"} {
		golden, err := os.ReadFile(filepath.Join("testdata", "v1", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(golden)
		f.Add(golden[:len(golden)/2])
	}
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, file []byte) {
		folder := t.TempDir()
		for _, name := range []string{durableName, liveName} {
			cfg := Config{Root: filepath.Join(folder, name, "r"), State: filepath.Join(folder, name, "s"), BootID: "golden"}
			path := filepath.Join(cfg.Root, name)
			if name == liveName {
				path = filepath.Join(cfg.State, name)
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := Open(t.Context(), cfg)
			if err != nil {
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
					t.Fatal(err)
				}
				continue
			}
			if err := db.PutPod(t.Context(), Pod{ID: "new"}); err != nil {
				t.Error(err)
			}
			if err := db.LivePods().Put(t.Context(), "new", Live{}, "step"); err != nil {
				t.Error(err)
			}
			if _, err := db.Check(t.Context()); err != nil {
				t.Error(err)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// FuzzRecord decodes each sort of record out of the same bytes. What is read is written, and reads as
// itself.
func FuzzRecord(f *testing.F) {
	files, err := filepath.Glob("testdata/v*/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal(err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"id":"x","ID":"y","İd":1,"unknown":{"a":[1,2]},"labels":{"a":"\ud800"}}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{}{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzRecord[Pod](t, b)
		fuzzRecord[Container](t, b)
		fuzzRecord[Image](t, b)
		fuzzRecord[Layer](t, b)
		fuzzRecord[Step](t, b)
		fuzzRecord[liveRecord](t, b)
		fuzzRecord[runRecord](t, b)
		if payload, err := unframe("b", "k", b); err == nil && !bytes.Equal(frame("b", "k", payload), b) {
			t.Errorf("frame of %q", payload)
		}
	})
}

func fuzzRecord[R any](t *testing.T, b []byte) {
	t.Helper()
	r, err := decode[R](b)
	if err != nil {
		return
	}
	once, err := encode(r)
	if err != nil {
		return // a time zone that JSON does not have
	}
	again, err := decode[R](once)
	if err != nil {
		t.Fatalf("%q was written, and is not read: %v", once, err)
	}
	twice, err := encode(again)
	if err != nil || !bytes.Equal(once, twice) {
		t.Errorf("%q was written as %q: %v", once, twice, err)
	}
}
