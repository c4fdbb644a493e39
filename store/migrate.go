// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"go.etcd.io/bbolt"
)

// A migration brings a file to the next version. Records gain fields without one: it is for what an older
// berth would misread, and each comes with a test of its own.
type migration struct {
	name string
	run  func(*bbolt.Tx) error
}

// durableMigrations are those of berth.db: the first brings version 1 to version 2. None is ever removed.
func durableMigrations() []migration { return nil }

// liveMigrations are those of live.db.
func liveMigrations() []migration { return nil }

// version is what the last migration leads to.
func version(steps []migration) int { return 1 + len(steps) }

// keyVersion has the version in the bucket meta. It has to be read in files of versions to come, so this
// entry keeps its form for ever: "berth VERSION CRC", the CRC-32C of all before it in hex.
const keyVersion = "version"

func versionEntry(v int) put {
	text := fmt.Sprintf("berth %d ", v)
	return put{bucketMeta, keyVersion, []byte(text + versionSum(text))}
}

func versionSum(text string) string {
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(text), crc32.MakeTable(crc32.Castagnoli)))
}

// fileVersion finds the version among the entries of a file.
func fileVersion(entries []put) (int, error) {
	for _, e := range entries {
		if e.bucket != bucketMeta || e.key != keyVersion {
			continue
		}
		text := string(e.value)
		cut := strings.LastIndexByte(text, ' ') + 1
		words := strings.Fields(text)
		if len(words) != 3 || words[0] != "berth" || text[cut:] != versionSum(text[:cut]) {
			return 0, fmt.Errorf("%w: version %q", ErrDamaged, clip(text))
		}
		v, err := strconv.Atoi(words[1])
		if err != nil || v < 1 {
			return 0, fmt.Errorf("%w: version %q", ErrDamaged, clip(text))
		}
		return v, nil
	}
	return 0, fmt.Errorf("%w: it has no version", ErrDamaged)
}

// migrate brings a file that was read and found sound from a version to the newest, in one commit.
func (f *boltFile) migrate(from int, steps []migration) (err error) {
	if err := f.open(); err != nil {
		return err
	}
	defer func() {
		if cerr := f.close(); err == nil {
			err = cerr
		}
	}()
	defer f.recovered(&err)
	return f.db.Update(func(tx *bbolt.Tx) error {
		for i, step := range steps[from-1:] {
			if err := step.run(tx); err != nil {
				return fmt.Errorf("to version %d, %s: %w", from+i+1, step.name, err)
			}
		}
		return write(tx, []put{versionEntry(version(steps))})
	})
}
