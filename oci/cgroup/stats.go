// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Opt is a value that the kernel or the group may not have.
type Opt[T any] struct {
	V  T
	OK bool
}

// Stats is one reading of a group's counters. A part is not OK where the group lacks the
// controller, or the kernel the file. The values agree with what containerd gives for the same
// group and, but where said, with cAdvisor; below, the files they come from.
type Stats struct {
	// Time is when the reading began; it stands for all parts.
	Time   time.Time
	CPU    Opt[CPU]
	Memory Opt[Memory]
	Swap   Opt[Swap]
	Pids   Opt[Pids]
	// IO is the pressure on block devices. v2: io.pressure. v1: none.
	IO Opt[PSI]
}

// CPU is what the group's processes ran.
type CPU struct {
	// Usage is the time on all CPUs together, in ns. v1: cpuacct.usage. v2: usage_usec of
	// cpu.stat × 1000, there even without the cpu controller.
	Usage uint64
	// PSI: v2: cpu.pressure. v1: none.
	PSI Opt[PSI]
}

// Memory is in bytes, but for the faults.
type Memory struct {
	// Usage includes the page cache. v1: memory.usage_in_bytes. v2: memory.current.
	Usage uint64
	// WorkingSet is Usage less the file pages that were not used of late, at least 0: what the
	// kubelet evicts by. v1: usage − total_inactive_file of memory.stat. v2: usage − inactive_file.
	WorkingSet uint64
	// RSS is anonymous memory, not the sum of the processes' RSS. v1: total_rss of memory.stat. v2: anon.
	RSS uint64
	// PageFaults, MajorPageFaults: v1: total_pgfault, total_pgmajfault of memory.stat (as
	// containerd; cAdvisor takes pgfault, without inner groups). v2: pgfault, pgmajfault.
	PageFaults, MajorPageFaults uint64
	// Limit is the group's own. v1: memory.limit_in_bytes. v2: memory.max. Not OK without one, or
	// above 2^62, which is v1's way to say so.
	Limit Opt[uint64]
	// Available is Limit − WorkingSet, at least 0; not OK without a limit (containerd then gives 0).
	Available Opt[uint64]
	// PSI: v2: memory.pressure. v1: none.
	PSI Opt[PSI]
}

// Swap is in bytes. It is not OK where the kernel does not account swap.
type Swap struct {
	// Usage: v1: total_swap of memory.stat. v2: memory.swap.current.
	Usage uint64
	// Available is what is left of the limit, at least 0; not OK without one. v2: memory.swap.max
	// − Usage. v1: memory.memsw.limit_in_bytes − memory.limit_in_bytes − Usage: the first limit is
	// memory and swap together, which cAdvisor and CRI-O take for swap alone.
	Available Opt[uint64]
}

// Pids counts tasks: threads, not only processes, as the kernel's limit does.
type Pids struct {
	// Current: pids.current, v1 and v2.
	Current uint64
	// Limit: pids.max, v1 and v2. Not OK for "max".
	Limit Opt[uint64]
}

// PSI is pressure stall information (Linux 4.20; per group on v2 only).
type PSI struct {
	// Some: at least one task waited. Full: all did; not OK for the CPU before Linux 5.13.
	Some Pressure
	Full Opt[Pressure]
}

// Pressure is one line of a pressure file.
type Pressure struct {
	// Percent of the time, averaged over the last 10, 60 and 300 seconds.
	Avg10, Avg60, Avg300 float64
	// Total is the time lost since the group was made, in ns: the kernel's total is in µs.
	Total uint64
}

// unlimited is the size above which cAdvisor, the kubelet and containerd take a limit for none:
// v1's default is the largest int64, rounded down to a page.
const unlimited = 1 << 62

// Stats reads the group's counters. It opens each file once, walks no folders, and waits for
// nothing but the kernel's flushing of its counters. ErrGone if the group is gone, whole or in
// part (its removal has begun).
func (g Group) Stats() (Stats, error) {
	s := Stats{Time: time.Now()}
	var buf [4096]byte
	var err error
	switch g.version {
	case V1:
		err = g.statsV1(&s, buf[:])
	case V2:
		err = statsV2(&s, g.members[0].path, buf[:])
	default:
		err = errZero
	}
	if err != nil {
		return Stats{}, err
	}
	return s, nil
}

func statsV2(s *Stats, dir string, buf []byte) error {
	r := openDir(dir)
	if usec, ok := lookup(r.read(buf, "cpu.stat"), "usage_usec"); ok {
		s.CPU = Opt[CPU]{CPU{mulSat(usec, 1000), r.psi(buf, "cpu.pressure")}, true}
	}
	if usage := r.uint(buf, "memory.current"); usage.OK {
		m := Memory{Usage: usage.V}
		var inactive uint64
		for text := r.read(buf, "memory.stat"); len(text) > 0; {
			var key []byte
			var v uint64
			key, v, text = nextField(text)
			switch string(key) {
			case "anon":
				m.RSS = v
			case "inactive_file":
				inactive = v
			case "pgfault":
				m.PageFaults = v
			case "pgmajfault":
				m.MajorPageFaults = v
			}
		}
		m.settle(inactive, r.uint(buf, "memory.max"))
		m.PSI = r.psi(buf, "memory.pressure")
		s.Memory = Opt[Memory]{m, true}
	}
	if usage := r.uint(buf, "memory.swap.current"); usage.OK {
		s.Swap = Opt[Swap]{Swap{usage.V, left(r.uint(buf, "memory.swap.max"), usage.V)}, true}
	}
	s.Pids = r.pids(buf)
	s.IO = r.psi(buf, "io.pressure")
	return r.done()
}

func (g Group) statsV1(s *Stats, buf []byte) error {
	if dir, ok := g.path("cpuacct"); ok {
		r := openDir(dir)
		usage := r.uint(buf, "cpuacct.usage")
		s.CPU = Opt[CPU]{CPU{Usage: usage.V}, usage.OK}
		if err := r.done(); err != nil {
			return err
		}
	}
	if dir, ok := g.path("memory"); ok {
		r := openDir(dir)
		r.memoryV1(buf, s)
		if err := r.done(); err != nil {
			return err
		}
	}
	if dir, ok := g.path("pids"); ok {
		r := openDir(dir)
		s.Pids = r.pids(buf)
		if err := r.done(); err != nil {
			return err
		}
	}
	return nil
}

func (r *dirReader) memoryV1(buf []byte, s *Stats) {
	usage := r.uint(buf, "memory.usage_in_bytes")
	if !usage.OK {
		return
	}
	m := Memory{Usage: usage.V}
	var inactive, swap uint64
	for text := r.read(buf, "memory.stat"); len(text) > 0; {
		var key []byte
		var v uint64
		key, v, text = nextField(text)
		switch string(key) {
		case "total_rss":
			m.RSS = v
		case "total_inactive_file":
			inactive = v
		case "total_pgfault":
			m.PageFaults = v
		case "total_pgmajfault":
			m.MajorPageFaults = v
		case "total_swap":
			swap = v
		}
	}
	m.settle(inactive, r.uint(buf, "memory.limit_in_bytes"))
	s.Memory = Opt[Memory]{m, true}
	// The file is there exactly where swap is accounted.
	if both := r.uint(buf, "memory.memsw.limit_in_bytes"); both.OK {
		limit := Opt[uint64]{subSat(both.V, m.Limit.V), m.Limit.OK && both.V <= unlimited}
		s.Swap = Opt[Swap]{Swap{swap, left(limit, swap)}, true}
	}
}

// settle derives the rest from what was read.
func (m *Memory) settle(inactiveFile uint64, limit Opt[uint64]) {
	m.WorkingSet = subSat(m.Usage, inactiveFile)
	if limit.OK && limit.V <= unlimited {
		m.Limit = limit
	}
	m.Available = left(m.Limit, m.WorkingSet)
}

func left(limit Opt[uint64], used uint64) Opt[uint64] {
	if !limit.OK || limit.V > unlimited {
		return Opt[uint64]{}
	}
	return Opt[uint64]{subSat(limit.V, used), true}
}

// dirReader reads files of one folder. A file that is not there reads as nothing; every other
// error sticks, and done returns it. The buffer is not a field, and no error holds what is in it,
// so that it can stay on the stack of Stats.
type dirReader struct {
	dir    string
	fd     int
	absent bool // a file was not there
	err    error
}

func openDir(dir string) dirReader {
	fd, err := retry(func() (int, error) {
		return unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	r := dirReader{dir: dir, fd: fd}
	if err != nil {
		r.fail("", err)
	}
	return r
}

// done closes the reader and gives the first error. Files that are not there may mean that the
// folder has gone since it was opened: every cgroup has its list of processes.
func (r *dirReader) done() error {
	if r.err == nil && r.absent && unix.Faccessat(r.fd, procsFile, unix.F_OK, 0) != nil {
		r.fail(procsFile, unix.ENODEV)
	}
	if r.fd >= 0 {
		unix.Close(r.fd)
	}
	return r.err
}

func (r *dirReader) fail(file string, err error) {
	if isGone(err) {
		r.err = fmt.Errorf("%s: %w", r.dir, ErrGone)
		return
	}
	r.err = fmt.Errorf("%s/%s: %w", r.dir, file, err)
}

// read gives what stays valid until the next read into buf.
func (r *dirReader) read(buf []byte, file string) []byte {
	if r.err != nil {
		return nil
	}
	text, err := readAt(r.fd, file, buf)
	switch {
	case err == nil:
		return text
	case errors.Is(err, unix.ENOENT):
		r.absent = true
	case errors.Is(err, unix.EOPNOTSUPP): // pressure files of a kernel booted with psi=0
	default:
		r.fail(file, err)
	}
	return nil
}

// uint reads a file of one number, or of "max", which is math.MaxUint64.
func (r *dirReader) uint(buf []byte, file string) Opt[uint64] {
	text := r.read(buf, file)
	if len(text) == 0 {
		return Opt[uint64]{}
	}
	if string(text) == "max\n" {
		return Opt[uint64]{math.MaxUint64, true}
	}
	n, ok := parseUint(text)
	if !ok {
		r.fail(file, fmt.Errorf("%q is no number", string(text)))
	}
	return Opt[uint64]{n, ok}
}

func (r *dirReader) psi(buf []byte, file string) Opt[PSI] {
	text := r.read(buf, file)
	if len(text) == 0 {
		return Opt[PSI]{}
	}
	p, ok := parsePSI(text)
	if !ok {
		r.fail(file, fmt.Errorf("%q is no pressure", string(text)))
	}
	return Opt[PSI]{p, ok}
}

func (r *dirReader) pids(buf []byte) Opt[Pids] {
	current := r.uint(buf, "pids.current")
	if !current.OK {
		return Opt[Pids]{}
	}
	limit := r.uint(buf, "pids.max")
	if limit.V > unlimited {
		limit = Opt[uint64]{}
	}
	return Opt[Pids]{Pids{current.V, limit}, true}
}
