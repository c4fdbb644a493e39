// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire carries requests, with file descriptors, between berth and the
// executor.
//
// # The connection
//
// The executor listens on a unix socket of type SOCK_SEQPACKET: the kernel
// keeps the boundaries of messages and ties each descriptor to its message.
// One message is one packet:
//
//	 0        2      3       4          6        8               16
//	+--------+------+-------+----------+--------+---------------+-------------
//	| magic  | kind | flags | op       | zero   | id            | body (JSON)
//	| 0xbe17 | u8   | u8    | u16      | u16    | u64           |
//	+--------+------+-------+----------+--------+---------------+-------------
//	                 \ 1: the body is in a memfd, which is the last descriptor
//
// All integers are little endian. A body above [maxInline] travels in a sealed
// memfd, since a packet is bounded by the socket's send buffer and a runtime
// spec is not.
//
//	berth                                         executor
//	  | -- request 1 (hello: versions) ------------> |
//	  | <------------- response 1 (version, pid) --- |
//	  | -- request 2 (create c1) + fds ------------> |   requests run side by
//	  | -- request 3 (kill c2) --------------------> |   side; answers come in
//	  | <------------------------- response 3 ------ |   any order
//	  | <------------------------- response 2 ------ |
//	  | -- request 4 (events) ---------------------> |   every exit that is not
//	  | <------------------------- event 4 --------- |   acknowledged, then each
//	  | <------------------------- event 4 --------- |   new one, on id 4
//	  | -- request 5 (ack) ------------------------> |
//	  | -- cancel 4 -------------------------------> |   ends the waiting of a
//	  | <------------------------- response 4 ------ |   request, not its work
//
// # Invariants
//
//   - The first request on a connection is Hello; a version that the other
//     side does not speak is refused there, by name, and nowhere else.
//   - Ops, fields and error codes are only ever added.
//   - Descriptors that arrive are close-on-exec, and each belongs to the
//     Message that brought it until it is taken out with [Message.Take]; Close
//     of the Message closes the others.
//   - A sender never loses a descriptor: Send duplicates, it does not consume.
package wire
