// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// paths touches paths of the host, any of which may be on a dead file system: a
// call that does not come back keeps its thread, and its goroutine, for as long as
// the machine is up. So there is a limit to how long anybody waits and to how many
// such calls there are, for a pod and for the node.
type paths struct {
	limit         time.Duration
	perPod, total int

	mu sync.Mutex
	// By pod: calls that nobody waits for any more.
	stuck map[string]int // +checklocks:mu
	all   int            // +checklocks:mu
}

func newPaths() *paths {
	return &paths{limit: 10 * time.Second, perPod: 4, total: 64, stuck: make(map[string]int)}
}

// touch runs fn, which touches path, for a pod. It returns ErrStuck when fn does not
// come back in time, or when too many others have not. What fn found is then of no use.
func (p *paths) touch(ctx context.Context, pod, path string, fn func() error) error {
	p.mu.Lock()
	full := p.stuck[pod] >= p.perPod || p.all >= p.total
	p.mu.Unlock()
	if full {
		return fmt.Errorf("%s: %w: others that do not answer are still waited for", path, ErrStuck)
	}
	var (
		done = make(chan error, 1)
		left = false // nobody waits; under mu
		back = false // fn has come back; under mu
	)
	go func() {
		err := fn()
		p.mu.Lock()
		defer p.mu.Unlock()
		back = true
		if left {
			p.all--
			if p.stuck[pod]--; p.stuck[pod] == 0 {
				delete(p.stuck, pod)
			}
		}
		done <- err
	}()
	timer := time.NewTimer(p.limit)
	defer timer.Stop()
	var why error
	select {
	case err := <-done:
		return err
	case <-timer.C:
		why = fmt.Errorf("%s: %w for %v", path, ErrStuck, p.limit)
	case <-ctx.Done():
		why = fmt.Errorf("%s: %w", path, context.Cause(ctx))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !back {
		left = true
		p.all++
		p.stuck[pod]++
	}
	return why
}

// read reads a small file of the host.
func (p *paths) read(ctx context.Context, pod, path string, limit int64) ([]byte, error) {
	content := make(chan []byte, 1) // it may come when nobody waits any more
	err := p.touch(ctx, pod, path, func() error {
		// Not to wait for the other end of a FIFO; a regular file does not mind.
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() {
			return fmt.Errorf("%s: not a regular file", path)
		}
		read, err := io.ReadAll(io.LimitReader(f, limit+1))
		if err == nil && int64(len(read)) > limit {
			return fmt.Errorf("%s: larger than %d bytes", path, limit)
		}
		content <- read
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-content, nil
}

// exists returns an error that names the path unless there is something.
func (p *paths) exists(ctx context.Context, pod, path string) error {
	err := p.touch(ctx, pod, path, func() error { _, err := os.Stat(path); return err })
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s does not exist on the node", path)
	}
	return err
}
