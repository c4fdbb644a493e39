// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package registry pulls from registries: it asks what a name means, finds the manifest for this machine,
// and fetches blobs. It speaks the pulling part of the OCI distribution specification, as Docker's
// registries do, too, and nothing more: it never pushes.
//
//	Client ──Repository(ref, auth)──▶ reads the hosts.toml folders, as they are now
//	  │
//	  ├─ Resolve    HEAD manifests/TAG, GET manifests/DIGEST ──▶ Descriptor
//	  ├─ Manifest   index ──▶ index ──▶ manifest for the platform
//	  ├─ Config     the image's configuration
//	  └─ Fetch      blob ──▶ content.Store, or Blob, an io.Reader
//
//	one question:   mirror ──fails──▶ mirror ──fails──▶ the registry itself ──▶ wait, and again
//	one answer:     401 ──▶ token ──▶ again;  3xx ──▶ there, without anything that says who asks
//	one blob:       bytes ─cut, or silence─▶ the rest, from the same host or the next ──▶ digest right?
//	                  ▲                                                                      │ no
//	                  └──────────────── from the first byte, from another host ◀─────────────┘
//
// # Hosts
//
// hosts.toml and the folders it lies in mean what they mean to containerd: the order of hosts, "server",
// "_default", HOST_PORT_ for host:port, certificates as Docker lays them out where there is no hosts.toml,
// TLS first and then plain HTTP at loopback addresses and where http:// is written beside TLS keys. There
// are three differences, on purpose. A file that cannot be read is an error, with file, line and key, and
// not passed over in favour of what would be without it. Credentials reach no mirror, unless the request
// says that they are for it. Headers and client certificates reach no host but the one for which they are
// configured.
//
// # Invariants
//
//   - Credentials go to the registry that the name begins with (in a folder of its own name, to the server
//     that stands for it) or to the one host that the request names, and to the token server which that
//     host names. They never follow a redirect, and show in no error and no log: Secret, and a scrubber for
//     what servers send back.
//   - Over plain HTTP goes what is configured so or at a loopback address. HTTPS never leads to HTTP.
//   - No blob is in memory. What is, manifests and configurations, has a bound of 8 MiB and is verified
//     here. Blobs are verified where they are stored: see Blob.
//   - Everything that repeats has an end: redirects, 401s, retries, nested indexes, waiting for
//     Retry-After, waiting for bytes.
//   - What errors repeat of foreign text is printable and short. Addresses that a registry redirects to
//     are not repeated: whoever has a signed one has the content.
package registry
