// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The names of the files.
const (
	durableName = "berth.db"
	liveName    = "live.db"
	durableLock = "berth.lock"
	liveLock    = "live.lock"
)

// Config says where a store is.
type Config struct {
	// Root is the folder of berth.db, on a disk: /var/lib/berth. It is made, with
	// mode 0700, if it is not there.
	Root string
	// State is the folder of live.db, on a tmpfs: /run/berth. Made as Root is.
	State string
	// AsyncDelay is how long an asynchronous write may wait for others, so that a
	// commit serves more of them. 0: it is committed as soon as the one before it has
	// ended.
	AsyncDelay time.Duration
	// OnFault is told of what nobody waits for: that asynchronous writes could not be
	// committed, which is tried again after at most 5 s, and that bbolt panicked, with
	// the stack. It is called by the goroutine that commits, and must not call the
	// store. May be nil.
	OnFault func(error)
	// BootID stands for that of the kernel. "": it is read from
	// /proc/sys/kernel/random/boot_id.
	BootID string
}

// Open opens the store, and makes it where there is none. The folders belong to
// this process until Close: another one gets ErrLocked.
//
// All of both files is read and verified before anything is changed. It returns
// ErrNewer for a file that a newer berth has written and ErrDamaged for one that
// is not what was written; both leave it as it is. A live.db of another boot of the
// node is emptied, whatever it holds.
//
// It does not look at whether the records go together; see [DB.Check].
func Open(ctx context.Context, cfg Config) (*DB, error) {
	db, err := open(ctx, cfg, durableMigrations(), liveMigrations())
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return db, nil
}

func open(ctx context.Context, cfg Config, durableSteps, liveSteps []migration) (_ *DB, err error) {
	db := newDB()
	db.durable = db.newWriter(cfg, filepath.Join(cfg.Root, durableName), durableSteps)
	db.live = db.newWriter(cfg, filepath.Join(cfg.State, liveName), liveSteps)
	defer func() {
		if err != nil {
			_ = db.durable.file.close()
			_ = db.live.file.close()
			db.unlock()
		}
	}()
	boot, err := bootID(cfg)
	if err != nil {
		return nil, err
	}
	if err := db.lock(cfg, boot); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := db.loadDurable(durableSteps, boot); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := db.loadLive(liveSteps, boot); err != nil {
		return nil, err
	}
	db.durable.start()
	db.live.start()
	// From here on, not having come to Close is not having ended well.
	run := runRecord{Run: db.Run(), LastClean: db.LastCleanRun(), Boot: boot, extra: db.previous.extra}
	if err := db.durable.do(context.WithoutCancel(ctx), func() (*changes, error) { return single(db.runs, &run), nil }); err != nil {
		db.durable.kill()
		db.live.kill()
		return nil, err
	}
	return db, nil
}

// Close has all that was queued written, marks the run as cleanly ended, and lets
// go of the folders. Reads go on, writes get ErrClosed. An error says that the
// last writes, asynchronous ones, are lost, and the run is not marked.
func (db *DB) Close() error {
	db.end(func() error {
		db.mu.RLock()
		run := *db.runs.rows[keyRun]
		db.mu.RUnlock()
		run.Clean, run.LastClean = true, run.Run
		return errors.Join(db.live.close(nil), db.durable.close(single(db.runs, &run)))
	})
	return db.endErr
}

// Abandon ends the store as the death of the process would: what is queued is
// lost, and the run has not ended cleanly. It is for tests.
func (db *DB) Abandon() {
	db.end(func() error {
		db.live.kill()
		db.durable.kill()
		return nil
	})
}

func (db *DB) end(stop func() error) {
	db.ending.Do(func() {
		err := stop()
		err = errors.Join(err, db.live.file.close(), db.durable.file.close())
		db.unlock()
		if err != nil {
			db.endErr = fmt.Errorf("store: %w", err)
		}
	})
}

// newWriter returns the writer of a file that is not open yet.
func (db *DB) newWriter(cfg Config, path string, steps []migration) *writer {
	w := &writer{
		file:  &boltFile{path: path, buckets: db.buckets(filepath.Base(path))},
		view:  &db.mu,
		delay: cfg.AsyncDelay,
		fault: cfg.OnFault,
	}
	if w.fault == nil {
		w.fault = func(error) {}
	}
	w.file.fault = w.fault
	w.file.synced = filepath.Base(path) == durableName
	w.contents = func() iter.Seq[put] {
		return func(yield func(put) bool) {
			if !yield(versionEntry(version(steps))) {
				return
			}
			if w.file.synced {
				_ = db.runs.contents(yield) && db.pods.contents(yield) && db.containers.contents(yield) &&
					db.images.contents(yield) && db.layers.contents(yield)
			} else {
				_ = db.boots.contents(yield) && db.livePods.table.contents(yield) && db.liveContainers.table.contents(yield)
			}
		}
	}
	return w
}

// buckets are those of a file.
func (db *DB) buckets(name string) []string {
	if name == durableName {
		return []string{bucketMeta, bucketPods, bucketContainers, bucketImages, bucketLayers}
	}
	p, c := db.livePods, db.liveContainers
	return []string{bucketMeta, p.config, p.effective, p.record, p.steps, c.config, c.effective, c.record, c.steps}
}

// loadDurable reads berth.db into memory, or makes it.
func (db *DB) loadDurable(steps []migration, boot string) error {
	f := db.durable.file
	var (
		pods       []*Pod
		containers []*Container
		images     []*Image
		layers     []*Layer
		runs       []*runRecord
	)
	found, err := load(f, steps, func(bucket, key string, payload []byte) error {
		switch bucket {
		case bucketPods:
			return read(&pods, db.pods, key, payload)
		case bucketContainers:
			return read(&containers, db.containers, key, payload)
		case bucketImages:
			return read(&images, db.images, key, payload)
		case bucketLayers:
			return read(&layers, db.layers, key, payload)
		case bucketMeta:
			return read(&runs, db.runs, key, payload)
		}
		return errUnknownBucket
	})
	if err != nil {
		return damaged(f.path, err, "restore it from a copy, or move it away: this node then begins anew, with no images and no pods")
	}
	db.pods.load(pods)
	db.containers.load(containers)
	db.images.load(images)
	db.layers.load(layers)
	db.runs.load(runs)
	if len(runs) > 0 {
		db.previous = *runs[0]
	}
	db.rebooted = db.previous.Boot != boot
	if found {
		return f.open()
	}
	db.previous.Clean = true
	db.runs.load([]*runRecord{{Boot: boot, Clean: true}})
	return f.create(db.durable.contents())
}

// loadLive reads live.db into memory, or makes it.
func (db *DB) loadLive(steps []migration, boot string) error {
	f := db.live.file
	pods := make(map[PodID]*liveRow[PodID])
	containers := make(map[ContainerID]*liveRow[ContainerID])
	var boots []*bootRecord
	found, err := load(f, steps, func(bucket, key string, payload []byte) error {
		p, c := db.livePods, db.liveContainers
		switch bucket {
		case p.config, p.effective, p.record, p.steps:
			return p.read(pods, bucket, key, payload)
		case c.config, c.effective, c.record, c.steps:
			return c.read(containers, bucket, key, payload)
		case bucketMeta:
			return read(&boots, db.boots, key, payload)
		}
		return errUnknownBucket
	})
	if err != nil {
		return damaged(f.path, err, "reboot the node, or move it away: what is running is then taken for ended")
	}
	if found && len(boots) > 0 && boots[0].Boot == boot {
		db.boots.load(boots)
		db.livePods.table.load(values(pods))
		db.liveContainers.table.load(values(containers))
		return f.open()
	}
	db.boots.load([]*bootRecord{{Boot: boot}})
	return f.create(db.live.contents())
}

// errUnknownBucket is damage: a bucket that is not in doc.go comes with a new version.
var errUnknownBucket = errors.New("unknown bucket")

// read decodes a record and holds that it is the one that its key names.
func read[K ~string, R any](into *[]*R, t *table[K, R], key string, payload []byte) error {
	r, err := decode[R](payload)
	if err != nil {
		return err
	}
	if string(t.id(r)) != key {
		return fmt.Errorf("is the record of %q", clip(string(t.id(r))))
	}
	*into = append(*into, r)
	return nil
}

func values[K comparable, V any](m map[K]*V) []*V {
	out := make([]*V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// damaged adds what a person needs to errors that say that a file cannot be used.
func damaged(path string, err error, next string) error {
	switch {
	case errors.Is(err, ErrNewer):
		return fmt.Errorf("%s: %w; nothing was changed: run that berth or a newer one", path, err)
	case errors.Is(err, ErrDamaged):
		return fmt.Errorf("%s: %w; nothing was changed: %s", path, err, next)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// load reads a file, after it was brought to the current version, and calls visit for each entry but the
// version. It reports whether there is a file. It is not open afterwards.
func load(f *boltFile, steps []migration, visit func(bucket, key string, payload []byte) error) (found bool, err error) {
	// What a process that died was making; the file itself was not touched yet.
	if err := os.Remove(f.path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	entries, err := readFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	old, err := fileVersion(entries)
	if err != nil {
		return true, err
	}
	if current := version(steps); old > current {
		return true, fmt.Errorf("%w: it is of version %d, this berth understands up to %d", ErrNewer, old, current)
	} else if old < current {
		if err := f.migrate(old, steps); err != nil {
			return true, err
		}
		if entries, err = readFile(f.path); err != nil {
			return true, err
		}
	}
	missing := make(map[string]bool)
	for _, name := range f.buckets {
		missing[name] = true
	}
	for _, e := range entries {
		if e.value == nil {
			delete(missing, e.bucket)
			continue
		}
		if e.bucket == bucketMeta && e.key == keyVersion {
			continue
		}
		payload, err := unframe(e.bucket, e.key, e.value)
		if err == nil {
			if err = visit(e.bucket, e.key, payload); err != nil {
				err = fmt.Errorf("%s %q: %w", e.bucket, clip(e.key), err)
			}
		}
		if err != nil {
			return true, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	for name := range missing {
		return true, fmt.Errorf("%w: no bucket %s", ErrDamaged, name)
	}
	return true, nil
}

// readFile reads all entries of a file. One without a key and value stands for a bucket.
func readFile(path string) (entries []put, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !stat.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: not a file", ErrDamaged)
	}
	_, err = readBolt(file, stat.Size(), func(bucket, key, value []byte) error {
		entries = append(entries, put{string(bucket), string(key), value})
		return nil
	})
	if errors.Is(err, errBolt) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return entries, err
}

// bootID returns what distinguishes this boot of the kernel from others (random(4)).
func bootID(cfg Config) (string, error) {
	if cfg.BootID != "" {
		return cfg.BootID, nil
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
