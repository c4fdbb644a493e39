// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// What no runtime can be faster than, by the names of the floor's figures.
const (
	floorExec   = "fork+exec"
	floorCreate = "fork+exec in new namespaces"
	floorLog    = "cat of a pipe into a file"
)

// floorOf names the floor below a figure, or "". It is measured one at a time, and so compared only
// with what is.
func floorOf(phase, measure string) string {
	switch {
	case phase == "logs" && measure == "log throughput":
		return floorLog
	case phase != "life-host" && phase != "life-cni":
		return ""
	case measure == "ExecSync true":
		return floorExec
	case measure == "CreateContainer+StartContainer":
		return floorCreate
	}
	return ""
}

// floor measures what the kernel alone needs. The cgroup is not there: v1 has no way to be born in one.
func floor(ctx context.Context, s *session, t *sheet) error {
	const namespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
	for range s.cfg.execs {
		for name, flags := range map[string]uintptr{floorExec: 0, floorCreate: namespaces} {
			cmd := exec.CommandContext(ctx, "true")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
			if err := t.timed(name, cmd.Run); err != nil {
				return err
			}
		}
	}
	return s.floorOfLogs(ctx, t)
}

// floorOfLogs writes what the container of the phase logs writes, through a pipe.
func (s *session) floorOfLogs(ctx context.Context, t *sheet) error {
	block, out := filepath.Join(s.logs, "block"), filepath.Join(s.logs, "floor")
	defer func() { _ = os.Remove(block) }()
	defer func() { _ = os.Remove(out) }()
	text := strings.Repeat(logLine+"\n", s.cfg.logLines/logBlocks)
	if err := os.WriteFile(block, []byte(text), 0o600); err != nil {
		return err
	}
	file, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	writer := exec.CommandContext(ctx, "cat", slices.Repeat([]string{block}, logBlocks)...)
	writer.Stdout = w
	reader := exec.CommandContext(ctx, "cat")
	reader.Stdin, reader.Stdout = r, file

	began := time.Now()
	err = writer.Start()
	w.Close() // or the reader never sees the end
	if err != nil {
		return err
	}
	readErr := reader.Run()
	if err := writer.Wait(); err != nil || readErr != nil {
		return fmt.Errorf("%s: %w, %w", floorLog, err, readErr)
	}
	t.add(floorLog, megabytes, float64(len(text)*logBlocks)/1e6/time.Since(began).Seconds())
	return nil
}

// fsyncTimes returns how long some fsyncs of 4 KiB take in a folder, in ms.
func fsyncTimes(dir string, n int) ([]float64, error) {
	file, err := os.CreateTemp(dir, ".bench-fsync-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	defer file.Close()
	times := make([]float64, 0, n)
	for range n {
		if _, err := file.Write(make([]byte, 4<<10)); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := file.Sync(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began).Seconds()*1e3)
	}
	return times, nil
}
