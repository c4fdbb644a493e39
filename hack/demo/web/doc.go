// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Web is the server of the image that the demonstration runs: it says who it is, and
// logs each request.
package main
