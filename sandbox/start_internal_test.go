// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"testing"
	"time"

	"github.com/berth-cri/berth/oci/wire"
)

// TestEndBeforeStartReturns: a program that ends at once is told of before its start has
// returned. Its times are in order all the same, and a start that failed has none.
func TestEndBeforeStartReturns(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fails  error
		code   int32
		reason string
	}{
		{"starts", nil, 3, ReasonError},
		{"fails", errors.New("planted"), exitStartError, ReasonStartError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newNode(t).boot(-1, nil)
			defer l.end()
			ctx := t.Context()
			if err := l.rt.Recover(ctx); err != nil {
				t.Fatal(err)
			}
			pod, err := l.rt.RunPod(ctx, podConfig("p", 0), "")
			if err != nil {
				t.Fatal(err)
			}
			id, err := l.rt.CreateContainer(ctx, string(pod), containerConfig("c"))
			if err != nil {
				t.Fatal(err)
			}
			l.rt.at = func(point string) error {
				if point == "entered "+stepProcess {
					l.rt.noteExit(ctx, wire.Exit{ID: string(id), Code: 3, At: time.Now()})
					return errors.Join(tc.fails, l.point(point))
				}
				return l.point(point)
			}
			if err := l.rt.StartContainer(ctx, string(id)); !errors.Is(err, tc.fails) {
				t.Fatalf("start: %v, want %v", err, tc.fails)
			}
			s, err := l.rt.ContainerStatus(string(id))
			if err != nil {
				t.Fatal(err)
			}
			if s.ExitCode != tc.code || s.Reason != tc.reason {
				t.Errorf("ended as %d, %s; want %d, %s", s.ExitCode, s.Reason, tc.code, tc.reason)
			}
			if started := s.StartedAt >= s.CreatedAt && s.StartedAt <= s.FinishedAt; started != (tc.fails == nil) || !started && s.StartedAt != 0 {
				t.Errorf("created %d, started %d, finished %d", s.CreatedAt, s.StartedAt, s.FinishedAt)
			}
		})
	}
}
