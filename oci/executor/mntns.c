// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Enters the executor's mount namespace before Go starts: setns and unshare act
// on one thread, and Go would have several. See mntns.go.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mntns.h"

int berth_mnt_fd = -1;
int berth_mnt_inside;
char berth_mnt_error[256];

static void failed(const char *what)
{
	snprintf(berth_mnt_error, sizeof berth_mnt_error, "%s: %s", what, strerror(errno));
}

// mounted says whether path is a mount point, and whether it is shared.
static int mounted(const char *path, int *shared)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t cap = 0;
	int found = 0;
	*shared = 0;
	if (!f)
		return 0;
	while (getline(&line, &cap, f) > 0) {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
		char *p = line;
		for (int field = 0; p && field < 4; field++)
			p = strchr(p, ' ') ? strchr(p, ' ') + 1 : NULL;
		if (!p)
			continue;
		size_t n = strcspn(p, " ");
		if (n != strlen(path) || strncmp(p, path, n))
			continue;
		char *end = strstr(p, " - "), *s = strstr(p, " shared:");
		found = 1;
		*shared = s && end && s < end; // the last mount at a path is the one on top
	}
	free(line);
	fclose(f);
	return found;
}

__attribute__((constructor(103))) static void executor_mntns(int argc, char **argv)
{
	char m[PATH_MAX];
	int shared = 0;
	if (argc < 3 || strcmp(argv[1], "executor"))
		return;
	berth_mnt_fd = fcntl(4, F_GETFD) < 0 ? -1 : fcntl(4, F_DUPFD_CLOEXEC, 5);
	if (berth_mnt_fd >= 0)
		close(4);
	int outside = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	if (outside < 0)
		return failed("open the mount namespace");
	if (berth_mnt_fd >= 0) {
		if (setns(berth_mnt_fd, CLONE_NEWNS) < 0)
			return failed("enter the held mount namespace");
	} else {
		// The first executor of this node: one folder is made private, so that what is
		// mounted below it stays in the namespace it is mounted in.
		mkdir(argv[2], 0711);
		snprintf(m, sizeof m, "%s/m", argv[2]);
		mkdir(m, 0711);
		if (!mounted(m, &shared) && mount(m, m, NULL, MS_BIND, NULL) < 0)
			return failed("bind the folder for mounts on itself");
		if (mount(NULL, m, NULL, MS_PRIVATE, NULL) < 0)
			return failed("make the folder for mounts private");
		if (unshare(CLONE_NEWNS) < 0)
			return failed("unshare the mount namespace");
		berth_mnt_fd = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
		if (berth_mnt_fd < 0)
			return failed("open the new mount namespace");
	}
	// What the namespace is good for was settled when it was made: where "/" was
	// private then, nothing that the host mounts appears in it, whatever "/" is now.
	mounted("/", &berth_mnt_inside);
	if (!berth_mnt_inside && setns(outside, CLONE_NEWNS) < 0)
		return failed("return to the host's mount namespace");
	close(outside);
}
