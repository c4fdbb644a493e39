// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ref reads the names by which people call images.
//
//	busybox                           docker.io/library/busybox:latest
//	team/app:v1                       docker.io/team/app:v1
//	localhost/app                     localhost/app:latest
//	registry.example:5000/app@sha256:…   as it is
//	registry.example/app:v1@sha256:…  as it is: the digest says what, the tag is a remark
//
// The grammar and the way from the short form to the full one are those of
// github.com/distribution/reference, which the kubelet and the other runtimes use: two that
// read one name differently would pull one image and look for another.
//
// # Invariants
//
//   - A [Ref] that is not zero was parsed: its parts have the form that their types tell of.
//   - It has a tag, a digest, or both; never neither.
//   - Parse(r.String()) is r, and Parse(r.Familiar()) is r.
//   - Refs are equal with == exactly if they mean the same.
package ref
