// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package spec turns what the kubelet asks for, what the image says and what the node can do into a
// runtime spec: the one place where a field of the CRI becomes something that the kernel is told.
//
//	PodSandboxConfig, ContainerConfig ─┐
//	image config ──────────────────────┤
//	User (ResolveUser) ────────────────┼─▶ Build ─▶ *specs.Spec ─▶ executor
//	Features (Probe) ──────────────────┤
//	paths that the caller prepared ────┘
//
// # Invariants
//
//   - Build is pure: the same Input gives the same spec, on any machine. Nothing here opens a file, asks
//     the kernel or looks at the time, but for probe.go, which collects the facts that Build is given.
//   - The spec shares no memory with the Input, which Build does not change.
//   - No field is dropped in silence. [Decisions] names each field of the two configs, and says whether
//     it is honoured, refused or ignored, and why; a test walks the messages and fails on a field that is
//     not in the table. What is refused comes back as a [*FieldError] that names the field.
//   - The kubelet's request is policy, what an image says is a stranger's word. An image decides what
//     runs inside its container, and as which of the container's users. It names no path of the host, no
//     annotation, no capability, no mount option; its passwd and group files are read up to a size.
//   - What is doubtful fails closed: a user that is half a number, a group without a user, a seccomp
//     profile without a default action are errors and not root, not everyone, not unconfined.
//
// # What the executor fills in
//
// A spec that Build returns has placeholders, equal to those of package wire: the namespaces of the pod
// ([FromPod]) and of another container ([FromContainer]), and the pod's /dev/shm ([PodShm]). The path
// of the root is the executor's too.
//
// Values of the environment are bytes. Go's strings hold them as they are, JSON does not: whoever
// encodes a spec has to carry Process.Env by other means where it is not UTF-8.
package spec
