// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !root

package network_test

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	playPlugin()
	playBerth()
	setUp()
	os.Exit(m.Run())
}
