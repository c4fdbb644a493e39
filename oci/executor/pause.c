// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// The first process of a PID namespace that the containers of a pod share: it
// waits for orphans, and its end ends them all. It runs before Go starts and is no
// way out for who shares the namespace with it: see pause.go.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY 65535

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "pause.c knows no seccomp architecture for this machine"
#endif

// The socket on which the executor hears a zero byte (ready) or what went wrong,
// and then says that we are known: if it dies before it has written down that
// there is a pause, nobody would ever end this one.
#define REPORT 3

static void fail(const char *what)
{
	char line[128];
	int n = snprintf(line, sizeof line, "%s: %s", what, strerror(errno));
	if (write(REPORT, line, n) < 0) {
	}
	_exit(1);
}

// empty_root makes an empty file system, which cannot be written to, the root.
static void empty_root(const char *folder)
{
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		fail("make mounts private");
	if (mount("pause", folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=1,mode=555") < 0)
		fail("mount");
	if (chdir(folder) < 0)
		fail("chdir");
	if (syscall(SYS_pivot_root, ".", ".") < 0) // the old root lies on top of the new one
		fail("pivot_root");
	if (umount2(".", MNT_DETACH) < 0)
		fail("umount");
	if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		fail("remount");
	if (chdir("/") < 0)
		fail("chdir");
}

static void drop_rights(void)
{
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			fail("drop capability");
	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
		fail("become nobody");
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct none[2];
	memset(none, 0, sizeof none);
	if (syscall(SYS_capset, &head, none) < 0)
		fail("capset");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail("no_new_privs");
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) // its /proc files are root's, by ptrace's rules
		fail("not dumpable");
}

// filter leaves what the loop below needs; anything else ends the process.
static void filter(void)
{
#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(SYS_wait4),
		ALLOW(SYS_rt_sigtimedwait),
		ALLOW(SYS_restart_syscall),
		ALLOW(SYS_exit_group),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { sizeof code / sizeof code[0], code };
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		fail("seccomp");
}

// argv: berth-executor pause FOLDER; in new PID and mount namespaces, FOLDER being
// any folder to mount on. Only REPORT is open.
__attribute__((constructor(104))) static void pause_main(int argc, char **argv)
{
	if (argc != 3 || strcmp(argv[1], "pause"))
		return;
	prctl(PR_SET_NAME, "berth-pause");
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL); // the first process of a namespace gets only what it takes
	setsid();
	empty_root(argv[2]);
	memset(argv[2], 0, strlen(argv[2])); // the host's path is nobody's business
	drop_rights();
	if (dup2(REPORT, 0) < 0 || syscall(SYS_close_range, 1, ~0U, 0) < 0)
		fail("close descriptors");
	char byte = 0;
	if (write(0, &byte, 1) != 1 || read(0, &byte, 1) != 1)
		_exit(1);
	close(0);
	filter();
	sigset_t child;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	for (;;) {
		while (syscall(SYS_wait4, -1, NULL, WNOHANG, NULL) > 0)
			;
		syscall(SYS_rt_sigtimedwait, &child, NULL, NULL, 8);
	}
}
