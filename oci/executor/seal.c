// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Runs the executor from a sealed copy of its binary in memory. libcontainer
// executes /proc/self/exe for every create and exec: from a sealed memfd that is
// safe as it is (CVE-2019-5736: a container could overwrite the host's binary
// through /proc/PID/exe), it is the same version after the file was replaced by
// an upgrade, and the copy is made once instead of for every process. The price
// is the size of the binary in memory, once for the node.

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

__attribute__((constructor(102))) static void executor_seal(int argc, char **argv, char **envp)
{
	const int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	char path[32];
	if (argc < 3 || strcmp(argv[1], "executor"))
		return;
	int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	if (self < 0)
		return;
	int have = fcntl(self, F_GET_SEALS);
	if (have >= 0 && (have & seals) == seals) {
		close(self);
		return;
	}
	int m = memfd_create("berth-executor", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
	if (m < 0) // before kernel 6.3 the flag is unknown, and every memfd is executable
		m = memfd_create("berth-executor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (m < 0)
		goto plain;
	while (1) {
		ssize_t n = sendfile(m, self, NULL, 1 << 30);
		if (n < 0)
			goto plain;
		if (n == 0)
			break;
	}
	if (fcntl(m, F_ADD_SEALS, seals) < 0)
		goto plain;
	snprintf(path, sizeof path, "/proc/self/fd/%d", m);
	execve(path, argv, envp);
plain: // vm.memfd_noexec=2, or no memory: libcontainer then seals for each process
	close(self);
	if (m >= 0)
		close(m);
}
