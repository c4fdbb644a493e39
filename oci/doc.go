// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package oci is the executor as berth sees it: one method for each request,
// with what the death of the executor means for a request under way settled here
// and nowhere else.
//
// # What a caller need not know
//
// The executor may die or be replaced at any moment; a new one is there some
// milliseconds later and has taken everything over. A request that was under way
// then has been done, or not, or was taken back; [Executor] connects again, looks
// which, and does it again if it was not. So a method fails only for reasons of
// its own, for an ended context, or because both executor and keeper are gone.
//
// One request is not done again, since twice is not as good as once: an exec whose
// executor died while it was being started may have run. Its error has the code
// wire.Lost, and whether it is tried again is for the caller to decide.
//
// # Invariants
//
//   - Descriptors that are given to a method stay the caller's, to close when the
//     method has returned.
//   - The end of a context ends the waiting. The executor finishes what it has
//     begun, or takes it back.
//   - Exits may be told twice, and are told until they are acknowledged.
package oci
