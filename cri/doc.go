// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cri is the two gRPC services of the Container Runtime Interface, v1 as of
// k8s.io/cri-api v0.37.2: it checks a request, calls, and answers. What is decided,
// is decided below it.
//
//	kubelet, crictl ──gRPC──▶ Server ──▶ Pods, Containers, Commands   (package sandbox)
//	                            │    ──▶ Images                       (package image)
//	                            └──────▶ Streams: a URL for exec, attach, port-forward
//
// # Invariants
//
//   - toStatus is the one place that knows gRPC codes (codes.go).
//   - A message is never changed on its way, neither the request's nor a stored one.
//   - Nothing here panics for a request, whatever is in it or missing: there is no
//     recovery, each handler is fuzzed.
//   - What a request says is logged at level 5 and above, and never a secret: neither
//     credentials nor values of environment variables.
//   - A call that berth does not have yet answers Unimplemented, by which a kubelet
//     falls back.
package cri
