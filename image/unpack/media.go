// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package unpack

import "strings"

// IsLayer says whether blobs of a media type are archives of layers (image-spec,
// media-types.md; docker's image manifest v2, schema 2). Parameters after a
// semicolon do not count.
func IsLayer(mediaType string) bool {
	mediaType, _, _ = strings.Cut(mediaType, ";")
	base, suffix, _ := strings.Cut(strings.TrimSpace(mediaType), "+")
	switch base {
	case "application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar":
		return suffix == "" || suffix == "gzip" || suffix == "zstd"
	case "application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return suffix == ""
	}
	return false
}
