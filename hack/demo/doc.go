// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Demo shows a node: `make run` starts it. It starts a registry that holds one image, a
// berth with all its state under one folder of its own, and does by CRI what a kubelet
// does, with the time of each step. Then it kills the daemon and the executor, and shows
// that the pod does not mind. With -once it ends by itself, else with Ctrl-C; it removes
// all that it made, looks whether anything is left, and says so.
package main
