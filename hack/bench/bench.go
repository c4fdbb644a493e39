// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// config is what the flags say, but for the endpoints.
type config struct {
	image        string
	pods         int // idle ones
	rounds       int
	lives        int // pods in each phase of lives
	execs        int
	logLines     int
	phases       []string
	pulls        []string
	logDir       string // absolute
	disk         string
	cgroupParent string
	timeout      time.Duration // of a wait for one thing
}

// phase is a part of a round.
type phase struct {
	name     string
	about    string
	machine  bool // needs no endpoint, and is done once in a round
	standing bool // needs idle pods, which it shares with the next such phase
	run      func(context.Context, *session, *sheet) error
}

func phases() []phase {
	return []phase{
		{name: "floor", about: "what the kernel alone needs", machine: true, run: floor},
		{name: "life-host", about: "lives of pods, network of the host, one at a time", run: lives(hostNetwork, 1)},
		{name: "life-host-8", about: "lives of pods, network of the host, 8 at a time", run: lives(hostNetwork, 8)},
		{name: "life-cni", about: "lives of pods, CNI, one at a time", run: lives(cniNetwork, 1)},
		{name: "life-cni-8", about: "lives of pods, CNI, 8 at a time", run: lives(cniNetwork, 8)},
		{name: "exec", about: "execs in one container, 8 at a time", run: execs},
		{name: "memory", about: "memory of the runtime's processes", standing: true, run: memory},
		{name: "lists", about: "lists with idle pods", standing: true, run: lists},
		{name: "restart", about: "kill of the daemon with idle pods", standing: true, run: restart},
		{name: "pull", about: "pull and unpack", run: pulls},
		{name: "logs", about: "a container writes lines of 100 bytes", run: logs},
	}
}

// bench is one run.
type bench struct {
	cfg       *config
	endpoints []*endpoint
	progress  io.Writer
	report    *report
	run       string
	logs      string // a folder of its own
	next      atomic.Int64
}

// runBench measures one or two endpoints. The error is of what comes before any phase; what fails later
// is in the report.
func runBench(ctx context.Context, cfg *config, targets []target, progress io.Writer) (*report, error) {
	b := &bench{cfg: cfg, progress: progress, run: strconv.FormatInt(time.Now().UnixNano(), 36)}
	defer func() {
		for _, e := range b.endpoints {
			e.conn.Close()
		}
	}()
	for _, t := range targets {
		e, err := dial(ctx, t)
		if err != nil {
			return nil, err
		}
		b.endpoints = append(b.endpoints, e)
		if err := e.cleanup(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", t.address, err)
		}
		if err := e.haveImage(ctx, cfg.image); err != nil {
			return nil, fmt.Errorf("%s: image %s: %w", t.address, cfg.image, err)
		}
	}
	logs, err := os.MkdirTemp(cfg.logDir, "berth-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(logs) }() // where we return early
	if b.logs, err = filepath.Abs(logs); err != nil {
		return nil, err
	}
	if b.report, err = newReport(cfg, b.endpoints); err != nil {
		return nil, err
	}
	for round := range cfg.rounds {
		b.round(ctx, round)
		if err := context.Cause(ctx); err != nil {
			b.report.fail(round+1, machine, "interrupted", err)
			break
		}
	}
	for _, e := range b.endpoints {
		if err := e.cleanup(ctx); err != nil {
			b.report.fail(0, e.address, "end", err)
		}
	}
	if err := os.RemoveAll(logs); err != nil {
		b.report.fail(0, machine, "end", err)
	}
	b.report.sum()
	return b.report, nil
}

// haveImage pulls the image of the pods where it is not there yet.
func (e *endpoint) haveImage(ctx context.Context, image string) error {
	spec := &cri.ImageSpec{Image: image, UserSpecifiedImage: image}
	status, err := e.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil || status.GetImage() != nil {
		return err
	}
	_, err = e.images.PullImage(ctx, &cri.PullImageRequest{Image: spec})
	return err
}

// round runs all phases on all endpoints; the endpoint that begins changes from one to the next.
func (b *bench) round(ctx context.Context, round int) {
	order := slices.Clone(b.endpoints)
	if round%2 == 1 {
		slices.Reverse(order)
	}
	selected := slices.DeleteFunc(phases(), func(p phase) bool { return !slices.Contains(b.cfg.phases, p.name) })
	for len(selected) > 0 {
		n := 1
		for n < len(selected) && selected[0].standing && selected[n].standing {
			n++
		}
		group := selected[:n]
		selected = selected[n:]
		if group[0].machine {
			b.group(ctx, round, nil, group)
			continue
		}
		for _, e := range order {
			b.group(ctx, round, e, group)
		}
	}
}

// group runs phases that share pods on one endpoint, or on none, and removes the pods.
func (b *bench) group(ctx context.Context, round int, e *endpoint, group []phase) {
	s := &session{endpoint: e, cfg: b.cfg, run: b.run, logs: b.logs, next: &b.next}
	name := machine
	if e != nil {
		name = e.address
	}
	for _, p := range group {
		if ctx.Err() != nil {
			return // interrupted: the run says so
		}
		if p.name == "restart" && e.restart == "" {
			continue
		}
		fmt.Fprintf(b.progress, "round %d of %d: %s: %s\n", round+1, b.cfg.rounds, p.name, name)
		err := b.phase(ctx, round, name, s, p)
		if err == nil {
			continue
		}
		b.report.fail(round+1, name, p.name, err)
		fmt.Fprintf(b.progress, "  %v\n", err)
		b.clear(ctx, round, s, p)
	}
	b.clear(ctx, round, s, group[len(group)-1])
}

// clear removes what pods there are.
func (b *bench) clear(ctx context.Context, round int, s *session, p phase) {
	s.standing = nil
	if s.endpoint == nil {
		return
	}
	if err := s.cleanup(ctx); err != nil {
		b.report.fail(round+1, s.address, p.name, err)
	}
}

// phase runs one phase; its samples count only if all of it succeeded.
func (b *bench) phase(ctx context.Context, round int, name string, s *session, p phase) error {
	syncs, err := fsyncTimes(b.cfg.disk, 20)
	if err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	sheet := newSheet()
	if err := p.run(limited, s, sheet); err != nil {
		return err
	}
	load, err := loadAverage("/proc")
	if err != nil {
		return err
	}
	b.report.add(sheet.result(result{
		Round: round + 1, Endpoint: name, Phase: p.name,
		Load: load, Fsync: quantilesOf(syncs).P50,
	}))
	return nil
}
