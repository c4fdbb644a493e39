// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package network connects pods to the network by CNI plugins.
//
// It reads the node's CNI configurations, runs the plugins by libcni (CNI specification 1.1.0), says
// whether pods can be attached, and dials into pods. It makes no namespaces, and keeps nothing in
// memory of a pod that is attached.
//
// # One attachment
//
//	Attach   1  DEL, if there is a record of the pod       berth died in an earlier Attach
//	         2  record: fsync, rename, fsync               CACHE/POD.json
//	         3  ADD of each plugin                         result: CACHE/results/NETWORK-POD-eth0
//	         4  return the result                          the caller keeps it with the pod
//	Detach   1  no record: done
//	         2  DEL of each plugin, the last one first, with the configuration in the record
//	         3  the result goes, and then the record
//
// So each crash point has the same answer, Detach, and it succeeds whether ADD ran or not. The record
// has the configuration as it was, with all its plugins: what has become of the folder since does not
// matter. Results are written by libcni and are not synced: what a power cut takes away with them, it
// has taken from the kernel too, and plugins delete without.
//
// What a kill in the middle of an ADD leaves is freed by the DEL, but for what a plugin
// finds by the result alone, as firewall (plugins 1.9.1) does its rules: libcni has
// one only after the last plugin of the list.
//
// # Invariants
//
//   - No lock is held while a plugin runs. Operations on one pod follow one another, as CNI asks;
//     those on different pods never wait for each other.
//   - Every plugin has a deadline, and runs in a process group of its own that is killed at its end.
//     What it writes is bounded. What it says is in the error, with its name.
//   - A plugin dies with berth, and what it has started is waited for before the pod's next operation
//     (see record). So no ADD is overtaken by its DEL.
//   - The folder is read whole, and its first valid configuration is in use: one that is not valid is
//     named in the Status and skipped, and does not keep the others from being used.
//   - An Attachment has at least one address.
//   - The verb GC is never used unasked, and the cache that libcni shares among runtimes never at all.
//   - The loopback interface needs no plugin: oci/ns sets it up.
//
// # Configurations
//
// Files .conflist, .conf and .json in the order of their names, as the other runtimes take them. The
// folder may appear later, or be replaced; it is watched together with all folders above it. Whoever is
// attached stays so when it changes.
//
// Pods in the node's network have nothing to do with this package, and nor have their addresses, which
// the kubelet knows itself.
package network
