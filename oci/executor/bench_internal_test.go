// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// benchChunk is what the writer writes at a time: whole lines of 100 bytes.
const benchChunk = 655 * 100

// BenchmarkPump moves lines of 100 bytes from one pipe into a log, with all that
// belongs to it: epoll, journal, records, tail file. Copy is the floor: the same
// bytes from the same pipe into a file, as cat does it.
//
// MB/s are of what the container writes; the log gets 141 bytes for 100.
func BenchmarkPump(b *testing.B) {
	for _, on := range []struct{ name, dir string }{{"tmpfs", memory(b)}, {"disk", b.TempDir()}} {
		for _, pipe := range []struct {
			name string
			size int
		}{{"64k", 64 << 10}, {"1m", 1 << 20}} {
			b.Run(on.name+"/pipe="+pipe.name+"/pump", func(b *testing.B) { benchPump(b, on.dir, pipe.size) })
			b.Run(on.name+"/pipe="+pipe.name+"/copy", func(b *testing.B) { benchCopy(b, on.dir, pipe.size) })
		}
	}
}

func benchPump(b *testing.B, dir string, pipeSize int) {
	w := newWorld(b, dir, pipeSize)
	p, err := newPoller()
	if err != nil {
		b.Fatal(err)
	}
	w.pump.poller = p
	go func() { _ = p.run() }() // for the rest of the process
	j, t := w.open()
	w.pump.add(j)
	if err := t.start(); err != nil {
		b.Fatal(err)
	}
	unix.Close(w.write[1])
	b.SetBytes(benchChunk)
	b.ResetTimer()
	bytes := feed(b, w.write[0], func() {
		t.enter()
		defer t.leave()
		t.off = 0
		if err := unix.Ftruncate(t.log, 0); err != nil {
			b.Error(err)
		}
	})
	<-t.drained
	b.StopTimer()
	if n, dropped := w.pump.written.Load(), w.pump.dropped.Load(); n != uint64(bytes) || dropped != 0 {
		b.Errorf("%d bytes were pumped and %d dropped, of %d", n, dropped, bytes)
	}
}

// feed writes b.N chunks, closes fd, and calls cut now and then, so that the file
// does not outgrow the machine.
func feed(b *testing.B, fd int, cut func()) (bytes int) {
	lines := benchLines()
	const most = 128 << 20
	since := 0
	for range b.N {
		for rest := lines; len(rest) > 0; {
			n, err := unix.Write(fd, rest)
			if err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
		bytes += len(lines)
		if since += len(lines); since > most {
			since = 0
			cut()
		}
	}
	unix.Close(fd)
	return bytes
}

func benchLines() []byte {
	line := append(bytes.Repeat([]byte("x"), 99), '\n')
	return bytes.Repeat(line, benchChunk/len(line))
}

func benchCopy(b *testing.B, dir string, pipeSize int) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		b.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		b.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "copy"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	done := make(chan error)
	go func() {
		defer unix.Close(p[0])
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(p[0], buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && n > 0 {
				_, err = f.Write(buf[:n])
			}
			if err != nil || n == 0 {
				done <- err
				return
			}
		}
	}()
	b.SetBytes(benchChunk)
	b.ResetTimer()
	feed(b, p[1], func() { _ = f.Truncate(0) })
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
