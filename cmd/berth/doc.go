// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Berth is a Kubernetes node runtime that speaks the Container Runtime Interface.
//
//	berth serve            serves kubelets and crictl
//	berth config default   prints the configuration with all defaults
//	berth config check     says what is wrong with a configuration
//	berth check            says whether a node is fit, and what to do where it is not
//	berth status           says how a berth that serves is
//	berth image            pulls, lists, shows and removes images
//	berth executor         the processes that run containers, and outlive berth
//	berth version
//
// Exit codes: 0 done, 1 it could not be done, 2 the command line is wrong.
package main
