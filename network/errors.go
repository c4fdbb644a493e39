// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrInvalid is what a pod, a configuration of this package or an address cannot be.
	ErrInvalid = errors.New("network: invalid")
	// ErrNoConfig is returned while there is no valid CNI configuration.
	ErrNoConfig = errors.New("no valid CNI configuration")
	// ErrNoPlugin is returned where a plugin's binary is in none of the folders.
	ErrNoPlugin = errors.New("plugin not found")
	// ErrTimeout is returned where the plugins did not end in the time they have; they were killed.
	ErrTimeout = errors.New("deadline exceeded")
	// ErrStuck is returned where plugins were killed and do not die (their processes are in an
	// uninterruptible wait), and there are too many of them to start another.
	ErrStuck = errors.New("too many plugins that were killed do not end")
	// ErrTooMuch is returned where a plugin wrote more than a result can be; it was killed.
	ErrTooMuch = errors.New("more output than a result can be")
	// ErrBadResult is returned where what a plugin wrote is no CNI result.
	ErrBadResult = errors.New("bad CNI result")
	// ErrNoAddress is returned where an ADD succeeded and gave the pod no address.
	ErrNoAddress = errors.New("no address in the CNI result")
	// ErrNotAttached is returned by Check of a pod without an attachment.
	ErrNotAttached = errors.New("not attached")
	// ErrForeign is returned by GC where others have attachments to the network.
	ErrForeign = errors.New("attachments of others")
	// ErrBusy is returned by GC while pods are being attached or detached.
	ErrBusy = errors.New("pods are being attached or detached")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("network: closed")
)

// A PluginError is a call of a plugin that failed, in the plugin's own words.
type PluginError struct {
	Plugin  string // "bridge"
	Command string // "ADD", "DEL", "CHECK", "STATUS" or "GC"
	// Code, Msg and Details are the plugin's, as the CNI specification has them in "Error"; Code is 0
	// and the others are empty where it did not say. They are shortened, and in one line.
	Code    uint
	Msg     string
	Details string
	Stderr  string // the end of it, where the plugin said nothing else
	Err     error  // how it ended: ErrTimeout, ErrNoPlugin, *exec.ExitError, ...
}

func (e *PluginError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plugin %s: %s", e.Plugin, e.Command)
	add := func(s string) {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	add(e.Msg)
	add(e.Details)
	if e.Code != 0 {
		fmt.Fprintf(&b, " (code %d)", e.Code)
	}
	if e.Code == 0 && e.Msg == "" && e.Err != nil {
		add(e.Err.Error())
		add(e.Stderr)
	}
	return b.String()
}

// Unwrap returns how the plugin ended.
func (e *PluginError) Unwrap() error { return e.Err }

// A ConfigError is a file in the configuration folder that cannot be used.
type ConfigError struct {
	File string // its name in the folder
	Err  error
}

func (e *ConfigError) Error() string { return e.File + ": " + e.Err.Error() }

// Unwrap returns what is wrong with the file.
func (e *ConfigError) Unwrap() error { return e.Err }
