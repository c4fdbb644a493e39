// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Berth-executor runs containers for berth. It is not started by hand: berth, or
// the service manager, starts
//
//	berth-executor keeper STATE BINARY
//
// which is C code that runs before Go does (package oci/keeper), and that starts
// and restarts
//
//	berth-executor executor STATE BINARY
//
// which is package oci/executor. Its children, on their way to becoming a
// container's process, are "berth-executor init", libcontainer's.
package main
