// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// benchChunk is what the writer writes at a time: whole lines of 100 bytes.
	benchChunk = 655 * 100

	// benchRound is after how many chunks the log is truncated, so that it does not
	// outgrow the machine. That is not counted: a kubelet renames logs.
	benchRound = (64 << 20) / benchChunk

	// benchIs names the variable that makes the test's binary another program.
	benchIs = "BERTH_BENCH_IS"
)

// BenchmarkPump moves lines of 100 bytes, which another process writes, from one
// pipe into a log, with all that belongs to it: epoll, journal, records, tail file.
// Copy is the floor: the same bytes from the same pipe into a file, as cat does it.
//
// MB/s are of what the container writes; the log gets 141 bytes for 100. cpu-ns/op is
// what the pump's process, or the copy's, used for 65,500 bytes.
//
// Where it goes (perf, ext4, kernel 6.18; of 52 µs, the copy taking 35):
//
//	pwrite of 92 kB                    56 %
//	read from the private pipe         14 %
//	records: LFs, and two copies each  15 %
//	splice, which wakes the writer      5 %
//	the Go runtime, and all the rest   10 %
//
// What it was before, and why it was 690 MB/s where it is 1,040 now:
//
//   - A visit for each chunk: epoll, a goroutine, and a tail file. A visit at full speed
//     lingers for the next chunk instead, while nobody else wants its journal.
//   - The Go runtime takes a processor away from a goroutine in a system call when
//     none is idle, or when it has run for 10 ms without yielding; and then at each of
//     its calls, with a thread woken up for nothing each time. So a visit yields, and
//     the poller does not sleep in a system call of its own (see poller).
//   - The tail file by os.File: 8 µs, 4 of them for Go's poller.
//   - The writer was a goroutine of the same process, and truncating the log was
//     counted: both told of the benchmark.
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
	feed(b, w.write[0], func() {
		t.enter() // what is on its way has been moved
		defer t.leave()
		if !t.catchUp() {
			b.Error("log was not written")
		}
	}, func() {
		t.enter()
		defer t.leave()
		t.off = 0
		if err := unix.Ftruncate(t.log, 0); err != nil {
			b.Error(err)
		}
	})
	<-t.drained
	if n, want := w.pump.written.Load(), uint64(b.N*benchChunk); n != want || w.pump.dropped.Load() != 0 {
		b.Errorf("%d bytes were pumped, of %d", n, want)
	}
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
	in := os.NewFile(uintptr(p[0]), "stream")
	cmd, said := benchProcess(b, "copy", nil, in, f)
	in.Close()
	left := b.N
	feed(b, p[1], func() {
		if left -= benchRound; left >= 0 {
			next(b, said)
		}
	}, func() { _ = f.Truncate(0) })
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// benchProcess starts this binary as another program: see TestBenchProcess. It has
// files from descriptor 3 on, and says a byte for each thing done.
func benchProcess(b *testing.B, what string, stdin io.Reader, files ...*os.File) (*exec.Cmd, io.Reader) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestBenchProcess$")
	cmd.Env = append(os.Environ(), benchIs+"="+what)
	cmd.ExtraFiles, cmd.Stdin, cmd.Stderr = files, stdin, os.Stderr
	said, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	next(b, said) // it runs
	return cmd, said
}

func next(b *testing.B, said io.Reader) {
	if _, err := io.ReadFull(said, make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
}

// feed has another process write b.N chunks to fd, which it closes. moved waits
// until they are where they belong; cut makes room for more.
func feed(b *testing.B, fd int, moved, cut func()) {
	out := os.NewFile(uintptr(fd), "stream")
	unix.CloseOnExec(fd)
	theirs, orders, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd, said := benchProcess(b, "feed", theirs, out)
	out.Close()
	theirs.Close()
	b.SetBytes(benchChunk)
	b.ResetTimer()
	used := int64(0)
	for left := b.N; left > 0; left -= benchRound {
		b.StartTimer()
		used -= ownTime(b)
		if _, err := orders.Write(strconv.AppendInt(nil, int64(min(left, benchRound)), 10)); err != nil {
			b.Fatal(err)
		}
		next(b, said)
		moved()
		used += ownTime(b)
		b.StopTimer()
		cut()
	}
	b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
	orders.Close()
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
}

// ownTime is what this process has used of its processors, in nanoseconds: unlike the
// time that passes, it tells something on a machine that others use, too.
func ownTime(b *testing.B) int64 {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return r.Utime.Nano() + r.Stime.Nano()
}

// plain is a read or write as a program in C makes it: the Go runtime does not know
// of it, and does nothing about it.
func plain(call uintptr, fd int, b []byte) int {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case unix.EINTR:
		case 0:
			return int(n)
		default:
			return -1
		}
	}
}

// TestBenchProcess is what BenchmarkPump needs another process for. "feed" reads how
// many chunks to write to descriptor 3, and says when that is done; "copy" copies
// descriptor 3 to 4, and says so after each round.
func TestBenchProcess(*testing.T) {
	what := os.Getenv(benchIs)
	if what == "" {
		return
	}
	say := func() {
		if _, err := os.Stdout.Write([]byte{1}); err != nil {
			os.Exit(1)
		}
	}
	say()
	if what == "copy" {
		buf := make([]byte, 64<<10)
		for bytes := 0; ; {
			n := plain(unix.SYS_READ, 3, buf)
			if n == 0 {
				os.Exit(0)
			}
			if n < 0 || plain(unix.SYS_WRITE, 4, buf[:n]) != n {
				os.Exit(1)
			}
			if bytes += n; bytes == benchRound*benchChunk {
				bytes = 0
				say()
			}
		}
	}
	line := append(bytes.Repeat([]byte("x"), 99), '\n')
	lines := bytes.Repeat(line, benchChunk/len(line))
	order := make([]byte, 16)
	for {
		n, err := os.Stdin.Read(order)
		if n == 0 {
			os.Exit(0)
		}
		chunks, perr := strconv.Atoi(string(order[:n]))
		if err != nil || perr != nil {
			os.Exit(1)
		}
		for range chunks {
			for rest := lines; len(rest) > 0; {
				n := plain(unix.SYS_WRITE, 3, rest)
				if n < 0 {
					os.Exit(1)
				}
				rest = rest[n:]
			}
		}
		say()
	}
}
