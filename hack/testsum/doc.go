// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command testsum reads what `go test -json` writes and prints what a person needs of it: a line for
// each package, the whole output of each failed test, each skip with its reason, and at the end
//
//	N passed, N failed, N skipped
//
// The exit status is 0 only if nothing failed, something ran, and each skip is allowed.
//
//	go test -json ./... | testsum [-skips FILE] [-save FILE]
//	testsum -total [-complete] [-skips FILE] RESULTS...
//
// # What is counted
//
// Tests without subtests, subtests, and seeds of fuzz tests. A test that has subtests is only their
// frame and counts by itself only where it fails or skips for a reason of its own. A package that
// cannot be built, or that ends without saying how a test ended (a panic, a timeout), is a failure.
//
// # Skips
//
// A job that skips what it cannot do is green when it should be red. So each skip must be listed in
// the file of allowed skips, one a line:
//
//	PACKAGE  TEST  REASON
//
// PACKAGE is relative to the module, TEST is in path.Match syntax, and REASON is how the text given to
// t.Skip begins. The list is the same on every machine: a listed test may run. But a test that is
// not listed may not skip, nor may a listed one for another reason.
//
// With -save the results are kept; -total adds up the results of several runs, where a test
// that ran in more than one of them counts once, by its worst result but passed before skipped. With
// -complete, which says that the runs together are all tests that there are, a line of the list that
// fits no test is an error too.
package main
