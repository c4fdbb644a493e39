// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package storetest opens stores for tests, and holds at the end of each test
// that the store is in order.
//
// A store lies in folders of the test's own. Nothing in production imports this
// package.
package storetest
