// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ns makes the namespaces that the containers of a pod share, and keeps the pod's network
// namespace where people, `ip netns` and CNI plugins look for it.
//
// # What holds a namespace
//
//	net  a bind mount of the namespace at DIR/berth-<pod id>, DIR being /run/netns: it outlives
//	     berth, costs the host one line of mountinfo, and its path follows from the pod's id
//	ipc  the descriptors in Namespaces only: whoever they are handed to (the executor, and through
//	uts  it the keeper) holds them; there is no path, and no mount
//	pid  not made here: a PID namespace lives exactly as long as its first process, so it belongs
//	     to whoever starts that
//
// # Steps of Make, and what a kill after each leaves
//
//	unshare    a thread of our own enters new namespaces    nothing
//	sysctls    written inside                               nothing
//	hostname   set inside                                   nothing
//	loopback   up                                           nothing
//	dir        DIR is a shared mount                        DIR, which is everybody's and stays
//	file       DIR/berth-<pod id> is an empty file          that file
//	pin        the namespace is mounted there               that mount
//
// [List] names the last two and [Remove] takes them away, whether Make ran to its end, was killed, or
// never began: so Remove is the undo of Make.
//
// # Invariants
//
//   - The namespaces of a thread of Go's runtime never change under code that does not expect it. What
//     enters a namespace runs on a locked thread that is never unlocked and ends with its goroutine,
//     and is never the main thread: Go cannot end that one, and /proc/self, which is the main
//     thread's, would show a pod's namespaces for ever after.
//   - Nothing outside a pod's own namespaces is written. Which sysctl belongs to which namespace is a
//     list (see [Request.Check]); one that is not on it is refused, and so is one whose namespace is
//     the host's.
//   - Only pins that are named berth-<id> are listed or removed.
//   - When Make has returned, nothing more happens to the pin, even where ctx ended the waiting.
//
// Needs Linux 5.6 (openat2) and CAP_SYS_ADMIN, and CAP_NET_ADMIN for the loopback interface.
package ns
