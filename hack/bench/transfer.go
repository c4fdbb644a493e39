// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pulls measures each image of -pull, from nothing to unpacked. Layers that it shares with images that
// stay are not pulled: which image is given is up to the caller.
func pulls(ctx context.Context, s *session, t *sheet) error {
	for _, image := range s.cfg.pulls {
		spec := &cri.ImageSpec{Image: image, UserSpecifiedImage: image}
		remove := func() error {
			_, err := s.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec})
			return err
		}
		if err := remove(); err != nil {
			return fmt.Errorf("remove %s: %w", image, err)
		}
		err := t.timed("pull "+image, func() error {
			_, err := s.images.PullImage(ctx, &cri.PullImageRequest{Image: spec})
			return err
		})
		if err := errors.Join(err, remove()); err != nil {
			return err
		}
	}
	return nil
}

// The log: a block of lines is written again and again, since making them takes longer than writing.
const (
	logLine   = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz-" // 99 bytes
	logBlocks = 10
	// minHead is the shortest head of a line in the log: 2026-01-02T15:04:05Z stdout F and a space.
	minHead = 30
)

// chatters is a first process that writes n lines after one that tells when it began, and stays: what
// writes its log shall be there when its CPU time is read.
func chatters(n int) []string {
	return []string{"/bin/sh", "-c", fmt.Sprintf(`trap 'exit 0' TERM
yes %s | head -n %d >/block || exit 1
echo ready
cat %s || exit 1
sleep 3600 & wait`, logLine, n/logBlocks, strings.Repeat(" /block", logBlocks))}
}

// logs measures how fast what a container writes gets into its log file: from the stamp of the line
// before until the file was last written to.
func logs(ctx context.Context, s *session, t *sheet) error {
	p, err := s.runPod(ctx, hostNetwork, untimed)
	if err != nil {
		return err
	}
	if err := s.startContainer(ctx, p, chatters(s.cfg.logLines), untimed); err != nil {
		return err
	}
	before, err := s.usage(ctx)
	if err != nil {
		return err
	}
	count, end, err := s.awaitLog(ctx, p)
	if err != nil {
		return fmt.Errorf("wait for %d lines in the log: %w; it has %d whole, %d torn, %d others",
			s.cfg.logLines, err, count.whole, count.torn, count.other)
	}
	after, err := s.usage(ctx)
	if err != nil {
		return err
	}
	took := end.Sub(count.first)
	if n := count.whole + count.torn; n != s.cfg.logLines || count.other > 0 || took <= 0 {
		return fmt.Errorf("%w: %d whole lines, %d torn, %d others in %v; %d were written",
			errResult, count.whole, count.torn, count.other, took, s.cfg.logLines)
	}
	size := float64(s.cfg.logLines * (len(logLine) + 1))
	t.add("log throughput", megabytes, size/1e6/took.Seconds())
	t.add("lines torn", lines, float64(count.torn))
	t.add("CPU per GB of log", cpuPerGB, (after.cpu-before.cpu).Seconds()/(size/1e9))
	return s.removePod(ctx, p, untimed)
}

// awaitLog waits until as many lines are in the log of a pod as are written, and returns when the last
// write was. Counting would take time from the writers: it begins when the file has stopped to grow.
func (s *session) awaitLog(ctx context.Context, p *pod) (count logCount, end time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.timeout)
	defer cancel()
	const still = 200 * time.Millisecond
	least := int64(s.cfg.logLines) * int64(minHead+len(logLine)+1)
	err = poll(ctx, still/10, func() (bool, error) {
		r, err := s.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container})
		if err != nil {
			return false, err
		}
		if r.GetStatus().GetState() != cri.ContainerState_CONTAINER_RUNNING {
			return false, fmt.Errorf("%w: the container ended with %d", errResult, r.GetStatus().GetExitCode())
		}
		info, err := os.Stat(p.log)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil // nothing was written yet
		}
		if err != nil || info.Size() < least || time.Since(info.ModTime()) < still {
			return false, err
		}
		file, err := os.Open(p.log)
		if err != nil {
			return false, err
		}
		defer file.Close()
		end = info.ModTime()
		count, err = countLog(file, logLine)
		return count.whole+count.torn+count.other >= s.cfg.logLines, err
	})
	return count, end, err
}
