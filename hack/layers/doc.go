// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package layers holds which package may import which, and the test that keeps it so.
//
// [Table] is the whole of it: one row for each package, with what it may import; who alone may use
// grpc, libcontainer, bbolt and cgo; and what must not be linked into the two binaries. A package that is
// not in the table fails the test, so a new one begins with a row and the reason for it. Rows for
// packages that do not exist yet are the plan and do no harm.
//
// Imports go down only. A row has a level and may name only rows below it; so the table itself has no
// cycle and no way sideways or up, and the test checks that too:
//
//	7                  cmd/berth      cmd/berth-executor      hack/*
//	6                  cri/admin               │
//	5                     cri                  │
//	4         cri/streaming   cri/debug        │
//	3                   sandbox                │
//	2     image   network   oci/spec   oci   oci/executor
//	1     leaves of image and oci, store
//	0     image/ref   store/content   hack/leak   hack/layers   hack/testsum
//
// What go list says is what is checked, without and with the build tags of the tests, and with and
// without cgo: the daemon must not even reach a package that would use cgo if it could.
package layers
