// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/image/seal"
	"github.com/berth-cri/berth/image/unpack"
)

// words is text that compresses to about a third, as programs do.
func words(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "%x ", r.Uint32()>>(r.Uint32()%24))
	}
	return b[:n]
}

// bench archives: one file of 300 MB, and 40 MB in 9,400 small files of 200 folders.
func benchArchive(b *testing.B, name string) []byte {
	b.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h *tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	add(root(format(tar.FormatUnknown), modTime(stamp.Truncate(1e9))), nil)
	old := func(h *tar.Header) { h.Format, h.ModTime = tar.FormatUnknown, stamp.Truncate(1e9) }
	switch name {
	case "one file":
		part := words(10 << 20)
		all := bytes.Repeat(part, 30)
		add(entry(tar.TypeReg, "big", old), all)
	case "small files":
		text := words(1 << 20)
		r := rand.New(rand.NewPCG(3, 4))
		for i := range 9400 {
			if i%47 == 0 {
				add(dir(fmt.Sprintf("usr/d%d", i/47), old), nil)
			}
			n := r.IntN(8600)
			at := r.IntN(len(text) - n)
			add(entry(tar.TypeReg, fmt.Sprintf("usr/d%d/file-%d.txt", i/47, i), old), text[at:at+n])
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

// BenchmarkUnpack unpacks to the file system of the temporary folder, without a sync, beside GNU tar and
// gzip. The figures stand in doc.go.
//
// Nothing is removed before the end: for a minute and more ext4 gives no inode away again, and looks at
// each of those that were freed whenever it needs one (fs/ext4/ialloc.c, recently_deleted).
func BenchmarkUnpack(b *testing.B) {
	outer := b
	for _, what := range []string{"one file", "small files"} {
		raw := benchArchive(b, what)
		blobs := map[string][]byte{"plain": raw}
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(raw); err != nil {
			b.Fatal(err)
		}
		w.Close()
		blobs["gzip"] = z.Bytes()
		blobs["zstd"] = zstandard(b, raw, zstd.WithEncoderLevel(zstd.SpeedDefault))
		for _, how := range []string{"plain", "gzip", "zstd"} {
			b.Run(what+"/"+how+"/berth", func(b *testing.B) {
				u := unpack.New(unpack.Options{})
				b.SetBytes(int64(len(raw)))
				var used time.Duration
				for i := range b.N {
					b.StopTimer()
					folder := filepath.Join(outer.TempDir(), fmt.Sprint(i))
					if err := os.Mkdir(folder, 0o755); err != nil {
						b.Fatal(err)
					}
					rootFolder, err := os.Open(folder)
					if err != nil {
						b.Fatal(err)
					}
					list, err := os.OpenFile(folder+".seal", os.O_RDWR|os.O_CREATE, 0o600)
					if err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					before := cpu(b, unix.RUSAGE_SELF)
					if _, err := u.Unpack(b.Context(), unpack.Source{Blob: bytes.NewReader(blobs[how]), MediaType: plain},
						unpack.Target{Root: rootFolder, Seal: seal.NewWriter(list)}); err != nil {
						b.Fatal(err)
					}
					used += cpu(b, unix.RUSAGE_SELF) - before
					b.StopTimer()
					rootFolder.Close()
					list.Close()
				}
				b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
			})
			b.Run(what+"/"+how+"/tar", func(b *testing.B) {
				blob := filepath.Join(b.TempDir(), "blob")
				if err := os.WriteFile(blob, blobs[how], 0o600); err != nil {
					b.Fatal(err)
				}
				command := map[string]string{"plain": "tar xpf %s -C %s", "gzip": "gzip -dc %s | tar xpf - -C %s", "zstd": "zstd -dcq %s | tar xpf - -C %s"}[how]
				if _, err := exec.LookPath("zstd"); err != nil && how == "zstd" {
					b.Skip(err)
				}
				b.SetBytes(int64(len(raw)))
				before := cpu(b, unix.RUSAGE_CHILDREN)
				for i := range b.N {
					b.StopTimer()
					folder := filepath.Join(outer.TempDir(), fmt.Sprint(i))
					if err := os.Mkdir(folder, 0o755); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					if out, err := exec.CommandContext(b.Context(), "sh", "-c", fmt.Sprintf(command, blob, folder)).CombinedOutput(); err != nil {
						b.Fatalf("%v: %s", err, out)
					}
					b.StopTimer()
				}
				b.ReportMetric(float64((cpu(b, unix.RUSAGE_CHILDREN)-before).Milliseconds())/float64(b.N), "cpu-ms/op")
			})
		}
	}
}

// cpu is the time of processors that was used: on a machine with other work it tells more than a clock.
func cpu(b *testing.B, who int) time.Duration {
	b.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(who, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
