// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package crilog turns what a container writes into the log format that a
// kubelet reads, and back.
//
// A log is a sequence of records, one a line, of both streams of a container:
//
//	2016-10-06T00:17:09.669794202Z stdout P the first max bytes of a long line
//	2016-10-06T00:17:09.669794202Z stdout F the rest of it
//	|------- 30 bytes -----------| |-6--| | content, verbatim, then LF
//
// P says that the line goes on in the stream's next record (there is none if
// the stream ended without an LF), F that it ends here. The words are those of k8s.io/cri-api (LogStreamType, LogTag), the
// format is what k8s.io/cri-client reads (pkg/logs/logs.go), and where lines
// are cut follows containerd (internal/cri/io/logger.go), with two differences,
// both on purpose: a CR before the LF is kept, since it is the container's
// byte, and timestamps are UTC with nine digits always, so that every record's
// head has one length.
//
// # Invariants
//
//   - Nothing here holds state. [Append] is a function of its arguments: a
//     writer that died between recording what it is about to write and having
//     written it calls Append again with the same arguments, gets the same
//     bytes, and writes them at the same offset.
//   - How a stream is chopped into reads does not show. For any split of a
//     stream, with each call's rest put before the next call's data, the
//     sequence of tags and contents is the same, that of one call with all of
//     it; only the timestamps differ.
//   - No byte is added, lost or changed: the contents of a stream's records,
//     with an LF after each F, are the stream.
//   - A line of exactly max bytes is one F record. There is no empty P record,
//     and no F record is empty but that of an empty line. (The kubelet's reader
//     takes a record without content for the end of a line.)
//
// # Files, rotation and reopening
//
// The kubelet owns the log's folder, creates it before the container, and
// rotates: it renames 0.log to 0.log.20060102-150405, then calls
// ReopenContainerLog (k8s.io/kubernetes/pkg/kubelet/logs). From that follows
// what a writer does with [Open]:
//
//   - A log has one writer, which keeps the offset and writes by position, so
//     that a redone write lands on the first one. Nobody else may append or
//     truncate: rotation by copy and truncate leaves a hole.
//   - ReopenContainerLog opens the path again. The file is created if it is not
//     there, which is the case after the kubelet's rename and also where
//     somebody has deleted the log. If it is there, because nobody renamed it,
//     the writer goes on at its end: what is under way for the old descriptor
//     must be written before Open asks for the size.
//   - The change from the old file to the new one is made between two records.
//     A line of which P records are in the old file ends in the new one, as it
//     does with containerd; a reader joins them by reading both files in order.
//   - The old descriptor is closed only after Open has succeeded. When Open
//     fails there is no new file, as the CRI demands, and the writer keeps the
//     old descriptor: the kubelet renames the file back and calls again later.
package crilog
