// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ns

import (
	"context"
	"os"
)

// MakeSteps is Make that calls step after each step with its name.
func MakeSteps(ctx context.Context, r Request, step func(string)) (*Namespaces, error) {
	return makeSteps(ctx, r, step)
}

// OnThread runs fn on a thread that ends with it.
func OnThread(fn func() error) error { return onThread(fn) }

// Enter moves the calling thread.
func Enter(ns *os.File, kind int) error { return enter(ns, kind) }

// SysctlPath turns a sysctl's name into a path below /proc/sys.
func SysctlPath(name string) (string, error) { return sysctlPath(name) }
