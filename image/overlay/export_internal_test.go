// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

// OnStep has f called before each step of a commit, with its name; an error ends the commit there.
func (s *Store) OnStep(f func(name string) error) { s.step = f }

// ErrSkip, returned by OnStep's function, leaves the step out.
var ErrSkip = errSkip

// Abandon closes a draft's files, as the end of a process does.
func (d *Draft) Abandon() { d.close() }
