// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

// The keeper: see doc.go for what it promises and for the protocol. One thread,
// no Go, nothing that can block but poll. It allocates only for names.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "keeper.h"

struct name {
	char *text;
	int nfds;
	int fds[KEEPER_MAX_FDS];
	int answer; // an "ok" that the executor's socket had no room for yet
};

static struct name *names;
static int nnames, capnames;

static const char *state_dir;     // argv[2]
static char executor_path[PATH_MAX]; // argv[3] until "exe" names another
static int untried = 1;              // the path 1: was not started yet, 2: was, and does not serve yet
static pid_t executor;            // 0: none
static int sock = -1;             // to the executor
static int lockfd = -1;           // flock: one keeper for a state folder
static int sigfd = -1;
static int next_have;             // the handing over is at this name; -1: done
static int gone_pending;          // "gone" answers that had no room
static char refused[KEEPER_MAX_NAME + 16]; // a "no" that had no room; nothing more is read before it is sent
static long long serve_due;       // when an untried executor is given up; 0: never
static long long spawn_due;       // when to start, CLOCK_MONOTONIC in ms; 0: not waiting
static long long credit = KEEPER_CREDIT * 1000; // starts that need no waiting, in thousandths
static long long credited_at;     // when it was last added to
static int quitting;
static struct rlimit files; // RLIMIT_NOFILE as it was given to us, and is to the executor

static long long now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void say(const char *format, ...)
{
	char line[512];
	int n = snprintf(line, sizeof line, "keeper[%d]: ", getpid());
	va_list ap;
	va_start(ap, format);
	int m = vsnprintf(line + n, sizeof line - n - 1, format, ap);
	va_end(ap);
	n = m < (int)sizeof line - n - 1 ? n + m : (int)sizeof line - 2;
	line[n++] = '\n';
	struct pollfd f = { STDERR_FILENO, POLLOUT, 0 };
	if (poll(&f, 1, 0) == 1 && write(STDERR_FILENO, line, n) < 0) { // not at the price of waiting for a reader
	}
}

static void die(const char *what)
{
	say("%s: %s", what, strerror(errno));
	_exit(1);
}

// ---- names ----

static struct name *find(const char *text)
{
	for (int i = 0; i < nnames; i++)
		if (!strcmp(names[i].text, text))
			return &names[i];
	return NULL;
}

static void close_fds(struct name *n)
{
	for (int i = 0; i < n->nfds; i++)
		close(n->fds[i]);
	n->nfds = 0;
}

// add takes the descriptors over, in place of those the name had before.
// It returns NULL, with the descriptors closed, when there is no memory.
static struct name *add(const char *text, int nfds, const int *fds)
{
	struct name *n = find(text);
	if (n) {
		close_fds(n);
	} else {
		if (nnames == capnames) {
			int want = capnames ? capnames * 2 : 64;
			struct name *more = realloc(names, want * sizeof *names);
			if (!more)
				goto nomem;
			names = more;
			capnames = want;
		}
		char *copy = strdup(text);
		if (!copy)
			goto nomem;
		n = &names[nnames++];
		memset(n, 0, sizeof *n);
		n->text = copy;
	}
	n->nfds = nfds;
	memcpy(n->fds, fds, nfds * sizeof *fds);
	return n;
nomem:
	for (int i = 0; i < nfds; i++)
		close(fds[i]);
	return NULL;
}

static void drop(const char *text)
{
	struct name *n = find(text);
	if (!n)
		return;
	close_fds(n);
	free(n->text);
	*n = names[--nnames]; // the executor deletes nothing before "go", so none is passed over
}

// ---- the executor's socket ----

// tell sends one packet and never blocks. 0: sent; -1: no room, or nobody.
static int tell(const char *text, int nfds, const int *fds)
{
	if (sock < 0)
		return -1;
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(KEEPER_MAX_FDS * sizeof(int))];
	struct iovec v = { (void *)text, strlen(text) };
	struct msghdr h = { .msg_iov = &v, .msg_iovlen = 1 };
	if (nfds) {
		memset(control, 0, sizeof control);
		h.msg_control = control;
		h.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	}
	for (;;) {
		if (sendmsg(sock, &h, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
			return 0;
		if (errno != EINTR)
			return -1;
	}
}

// refuse answers a put for which there was no memory. There is none to remember
// several either: see receive.
static int refuse(const char *name)
{
	if (name)
		snprintf(refused, sizeof refused, "no %s", name);
	if (refused[0] && tell(refused, 0, NULL) < 0 && sock >= 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM))
		return -1;
	refused[0] = 0; // sent, or there is nobody to read it
	return 0;
}

// flush sends what had no room: the handing over, then the late answers.
// It returns 1 when there is still something to send.
static int flush(void)
{
	char line[KEEPER_MAX_NAME + 16];
	if (sock < 0)
		return 0;
	if (refuse(NULL) < 0)
		return 1;
	for (; next_have >= 0 && next_have < nnames; next_have++) {
		struct name *n = &names[next_have];
		snprintf(line, sizeof line, "have %s", n->text);
		if (tell(line, n->nfds, n->fds) < 0)
			return 1;
	}
	if (next_have >= 0) {
		if (tell("go", 0, NULL) < 0)
			return 1;
		next_have = -1;
	}
	for (int i = 0; i < nnames; i++) {
		if (!names[i].answer)
			continue;
		snprintf(line, sizeof line, "ok %s", names[i].text);
		if (tell(line, 0, NULL) < 0)
			return 1;
		names[i].answer = 0;
	}
	for (; gone_pending > 0; gone_pending--)
		if (tell("gone", 0, NULL) < 0)
			return 1;
	return 0;
}

static void spawn(void)
{
	int pair[2];
	spawn_due = 0;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		say("socketpair: %s", strerror(errno));
		spawn_due = now_ms() + 100;
		return;
	}
	struct name *mnt = find(KEEPER_MNT_NAME);
	pid_t pid = fork();
	if (pid < 0) {
		say("fork: %s", strerror(errno));
		close(pair[0]);
		close(pair[1]);
		spawn_due = now_ms() + 100;
		return;
	}
	if (!pid) {
		// 3 is the socket, 4 the mount namespace if there is one. Both are moved out
		// of the way first, since either may hold the other's number.
		int s = fcntl(pair[1], F_DUPFD_CLOEXEC, 10);
		int m = mnt ? fcntl(mnt->fds[0], F_DUPFD_CLOEXEC, 10) : -1;
		if (s < 0 || dup2(s, 3) < 0) {
			say("socket for the executor: %s", strerror(errno));
			_exit(126);
		}
		if (!mnt) {
			close(4);
		} else if (m < 0 || dup2(m, 4) < 0) {
			// Without it the executor would make another, in which nothing is mounted.
			say("mount namespace for the executor: %s", strerror(errno));
			_exit(126);
		}
		setrlimit(RLIMIT_NOFILE, &files);
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		char *argv[] = { "berth-executor", "executor", (char *)state_dir, executor_path, NULL };
		char sealed[32];
		struct name *exe = find(KEEPER_EXE_NAME);
		if (exe && !untried) {
			snprintf(sealed, sizeof sealed, "/proc/self/fd/%d", exe->fds[0]);
			execv(sealed, argv);
		}
		execv(executor_path, argv);
		say("%s: %s; starting our own binary", executor_path, strerror(errno));
		execv("/proc/self/exe", argv);
		_exit(127);
	}
	close(pair[1]);
	if (untried)
		untried = 2;
	serve_due = untried ? now_ms() + KEEPER_SERVE_MS : 0;
	refused[0] = 0;
	sock = pair[0];
	executor = pid;
	next_have = 0;
	gone_pending = 0;
	for (int i = 0; i < nnames; i++)
		names[i].answer = 0;
	flush();
}

// executor_ended plans the next start: at once, unless it keeps dying. Many deaths
// in a row are no reason to wait, as long as they are few over time: every
// millisecond without an executor is one in which no log is read.
static void executor_ended(void)
{
	if (sock >= 0)
		close(sock);
	sock = -1;
	executor = 0;
	next_have = -1;
	if (untried == 2 && find(KEEPER_EXE_NAME)) {
		// It ended before it served, as after a bad upgrade: back to the last that did.
		say("%s does not come to serve; back to the executor before it", executor_path);
		untried = 0;
	}
	long long now = now_ms();
	credit += now - credited_at; // one start a second
	credited_at = now;
	if (credit > KEEPER_CREDIT * 1000)
		credit = KEEPER_CREDIT * 1000;
	credit -= 1000;
	spawn_due = credit >= 0 ? now : now - credit;
}

// give_up ends an executor that was asked for and does not come to serve: the one
// before it did. It returns how long there is still to wait, in milliseconds; -1: for
// nothing.
static int give_up(void)
{
	if (!executor || untried != 2 || !serve_due || !find(KEEPER_EXE_NAME))
		return -1;
	long long left = serve_due - now_ms();
	if (left > 0)
		return left;
	say("%s does not serve after %d s, and is killed", executor_path, KEEPER_SERVE_MS / 1000);
	kill(executor, SIGKILL); // our child, not yet reaped: the pid is still its own
	serve_due = 0;
	return -1;
}

// ---- children ----

// stat_of reads fields 22 and 3 of /proc/PID/stat, which a zombie still has.
static unsigned long long stat_of(pid_t pid, char *state)
{
	char path[64], b[1024];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int f = open(path, O_RDONLY | O_CLOEXEC);
	if (f < 0)
		return 0;
	ssize_t n = read(f, b, sizeof b - 1);
	close(f);
	if (n <= 0)
		return 0;
	b[n] = 0;
	char *p = strrchr(b, ')');
	*state = p && p[1] ? p[2] : 0;
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	return p ? strtoull(p + 1, NULL, 10) : 0;
}

static unsigned long long start_time(pid_t pid)
{
	char state;
	return stat_of(pid, &state);
}

// registered says whether a name ends in "/PID-START".
static int registered(const char *key)
{
	size_t k = strlen(key);
	for (int i = 0; i < nnames; i++) {
		size_t n = strlen(names[i].text);
		if (n > k && names[i].text[n - k - 1] == '/' && !strcmp(names[i].text + n - k, key))
			return 1;
	}
	return 0;
}

// write_exit writes the exit file of a zombie: temporary, fsync, rename.
// -1: it could not, and the zombie must stay, since it holds the only copy.
static int write_exit(const char *key, const siginfo_t *si)
{
	char path[PATH_MAX], tmp[PATH_MAX + 8], b[128];
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	snprintf(path, sizeof path, "%s/exit/%s", state_dir, key);
	snprintf(tmp, sizeof tmp, "%s.tmp", path);
	int n = snprintf(b, sizeof b, "%s %d %lld\n", si->si_code == CLD_EXITED ? "exited" : "killed",
			 si->si_status, t.tv_sec * 1000000000LL + t.tv_nsec);
	int f = open(tmp, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	if (f < 0)
		return -1;
	int ok = write(f, b, n) == n && fsync(f) == 0;
	if (close(f) < 0 || !ok || rename(tmp, path) < 0) {
		int why = errno;
		unlink(tmp);
		errno = why;
		return -1;
	}
	return 0;
}

static void receive(void);

// reap takes every zombie of ours. It returns -1 when one must stay for now. __WALL: an
// executor that became the keeper may have children that were to send no SIGCHLD, as
// those by which Go tries what the kernel can.
static int reap(void)
{
	static pid_t told; // the one of which it was said that it must stay
	for (;;) {
		siginfo_t si;
		si.si_pid = 0;
		// The executor first: a zombie that must stay would hide that it has ended.
		if (executor && waitid(P_PID, executor, &si, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0)
			return 0;
		if (!si.si_pid && (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0 || !si.si_pid))
			return 0;
		// It may have ended just now, and its last words been sent just before.
		receive();
		if (si.si_pid != executor) {
			char key[64];
			unsigned long long start = start_time(si.si_pid);
			snprintf(key, sizeof key, "%d-%llu", si.si_pid, start);
			if (!start || (registered(key) && write_exit(key, &si) < 0)) {
				if (told != si.si_pid)
					say("exit file %s: %s; it stays a zombie until this works", key, strerror(errno));
				told = si.si_pid;
				return -1;
			}
		}
		int was_executor = si.si_pid == executor;
		waitpid(si.si_pid, NULL, __WALL);
		if (was_executor) {
			if (quitting)
				_exit(0);
			say("executor %d: %s %d", si.si_pid, si.si_code == CLD_EXITED ? "exited" : "killed", si.si_status);
			executor_ended();
		}
	}
}

// ---- replacing itself ----

// carry writes the state for the next image of this process and returns a
// descriptor that survives execve, or -1.
static int carry(void)
{
	int m = memfd_create("berth-keeper", 0);
	if (m < 0)
		return -1;
	int d = dup(m);
	FILE *f = d < 0 ? NULL : fdopen(d, "w");
	if (!f) {
		if (d >= 0)
			close(d);
		close(m);
		return -1;
	}
	fprintf(f, "exec %d %d\nlock %d\nexe %s\nuntried %d\n", executor, sock, lockfd, executor_path, untried);
	for (int i = 0; i < nnames; i++) {
		fprintf(f, "name %d", names[i].nfds);
		for (int j = 0; j < names[i].nfds; j++)
			fprintf(f, " %d", names[i].fds[j]);
		fprintf(f, " %s\n", names[i].text);
	}
	if (fclose(f) != 0) {
		close(m);
		return -1;
	}
	return m;
}

static void cloexec(int fd, int on)
{
	if (fd >= 0)
		fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0);
}

static void all_cloexec(int on)
{
	cloexec(sock, on);
	cloexec(lockfd, on);
	for (int i = 0; i < nnames; i++)
		for (int j = 0; j < names[i].nfds; j++)
			cloexec(names[i].fds[j], on);
}

// raise_limit makes room for the descriptors of as many containers as the node
// may have: a shell's and systemd's default is 1,024, which is that of 200.
static void raise_limit(void)
{
	struct rlimit most = { files.rlim_max, files.rlim_max };
	setrlimit(RLIMIT_NOFILE, &most);
}

// replace becomes the binary at path by execve: the same process, so still the
// parent of its children. On failure it goes on as it was.
static void replace(const char *path)
{
	// All must have been sent: the next image does not know where this one stood.
	int m = flush() ? -1 : carry();
	if (m < 0) {
		say("not replaced: the executor does not read, or no memory");
		return;
	}
	char number[16];
	snprintf(number, sizeof number, "%d", m);
	all_cloexec(0);
	setrlimit(RLIMIT_NOFILE, &files);
	char *argv[] = { "berth-executor", "keeper", (char *)state_dir, executor_path, number, NULL };
	execv(path, argv);
	say("%s: %s; going on as before", path, strerror(errno));
	raise_limit();
	all_cloexec(1);
	close(m);
}

// recover reads what carry wrote, or what an executor that becomes the keeper
// wrote (Client.Become). A line that cannot be read is fatal to nobody but itself.
static void recover(int m)
{
	FILE *f = fdopen(m, "r");
	if (!f || fseek(f, 0, SEEK_SET) < 0)
		die("state descriptor");
	char line[PATH_MAX + 64];
	while (fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		int a, b;
		if (sscanf(line, "exec %d %d", &a, &b) == 2) {
			executor = a;
			sock = b;
		} else if (sscanf(line, "lock %d", &a) == 1) {
			lockfd = a;
		} else if (!strncmp(line, "exe ", 4)) {
			snprintf(executor_path, sizeof executor_path, "%s", line + 4);
		} else if (sscanf(line, "untried %d", &a) == 1) {
			untried = a;
		} else if (!strncmp(line, "name ", 5)) {
			char *p = line + 5;
			int fds[KEEPER_MAX_FDS], nfds = strtol(p, &p, 10);
			if (nfds < 0 || nfds > KEEPER_MAX_FDS)
				continue;
			int whole = 1;
			for (int i = 0; i < nfds; i++) {
				fds[i] = strtol(p, &p, 10);
				whole &= fcntl(fds[i], F_GETFD) >= 0;
			}
			if (!whole || *p != ' ')
				say("state line not understood: %s", line);
			else if (!add(p + 1, nfds, fds))
				say("no memory for %s", p + 1);
		}
	}
	fclose(f);
	all_cloexec(1);
	if (untried == 2)
		serve_due = now_ms() + KEEPER_SERVE_MS;
}

// quit ends the executor, then this process: an orderly end that leaves the
// containers alone. The executor must go first, else it would become the keeper.
static void quit(void)
{
	quitting = 1;
	if (!executor)
		_exit(0);
	kill(executor, SIGKILL); // our child, not yet reaped: the pid is still its own
}

// ---- messages ----

// cut says that some of the descriptors had no room in this process.
static void message(char *b, int nfds, int *fds, int cut)
{
	char *arg = strchr(b, ' ');
	if (arg)
		*arg++ = 0;
	else
		arg = b + strlen(b);
	if (!strcmp(b, "put") && !cut) {
		struct name *n = add(arg, nfds, fds);
		if (!n) {
			refuse(arg);
			return;
		}
		if (!strcmp(arg, KEEPER_EXE_NAME))
			untried = 0;
		n->answer = 1;
		flush();
		return;
	}
	for (int i = 0; i < nfds; i++)
		close(fds[i]);
	if (!strcmp(b, "put")) {
		refuse(arg);
	} else if (!strcmp(b, "del")) {
		drop(arg);
		if (!strcmp(arg, KEEPER_EXE_NAME))
			untried = 0; // it serves, and has none that could be put
		if (tell("gone", 0, NULL) < 0)
			gone_pending++;
	} else if (!strcmp(b, "exe")) {
		snprintf(executor_path, sizeof executor_path, "%s", arg);
		untried = 1;
	} else if (!strcmp(b, "replace")) {
		replace(arg);
	} else if (!strcmp(b, "quit")) {
		quit();
	} else {
		say("unknown message %s", b);
	}
}

// receive handles all that the executor has sent. A name that was sent before it
// died counts for its orphans.
static void receive(void)
{
	while (sock >= 0 && refuse(NULL) == 0) {
		char b[PATH_MAX + 16];
		_Alignas(struct cmsghdr) char control[CMSG_SPACE(KEEPER_MAX_FDS * sizeof(int))];
		struct iovec v = { b, sizeof b - 1 };
		struct msghdr h = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
		ssize_t n = recvmsg(sock, &h, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
		// ECONNRESET comes once, before what is queued, if it died with ours unread.
		if (n < 0 && (errno == EINTR || errno == ECONNRESET))
			continue;
		if (n < 0)
			return; // nothing more
		if (n == 0) {
			// Without its socket an executor is of no use; SIGCHLD brings the rest.
			close(sock);
			sock = -1;
			return;
		}
		b[n] = 0;
		int nfds = 0, fds[KEEPER_MAX_FDS];
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
			if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
				continue;
			nfds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(fds, CMSG_DATA(c), nfds * sizeof(int));
		}
		message(b, nfds, fds, h.msg_flags & MSG_CTRUNC);
	}
}

// ---- life ----

// lock_holder names the process that holds the lock, as far as it can be known.
static const char *lock_holder(void)
{
	static char text[64];
	char path[PATH_MAX], b[64];
	snprintf(path, sizeof path, "%s/keeper.pid", state_dir);
	int f = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = f < 0 ? -1 : read(f, b, sizeof b - 1);
	if (f >= 0)
		close(f);
	b[n > 0 ? n : 0] = 0;
	int pid = 0;
	unsigned long long start = 0;
	char state = 0;
	if (sscanf(b, "%d %llu", &pid, &start) != 2)
		snprintf(text, sizeof text, "keeper.pid does not say which");
	else if (stat_of(pid, &state) == start && state != 'Z')
		snprintf(text, sizeof text, "process %d", pid);
	else
		snprintf(text, sizeof text, "not process %d of keeper.pid, which has ended", pid);
	return text;
}

static void take_lock(int wait)
{
	char path[PATH_MAX];
	if (lockfd >= 0)
		return;
	snprintf(path, sizeof path, "%s/keeper.lock", state_dir);
	lockfd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	if (lockfd < 0)
		die(path);
	// The lock belongs to the open file, so it ends with the last keeper that holds
	// it. An executor that became the keeper has children to look after: it waits
	// for the dead keeper's lock, which is free at once, rather than give up. Where it
	// is not, another keeper has come up, and that one's executor takes over.
	long long until = now_ms() + (wait ? KEEPER_LOCK_MS : 0);
	for (int told = 0; flock(lockfd, LOCK_EX | LOCK_NB) < 0; told = 1) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			die(path);
		if (now_ms() >= until) {
			say("another keeper holds keeper.lock: %s", lock_holder());
			_exit(1);
		}
		if (!told)
			say("waiting for keeper.lock: %s", lock_holder());
		poll(NULL, 0, 20);
	}
}

static void write_pid(void)
{
	char path[PATH_MAX], tmp[PATH_MAX + 8];
	snprintf(path, sizeof path, "%s/keeper.pid", state_dir);
	snprintf(tmp, sizeof tmp, "%s.tmp", path);
	int f = open(tmp, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	if (f < 0)
		return;
	dprintf(f, "%d %llu\n", getpid(), start_time(getpid()));
	close(f);
	rename(tmp, path);
}

// join_cgroups leaves the starter's cgroup, which may be killed as a whole or
// limited, for one of our own: descriptors from 3 on are its cgroup.procs files.
// Before the executor is started, so that it is born there.
static void join_cgroups(void)
{
	const char *n = getenv(KEEPER_JOIN_ENV);
	for (int fd = 3, end = fd + (n ? atoi(n) : 0); fd < end; fd++) {
		if (write(fd, "0", 1) < 0)
			say("own cgroup: %s", strerror(errno));
		close(fd);
	}
	unsetenv(KEEPER_JOIN_ENV);
}

static void run(int statefd)
{
	char path[PATH_MAX];
	prctl(PR_SET_NAME, "berth-keeper");
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	signal(SIGCHLD, SIG_DFL); // ignored, as some parents leave it, it would reap by itself
	getrlimit(RLIMIT_NOFILE, &files);
	raise_limit();
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGCHLD);
	sigaddset(&s, SIGTERM); // read, and answered by quit()
	sigaddset(&s, SIGINT);  // read, and ignored, as the others
	sigaddset(&s, SIGHUP);
	sigaddset(&s, SIGPIPE);
	sigprocmask(SIG_SETMASK, &s, NULL);
	sigfd = signalfd(-1, &s, SFD_CLOEXEC | SFD_NONBLOCK);
	if (sigfd < 0)
		die("signalfd");
	mkdir(state_dir, 0700);
	snprintf(path, sizeof path, "%s/exit", state_dir);
	mkdir(path, 0700);
	next_have = -1;
	if (statefd >= 0)
		recover(statefd);
	else
		join_cgroups();
	take_lock(statefd >= 0);
	write_pid();

	int stuck = reap(); // signals of before an execve are lost: look once
	if (!executor && !spawn_due)
		spawn();
	for (;;) {
		int more = flush(), timeout = -1;
		if (stuck < 0)
			timeout = 100;
		int serves = give_up();
		if (serves >= 0 && (timeout < 0 || serves < timeout))
			timeout = serves;
		if (spawn_due) {
			long long left = spawn_due - now_ms();
			timeout = left < 0 ? 0 : timeout < 0 || left < timeout ? (int)left : timeout;
		}
		struct pollfd f[2] = { { sigfd, POLLIN, 0 }, { sock, (refused[0] ? 0 : POLLIN) | (more ? POLLOUT : 0), 0 } };
		poll(f, 2, timeout);
		receive();
		struct signalfd_siginfo si;
		while (read(sigfd, &si, sizeof si) == sizeof si)
			if (si.ssi_signo == SIGTERM)
				quit();
		stuck = reap();
		if (spawn_due && spawn_due <= now_ms())
			spawn();
	}
}

// Runs before Go, in every process of the binary; it does nothing unless the
// first argument says "keeper". Priority: before libcontainer's, which looks at
// its own environment only.
__attribute__((constructor(101))) static void keeper_main(int argc, char **argv)
{
	if (argc < 4 || strcmp(argv[1], "keeper"))
		return;
	state_dir = argv[2];
	snprintf(executor_path, sizeof executor_path, "%s", argv[3]);
	run(argc > 4 ? atoi(argv[4]) : -1);
	_exit(0);
}
