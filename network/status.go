// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ReasonNotReady is the reason of the condition NetworkReady that kubelets and people know.
const ReasonNotReady = "NetworkPluginNotReady"

// Status is whether pods can be attached.
type Status struct {
	Ready   bool
	Reason  string // ReasonNotReady; empty if Ready
	Message string // why, in the words of the plugin where it is one; empty if Ready

	Networks []string       // names of the configurations in use, that of eth0 first
	Files    []string       // their files
	Invalid  []*ConfigError // files that are skipped
}

const (
	// statusFresh is how old what the plugins have said may be before they are asked again.
	statusFresh = 5 * time.Second
	// statusWait is how long a caller waits for that; then it gets what they said before.
	statusWait = time.Second
)

// probe is what the plugins have said.
type probe struct {
	known bool      // of the present configurations
	err   error     // nil: they are ready
	ended time.Time // when they said so
	began time.Time // when they were asked; zero: nobody is being asked
}

// Status returns whether there is a valid configuration, its plugins are there, and, from CNI 1.1.0 on,
// they say that they are ready (the verb STATUS). Plugins are asked when someone wants to know, at most
// every five seconds, and by a goroutine of its own: one that hangs makes Status wait for a second, and
// the network not ready once it has been killed.
//
// It is about pods with a network of their own; those in the node's network run whatever it says.
func (n *Network) Status(ctx context.Context) Status {
	var patience <-chan time.Time
	for {
		n.mu.Lock()
		s, fresh := n.statusLocked(time.Now())
		changed := n.changed
		n.mu.Unlock()
		if fresh {
			return s
		}
		if patience == nil {
			timer := time.NewTimer(statusWait)
			defer timer.Stop()
			patience = timer.C
		}
		n.wantProbe()
		select {
		case <-changed:
			continue
		case <-patience:
		case <-ctx.Done():
		case <-n.stop:
		}
		return s
	}
}

// statusLocked returns what is known, and whether there is nothing to wait for.
//
// +checklocks:n.mu
func (n *Network) statusLocked(now time.Time) (s Status, fresh bool) {
	s.Invalid = slices.Clone(n.confs.invalid)
	confs, err := n.attachableLocked()
	for _, c := range confs {
		s.Networks = append(s.Networks, c.list.Name)
		s.Files = append(s.Files, c.file)
	}
	p := n.probe
	fresh = true
	if err == nil {
		fresh = p.known && now.Sub(p.ended) < statusFresh
		// What is killed has some seconds to die.
		late := !p.began.IsZero() && now.Sub(p.began) > n.cfg.StatusTimeout+2*killGrace
		switch {
		case late:
			err = fmt.Errorf("network %s: a folder of plugins does not answer, since %v", s.Networks[0], now.Sub(p.began).Round(time.Second))
		case !p.known:
			err = fmt.Errorf("network %s: its plugins have not yet said whether they are ready", s.Networks[0])
		default:
			err = p.err
		}
	}
	if err != nil {
		s.Reason, s.Message = ReasonNotReady, err.Error()
	}
	s.Ready = err == nil
	return s, fresh
}

// wantProbe has the plugins asked, once more if they are being asked.
func (n *Network) wantProbe() {
	select {
	case n.ask <- struct{}{}:
	default:
	}
}

// probes asks the plugins, one question at a time.
func (n *Network) probes() {
	// The prober's own: who asks may be gone before the plugins have answered.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stopped := make(chan struct{})
	go func() { defer close(stopped); <-n.stop; cancel() }()
	defer func() { <-stopped }()
	for {
		select {
		case <-n.stop:
			return
		case <-n.ask:
		}
		n.mu.Lock()
		confs, err := n.attachableLocked()
		if err != nil || n.probe.known && time.Since(n.probe.ended) < statusFresh {
			n.mu.Unlock() // asked for twice
			continue
		}
		n.probe.began = time.Now()
		n.mu.Unlock()

		err = n.askPlugins(ctx, confs)

		n.mu.Lock()
		now, stale := n.attachableLocked()
		n.probe.began = time.Time{}
		if stale == nil && slices.EqualFunc(confs, now, conf.equal) {
			n.probe.known, n.probe.err, n.probe.ended = true, err, time.Now()
		} else {
			n.wantProbe() // it was about what is no longer there
		}
		n.announceLocked()
		n.mu.Unlock()
	}
}

// askPlugins returns why the plugins are not ready.
func (n *Network) askPlugins(ctx context.Context, confs []conf) error {
	ctx, end, cni := n.run(ctx, "STATUS", "", nil, n.cfg.StatusTimeout)
	defer end()
	for _, c := range confs {
		var errs []error
		for _, p := range c.list.Plugins {
			if _, err := findPlugin(p.Network.Type, n.cfg.BinDirs); err != nil {
				errs = append(errs, fmt.Errorf("plugin %.100q: %w", p.Network.Type, err))
			}
		}
		if len(errs) == 0 {
			errs = append(errs, cni.GetStatusNetworkList(ctx, c.list))
		}
		if err := errors.Join(errs...); err != nil {
			return named(c.list.Name, err)
		}
	}
	return nil
}
