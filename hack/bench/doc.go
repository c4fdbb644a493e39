// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures a runtime that speaks CRI, and a second one beside it in the same run:
//
//	bench -endpoint unix:///run/berth/berth.sock -peer unix:///run/containerd/containerd.sock -json FILE
//
// It sees nothing but CRI, the log files, and the runtime's processes under /proc. It needs the rights
// to read /proc/PID/smaps_rollup of these, and to make namespaces for the floor: run it as root.
//
// # Phases
//
//	floor        a bare fork+exec of `true`, without and with new namespaces; `cat` of a pipe into a file
//	life-host    whole lives of pods with the host's network, one after the other
//	life-host-8  the same with eight at a time
//	life-cni     as life-host, each pod with a network of its own
//	life-cni-8   the same with eight at a time
//	exec         ExecSync `true` in one container, eight at a time; its CPU time
//	memory       PSS of the runtime's processes without pods, and its growth for each idle pod
//	lists        lists, stats, and all statuses, with -pods idle pods
//	restart      the daemon is killed with -pods idle pods: until it lists them all and its network is ready
//	pull         each image of -pull, taken away before
//	logs         a container writes 200 MB in lines of 100 bytes, until all are in its log file
//
// The whole life of a pod is the sum of what its calls took; pods per second count the time of the clock.
// A restart is measured from the start of its command, and believed when the old daemon is dead.
// restart is left out where no command is given that kills and starts the daemon, pull where no image is.
//
// # What a figure is
//
// A round runs each phase on one endpoint, then on the other, and the next round begins with the other
// one. A phase gives p50, p95 and p99 of its samples (nearest rank); a figure is the median of these over
// the rounds. Beside each phase stand the load average at its end and the p50 of an fsync of 4 KiB on the
// disk of -disk, again as medians over the rounds. Ratios are endpoint / peer.
//
// Nothing is tried again, and no sample of a phase that failed is kept: the failure is reported, the
// other phases go on, and the exit status is 1.
//
// # Whose processes
//
// The daemon is the process that listens on the socket (SO_PEERCRED). To it come its descendants, what
// `Status` with verbose tells as {"executor": {"PID", "KeeperPID"}} in its info, the -pid flags, processes
// named by the -process flags (shims and monitors are nobody's descendants), and the descendants of all
// these. Processes in another PID namespace than the bench's are containers and do not count.
//
// # What it leaves
//
// Nothing: pods carry a label, and those that have it are removed when a phase ends, when the bench
// begins and when it ends, whatever failed. So two runs must not share an endpoint.
package main
