// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build root

package oci_test

import (
	"errors"
	"testing"

	"github.com/berth-cri/berth/oci/wire"
)

// wantCode checks that err is the executor's, with this code.
func wantCode(t *testing.T, err error, code wire.Code) {
	t.Helper()
	if !errors.Is(err, &wire.Error{Code: code}) {
		t.Errorf("error = %v, want code %q", err, code)
	}
}
