// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package leak

// RunMain is Main with another place for its report.
var RunMain = runMain
