// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// quiet is how long nothing may have happened before the folder is read: files are not written in
	// one go, and while the first is cut short the second would be the pods' network. noisy bounds it.
	quiet = 100 * time.Millisecond
	noisy = 2 * time.Second
	// A mount on the folder, and a link on the way to it that leads elsewhere, make no event; so it is
	// read now and then anyway, more often where the kernel has no watch for us.
	rereadWatched   = 30 * time.Second
	rereadUnwatched = 2 * time.Second

	maxWatches = 100
)

// watch reads the folder when something happens in it, or to it.
func (n *Network) watch(log klog.Logger) {
	warned := false
	var unsettled time.Time // since when
	for {
		// New watches first, and then the folder: what happens in between is an event. All of them
		// anew, since a folder that is replaced is another, and so is all below it.
		var events chan fsnotify.Event
		var errs chan error
		paths := n.watchPaths()
		w, err := fsnotify.NewWatcher()
		if err == nil {
			events, errs = w.Events, w.Errors
			for _, p := range paths {
				// Those that are not there appear in one that is.
				if e := w.Add(p); !errors.Is(e, fs.ErrNotExist) && !errors.Is(e, unix.ENOTDIR) {
					err = errors.Join(err, e)
				}
			}
		}
		if err != nil && !warned {
			log.Error(err, "The folder of CNI configurations cannot be watched, and is read every two seconds instead", "dir", n.cfg.ConfDir)
			warned = true
		}
		again := rereadWatched
		if err != nil {
			again = rereadUnwatched
		}
		if n.reload(log, !unsettled.IsZero() && time.Since(unsettled) > noisy) {
			unsettled = time.Time{}
		} else {
			if unsettled.IsZero() {
				unsettled = time.Now()
			}
			again = quiet
		}
		more := n.waitForEvent(paths, events, errs, again)
		if w != nil {
			w.Close()
		}
		if !more {
			return
		}
	}
}

// watchPaths are the folder, all above it, and the folders in it, which may be those of a network's
// plugins.
func (n *Network) watchPaths() []string {
	paths := []string{n.cfg.ConfDir}
	for p := n.cfg.ConfDir; p != "/"; {
		p = filepath.Dir(p)
		paths = append(paths, p)
	}
	entries, _ := os.ReadDir(n.cfg.ConfDir) // what is wrong with it, reload says
	for _, e := range entries {
		if e.IsDir() && len(paths) < maxWatches {
			paths = append(paths, filepath.Join(n.cfg.ConfDir, e.Name()))
		}
	}
	return paths
}

// waitForEvent returns true when it is time to read, at the latest after the given time, and false when
// it is time to end.
func (n *Network) waitForEvent(paths []string, events <-chan fsnotify.Event, errs <-chan error, again time.Duration) bool {
	timer := time.NewTimer(again)
	defer timer.Stop()
	var latest <-chan time.Time
	stir := func() {
		timer.Reset(quiet)
		if latest == nil {
			latest = time.After(noisy)
		}
	}
	for {
		select {
		case <-n.stop:
			return false
		case <-timer.C:
			return true
		case <-latest:
			return true
		case e, ok := <-events:
			if !ok {
				events = nil
			} else if n.concerns(paths, e) {
				stir()
			}
		case _, ok := <-errs: // events were lost
			if !ok {
				errs = nil
			} else {
				stir()
			}
		}
	}
}

// concerns reports whether an event is in the folder, or is of the way to it: above it others work.
func (n *Network) concerns(paths []string, e fsnotify.Event) bool {
	return e.Op != fsnotify.Chmod &&
		(strings.HasPrefix(e.Name, n.cfg.ConfDir+"/") || slices.Contains(paths, e.Name))
}

// reload reads the folder, and has the plugins asked if it has changed. It returns false, and leaves all
// as it was, where a file may be half written; unless it is told to take what is there.
func (n *Network) reload(log klog.Logger, takeIt bool) (settled bool) {
	set := loadConfs(n.cfg.ConfDir, time.Now())
	if set.unsettled && !takeIt {
		return false
	}
	n.mu.Lock()
	same := set.equal(n.confs)
	old := n.confs
	if !same {
		n.confs = set
		n.probe.known = false
		n.announceLocked()
	}
	n.mu.Unlock()
	if same {
		return true
	}
	n.wantProbe()
	for _, e := range set.invalid {
		if !slices.ContainsFunc(old.invalid, func(o *ConfigError) bool { return o.Error() == e.Error() }) {
			log.Error(e.Err, "A CNI configuration is not valid, and is skipped", "dir", n.cfg.ConfDir, "file", e.File)
		}
	}
	switch {
	case set.err != nil:
		log.Error(set.err, "The folder of CNI configurations cannot be read", "dir", n.cfg.ConfDir)
	case len(set.valid) == 0:
		log.Info("There is no valid CNI configuration", "dir", n.cfg.ConfDir)
	default:
		log.Info("CNI configuration", "network", set.valid[0].list.Name, "file", set.valid[0].file, "dir", n.cfg.ConfDir)
	}
	return true
}

// announceLocked tells those who wait for a change.
//
// +checklocks:n.mu
func (n *Network) announceLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}
