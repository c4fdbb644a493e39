// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ocitest gives a test a keeper and an executor of its own: the programs built, their
// folder, and the way down again.
//
// Everything that belongs to a [Node] bears its name: the folder on a tmpfs, the cgroups, and so
// what [github.com/berth-cri/berth/hack/leak] looks for when the test has ended. Nothing in
// production imports this package.
package ocitest
