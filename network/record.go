// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/berth-cri/berth/store"
)

// A record says what a pod is attached to, or was about to be. It is written before the first ADD, and
// never again: results are libcni's to keep, in results/ beside the records, and the caller's.
//
// The plugins of an operation are handed its record as an open file that holds a lock (flock). When
// berth dies in the middle of an ADD, its plugins go on for a moment; the lock is theirs then, and who
// comes next waits until the last of them has ended, else a DEL could overtake an ADD.
type record struct {
	Pod          store.PodID    `json:"pod"`
	NetNS        string         `json:"netns"`
	Args         [][2]string    `json:"args"`
	Capabilities map[string]any `json:"capabilities,omitempty"`
	Networks     []attachment   `json:"networks"`
}

type attachment struct {
	Interface string          `json:"interface"`
	Config    json.RawMessage `json:"config"` // with all its plugins
}

// errDamaged says that a record cannot be read.
var errDamaged = errors.New("damaged record")

const (
	recordSuffix  = ".json"
	damagedSuffix = ".damaged"
	draftPrefix   = ".draft-"
)

// records is the folder of the records.
type records struct {
	dir string
	// orphanWait is how long the plugins of an operation that berth has not survived are waited for.
	orphanWait time.Duration
}

// openRecords makes the folder, and removes the drafts of writers that died.
func openRecords(dir string) (records, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return records{}, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return records{}, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), draftPrefix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return records{}, err
			}
		}
	}
	return records{dir: dir, orphanWait: 10 * time.Second}, nil
}

func (r records) path(pod store.PodID) string { return filepath.Join(r.dir, string(pod)+recordSuffix) }

// read returns the record of a pod; fs.ErrNotExist, or errDamaged.
func (r records) read(pod store.PodID) (*record, error) {
	b, err := os.ReadFile(r.path(pod))
	if err != nil {
		return nil, err
	}
	rec := &record{}
	if err := json.Unmarshal(b, rec); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", r.path(pod), errDamaged, err)
	}
	if rec.Pod != pod || len(rec.Networks) == 0 {
		return nil, fmt.Errorf("%s: %w: it is of pod %.200q, with %d networks", r.path(pod), errDamaged, rec.Pod, len(rec.Networks))
	}
	return rec, nil
}

// write makes the record of a pod, durably: after a power cut the addresses that a plugin keeps on the
// disk have to be found again.
func (r records) write(rec *record) (err error) {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(r.dir, draftPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), r.path(rec.Pod)); err != nil {
		return err
	}
	dir, err := os.Open(r.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// remove takes a record away. One that comes back after a power cut is of a pod that was detached,
// which can be done again.
func (r records) remove(pod store.PodID) error {
	if err := os.Remove(r.path(pod)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// setAside keeps a record that cannot be read, under a name that is no record's.
func (r records) setAside(pod store.PodID) error {
	return os.Rename(r.path(pod), r.path(pod)+damagedSuffix)
}

// list returns the pods that have a record, in order.
func (r records) list() ([]store.PodID, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var pods []store.PodID
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if pod := store.PodID(id); ok && !e.IsDir() && checkID(pod) == nil {
			pods = append(pods, pod)
		}
	}
	slices.Sort(pods)
	return pods, nil
}

// lock opens the record of a pod, and takes its lock. Plugins that an earlier berth has left are waited
// for, and then passed over: of one that leaves a process behind for good, the lock would never come.
func (r records) lock(ctx context.Context, pod store.PodID) (*os.File, error) {
	f, err := os.Open(r.path(pod))
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, r.orphanWait)
	defer cancel()
	// The kernel tells nobody of a lock that has become free, but those who sleep in flock.
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		select {
		case <-time.After(pause):
		case <-wait.Done():
			if err := context.Cause(ctx); err != nil {
				f.Close()
				return nil, err
			}
			return f, nil
		}
	}
}

// unlock lets go of the lock: for all who have the file, so that what a plugin has left running on
// purpose keeps nobody out; but where plugins were killed, only when the last of them is gone.
func unlock(f *os.File, killed bool) {
	if !killed {
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
	f.Close()
}

// dropResults removes the results of a pod that libcni has not.
func (r records) dropResults(pod store.PodID) error {
	results := filepath.Join(r.dir, "results")
	entries, err := os.ReadDir(results)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		// NETWORK-POD-INTERFACE
		end := strings.LastIndexByte(e.Name(), '-')
		if end >= 0 && strings.HasSuffix(e.Name()[:end], "-"+string(pod)) {
			if err := os.Remove(filepath.Join(results, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// configs makes the lists of a record again.
func (rec *record) configs() ([]*libcni.NetworkConfigList, error) {
	var lists []*libcni.NetworkConfigList
	for _, a := range rec.Networks {
		list, err := libcni.NetworkConfFromBytes(bytes.Clone(a.Config))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		lists = append(lists, list)
	}
	return lists, nil
}

// runtimeConf is what libcni is told of the pod.
func (rec *record) runtimeConf(netns, ifname string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: string(rec.Pod), NetNS: netns, IfName: ifname,
		Args: rec.Args, CapabilityArgs: rec.Capabilities,
	}
}
