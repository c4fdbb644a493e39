// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// slow is a client that takes its time with the first bytes.
type slow struct {
	bytes.Buffer
	let   chan struct{}
	asked chan struct{}
}

func (s *slow) Write(b []byte) (int, error) {
	if s.asked != nil {
		close(s.asked)
		s.asked = nil
		<-s.let
	}
	return s.Buffer.Write(b)
}

// TestCopyOutDelivers holds that a slow client gets what was in the pipe when the
// deadline passed, and that an end that never comes is not waited for.
func TestCopyOutDelivers(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // what was left behind keeps it open
	to := &slow{let: make(chan struct{}), asked: make(chan struct{})}
	asked, done := to.asked, make(chan struct{})
	go func() { defer close(done); copyOut(to, r) }()
	if _, err := w.WriteString("first"); err != nil {
		t.Fatal(err)
	}
	<-asked
	rest := bytes.Repeat([]byte("x"), 60<<10)
	if _, err := w.Write(rest); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	close(to.let)
	<-done
	if got, want := to.Len(), len("first")+len(rest); got != want {
		t.Errorf("%d bytes were delivered, want %d", got, want)
	}
}

// TestCaptureIsBounded holds that a stream is cut and its writer does not wait.
func TestCaptureIsBounded(t *testing.T) {
	c, theirs, err := newCapture()
	if err != nil {
		t.Fatal(err)
	}
	const n = syncMax + 1<<20
	if written, err := io.CopyN(theirs, zeros{}, n); err != nil || written != n {
		t.Fatalf("%d bytes were taken, %v", written, err)
	}
	theirs.Close()
	if got := len(c.end()); got != syncMax {
		t.Errorf("%d bytes are kept, want %d", got, syncMax)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestMergeResources holds that what is given replaces what there is, and nothing twice:
// a kubelet names every size of huge pages in each request.
func TestMergeResources(t *testing.T) {
	have := &cri.LinuxContainerResources{
		CpuShares: 100, MemoryLimitInBytes: 1 << 30, Unified: map[string]string{"a": "1", "b": "2"},
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}},
	}
	want := &cri.LinuxContainerResources{
		CpuShares: 200, Unified: map[string]string{"a": "3"}, HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}},
	}
	mergeResources(have, want)
	if !proto.Equal(have, &cri.LinuxContainerResources{
		CpuShares: 200, MemoryLimitInBytes: 1 << 30, Unified: map[string]string{"a": "3"},
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}},
	}) {
		t.Errorf("merged: %v", have)
	}
	mergeResources(have, &cri.LinuxContainerResources{})
	if have.CpuShares != 200 || len(have.HugepageLimits) != 1 || len(have.Unified) != 1 {
		t.Errorf("nothing wanted: %v", have)
	}
}
