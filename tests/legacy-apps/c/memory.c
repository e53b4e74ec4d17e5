/* What is left of connections and of peers once they are gone.
 *
 *   memory pollers N        threads wait in epoll sets while N client processes come and go
 *   memory churn HOW N      N connections, one after another; HOW says what happens during each
 *   memory filled           a peer that does not read is killed, and its connections are closed
 *   memory counted          what of several peers is address space, would be dumped, or is locked
 *   memory limited GROUP    slow readers of a sender in a control group (its directory) with little memory
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WARM = 60, PEERS = 20 };

static int listener(int *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bind(s, (void *)&a, l);
	listen(s, 128);
	getsockname(s, (void *)&a, &l);
	*port = ntohs(a.sin_port);
	return s;
}

static int dial(int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port) };
	int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(s, (void *)&a, sizeof a)) exit(3);
	return s;
}

/* n exchanges of a byte; 0 once the other end has ended. */
static int exchange(int s, int first, int n)
{
	char b;
	for (int i = 0; i < n; i++) {
		if (first && send(s, "x", 1, MSG_NOSIGNAL) != 1) return 0;
		if (recv(s, &b, 1, 0) != 1) return 0;
		if (!first && send(s, "x", 1, MSG_NOSIGNAL) != 1) return 0;
	}
	return 1;
}

/* This program again, as a client. vfork: nothing of the server is inherited. */
static pid_t client(const char *what, int port, int n)
{
	char p[16], k[16];
	sprintf(p, "%d", port);
	sprintf(k, "%d", n);
	pid_t c = vfork();
	if (c == 0) {
		execl("/proc/self/exe", "memory", what, p, k, (char *)0);
		_exit(9);
	}
	return c;
}

static long number(const char *file, const char *key)
{
	char line[512];
	long n = -1;
	FILE *f = fopen(file, "r");
	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, key, strlen(key))) n = atol(line + strlen(key));
	if (f) fclose(f);
	return n;
}

static int lines(const char *file, const char *with)
{
	char line[512];
	int n = 0;
	FILE *f = fopen(file, "r");
	while (f && fgets(line, sizeof line, f)) n += strstr(line, with) != 0;
	if (f) fclose(f);
	return n;
}

static int descriptors(void)
{
	/* Numbers beyond the soft limit's usual ones are culvert's. */
	int n = 0;
	for (int i = 0; i < 20000; i++) n += syscall(SYS_fcntl, i, F_GETFD) >= 0;
	return n;
}

struct held {
	long size, shared, tables;
	int maps, descriptors;
};

static struct held held(void)
{
	struct held h = {
		.size = number("/proc/self/status", "VmSize:"),
		.shared = number("/proc/self/status", "RssShmem:"),
		.tables = number("/proc/self/status", "VmPTE:"),
		.maps = lines("/proc/self/maps", "-"),
		.descriptors = descriptors(),
	};
	return h;
}

/* ---- pollers */

static int waiting;

static void tick(int signal)
{
	/* Some time: it falls between the look at a channel and the access, often enough. */
	struct timespec a, b;
	(void)signal;
	clock_gettime(CLOCK_MONOTONIC, &a);
	do clock_gettime(CLOCK_MONOTONIC, &b);
	while ((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec < 50000);
}

static void *poller(void *unused)
{
	struct sigevent e = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF };
	struct itimerspec every = { { 0, 200000 }, { 0, 200000 } };
	timer_t t;
	e._sigev_un._tid = syscall(SYS_gettid);
	timer_create(CLOCK_MONOTONIC, &e, &t);
	timer_settime(t, 0, &every, 0);
	int c = accept4(waiting, 0, 0, SOCK_CLOEXEC), set = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event v = { .events = EPOLLIN, .data.fd = c };
	epoll_ctl(set, EPOLL_CTL_ADD, c, &v);
	for (;;) {
		char b;
		if (epoll_wait(set, &v, 1, 1) > 0) {
			if (recv(c, &b, 1, 0) != 1) return unused;
			send(c, "x", 1, MSG_NOSIGNAL);
		}
	}
}

static int pollers(int n)
{
	enum { THREADS = 3 };
	int port, short_port, good = 0;
	pid_t lasting[THREADS];
	pthread_t t;
	struct sigaction sa = { .sa_handler = tick, .sa_flags = SA_RESTART };
	sigaction(SIGPROF, &sa, 0);
	waiting = listener(&port);
	int l = listener(&short_port);
	for (int i = 0; i < THREADS; i++) {
		pthread_create(&t, 0, poller, 0);
		lasting[i] = client("lasting", port, 0);
	}
	for (int i = 0; i < n; i++) {
		int status;
		pid_t p = client("short", short_port, 24);
		int c = accept4(l, 0, 0, SOCK_CLOEXEC);
		exchange(c, 0, 1 << 30);
		close(c);
		while (waitpid(p, &status, 0) < 0 && errno == EINTR) continue;
		good += status == 0;
	}
	for (int i = 0; i < THREADS; i++) kill(lasting[i], SIGKILL);
	printf("%d of %d clients served\n", good, n);
	fflush(stdout);
	_exit(0);
}

/* ---- churn */

static char big[1 << 16];

static void fill(int s)
{
	fcntl(s, F_SETFL, O_NONBLOCK);
	while (send(s, big, sizeof big, MSG_NOSIGNAL) > 0) continue;
	fcntl(s, F_SETFL, 0);
}

static void during(const char *how, int s, pid_t peer)
{
	char *args[] = { "true", 0 };
	pid_t c = 0;
	if (!strcmp(how, "exec")) {
		c = fork();
		if (c == 0) {
			execv("/bin/true", args);
			_exit(1);
		}
	} else if (!strcmp(how, "lasting-exec")) {
		/* The program that the child becomes lives longer than the connection. */
		char *sleeper[] = { "sleep", "1000", 0 };
		c = fork();
		if (c == 0) {
			execv("/bin/sleep", sleeper);
			_exit(1);
		}
		char path[64], what[64] = "";
		sprintf(path, "/proc/%d/comm", c);
		while (strcmp(what, "sleep\n")) {
			FILE *f = fopen(path, "r");
			if (!f || !fgets(what, sizeof what, f)) *what = 0;
			if (f) fclose(f);
		}
		c = 0;
	} else if (!strcmp(how, "child")) {
		c = fork();
		if (c == 0) pause();
		kill(c, SIGKILL);
	} else if (!strcmp(how, "closes")) {
		/* The child has the connection longer than this process, and ends it. */
		c = fork();
		if (c == 0) {
			exchange(s, 0, 1 << 30);
			_exit(0);
		}
		close(s);
	} else if (!strcmp(how, "killed")) {
		fill(s);
		kill(peer, SIGKILL);
	}
	if (c) waitpid(c, 0, 0);
}

static int churn(const char *how, int n)
{
	/* What it has run and not waited for ends with it. */
	setpgid(0, 0);
	int port, l = listener(&port), processes = !strcmp(how, "peers") || !strcmp(how, "killed");
	pid_t p = processes ? 0 : client("many", port, n);
	struct held early = { 0 }, late;
	for (int i = 0; i < n; i++) {
		if (processes) p = client(!strcmp(how, "killed") ? "lasting" : "short", port, 2 * WARM);
		int c = accept4(l, 0, 0, SOCK_CLOEXEC);
		exchange(c, 0, WARM);
		during(how, c, p);
		if (strcmp(how, "killed")) exchange(c, 0, 1 << 30);
		close(c);
		if (processes) waitpid(p, 0, 0);
		/* What a first time leaves is there once. */
		if (i == n / 4) early = held();
	}
	late = held();
	if (!processes) waitpid(p, 0, 0);
	signal(SIGTERM, SIG_IGN);
	kill(0, SIGTERM);
	if (late.size > early.size + 2048) printf("address space: %ld, then %ld KB\n", early.size, late.size);
	if (late.shared > early.shared + 64) printf("shared memory: %ld, then %ld KB\n", early.shared, late.shared);
	if (late.tables > early.tables + 64) printf("page tables: %ld, then %ld KB\n", early.tables, late.tables);
	if (late.maps > early.maps + 4) printf("mappings: %d, then %d\n", early.maps, late.maps);
	if (late.descriptors > early.descriptors + 8) printf("descriptors: %d, then %d\n", early.descriptors, late.descriptors);
	if (lines("/proc/self/maps", "culvert-channel")) printf("a channel is mapped yet\n");
	if (late.shared > 512) printf("%ld KB of shared memory\n", late.shared);
	printf("%s: done\n", how);
	return 0;
}

/* ---- filled */

/* KB of the channels' memory, mapped or not: what is not mapped any more is not given back yet. */
static long in_files(void)
{
	char path[64], name[64];
	long sum = 0;
	for (int fd = 0; fd < 16384; fd++) {
		struct stat st;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, name, sizeof name - 1);
		if (n <= 0) continue;
		name[n] = 0;
		if (strstr(name, "culvert-channel") && !stat(path, &st)) sum += st.st_blocks / 2;
	}
	return sum;
}

static int filled(void)
{
	int port, l = listener(&port), s[PEERS];
	/* All in one process, so that they share a channel. */
	pid_t p = client("unread", port, PEERS);
	for (int i = 0; i < PEERS; i++) s[i] = accept4(l, 0, 0, SOCK_CLOEXEC);
	for (int i = 0; i < PEERS; i++) exchange(s[i], 0, WARM);
	for (int i = 0; i < PEERS; i++) fill(s[i]);
	kill(p, SIGKILL);
	waitpid(p, 0, 0);
	/* All but one: its memory goes by itself, not only with the channel's. */
	for (int i = 1; i < PEERS; i++) close(s[i]);
	long some = in_files();
	close(s[0]);
	long none = in_files();
	/* Natively the kernel's buffers are nobody's. */
	printf("%s after all but one, %s after all\n", some < 8192 ? "little" : "much", none < 512 ? "nothing" : "much");
	return 0;
}

/* ---- counted */

/* KB of mappings that a core would hold: writable, without MADV_DONTDUMP. */
static long dumped(void)
{
	char line[512], perms[8] = "";
	long size = 0, sum = 0, a, b;
	FILE *f = fopen("/proc/self/smaps", "r");
	while (f && fgets(line, sizeof line, f)) {
		if (sscanf(line, "%lx-%lx %7s", &a, &b, perms) == 3) size = (b - a) >> 10;
		if (!strncmp(line, "VmFlags:", 8) && perms[1] == 'w' && !strstr(line, " dd")) sum += size;
	}
	if (f) fclose(f);
	return sum;
}

static int counted(void)
{
	int port, l = listener(&port), s[PEERS];
	pid_t p[PEERS];
	for (int i = 0; i < 2 * PEERS; i++) {
		int k = i % PEERS;
		if (i == PEERS) {
			/* Once with what is mapped by then, once with what comes. */
			if (mlockall(MCL_CURRENT | MCL_FUTURE)) return 4;
			for (int j = 0; j < PEERS; j++) {
				kill(p[j], SIGKILL);
				waitpid(p[j], 0, 0);
				close(s[j]);
			}
		}
		long before = number("/proc/self/status", "VmSize:");
		p[k] = client("lasting", port, 0);
		s[k] = accept4(l, 0, 0, SOCK_CLOEXEC);
		exchange(s[k], 0, WARM);
		fill(s[k]);
		long more = number("/proc/self/status", "VmSize:") - before;
		if (i > 0 && more > 8192) printf("%ld KB of address space for a peer\n", more);
	}
	long dump = dumped(), locked = number("/proc/self/status", "VmLck:");
	if (dump > 4096) printf("%ld KB would be dumped\n", dump);
	if (locked > 8192 || locked < 512) printf("%ld KB are locked\n", locked);
	if (munlockall() || number("/proc/self/status", "VmLck:")) printf("some are locked yet\n");
	for (int i = 0; i < PEERS; i++) kill(p[i], SIGKILL);
	printf("counted\n");
	return 0;
}

/* ---- limited */

static volatile sig_atomic_t go;

static void on_go(int signal)
{
	(void)signal;
	go = 1;
}

static int limited(const char *group)
{
	int port, l = listener(&port), s[PEERS], result[2];
	long long total = 0, got = -1;
	char path[512], text[32] = "";
	if (pipe(result)) return 4;
	pid_t p = fork();
	if (p == 0) {
		char to[16];
		sprintf(to, "%d", port);
		dup2(result[1], 1);
		execl("/proc/self/exe", "memory", "later", to, "0", (char *)0);
		_exit(9);
	}
	close(result[1]);
	snprintf(path, sizeof path, "%s/cgroup.procs", group);
	FILE *f = fopen(path, "w");
	if (!f || fprintf(f, "%d", getpid()) < 0 || fclose(f)) return 5;
	for (int i = 0; i < PEERS; i++) s[i] = accept4(l, 0, 0, SOCK_CLOEXEC);
	for (int i = 0; i < PEERS; i++) exchange(s[i], 0, WARM);
	for (int i = 0; i < PEERS; i++) {
		fcntl(s[i], F_SETFL, O_NONBLOCK);
		for (ssize_t r; (r = send(s[i], big, sizeof big, MSG_NOSIGNAL)) > 0;) total += r;
	}
	kill(p, SIGUSR1);
	for (int i = 0; i < PEERS; i++) shutdown(s[i], SHUT_WR);
	if (read(result[0], text, sizeof text - 1) > 0) got = atoll(text);
	waitpid(p, 0, 0);
	printf("%s, %s\n", total > PEERS * 500000LL ? "much was taken" : "little was taken",
	       got == total ? "all of it came" : "not all of it came");
	return 0;
}

static int later(int port)
{
	int s[PEERS];
	long long got = 0;
	struct sigaction sa = { .sa_handler = on_go };
	sigset_t usr1, old;
	sigaction(SIGUSR1, &sa, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, &old);
	for (int i = 0; i < PEERS; i++) s[i] = dial(port);
	for (int i = 0; i < PEERS; i++) exchange(s[i], 1, WARM);
	while (!go) sigsuspend(&old);
	for (int i = 0; i < PEERS; i++)
		for (ssize_t r; (r = recv(s[i], big, sizeof big, 0)) > 0;) got += r;
	printf("%lld", got);
	return 0;
}

int main(int n, char **v)
{
	signal(SIGPIPE, SIG_IGN);
	if (n < 2) return 2;
	if (n > 3 && !strcmp(v[1], "short")) {
		int s = dial(atoi(v[2]));
		return !exchange(s, 1, atoi(v[3]));
	}
	if (n > 3 && !strcmp(v[1], "lasting")) {
		struct timespec t = { 0, 2000000 };
		int s = dial(atoi(v[2]));
		for (int i = 0; exchange(s, 1, 1); i++)
			if (i > 2 * WARM) nanosleep(&t, 0);
		for (;;) pause();
	}
	if (n > 3 && !strcmp(v[1], "many")) {
		for (int i = 0; i < atoi(v[3]); i++) {
			int s = dial(atoi(v[2]));
			exchange(s, 1, 2 * WARM);
			close(s);
		}
		return 0;
	}
	if (n > 3 && !strcmp(v[1], "unread")) {
		int many = atoi(v[3]), s[many];
		for (int i = 0; i < many; i++) s[i] = dial(atoi(v[2]));
		for (int i = 0; i < many; i++) exchange(s[i], 1, WARM);
		for (;;) pause();
	}
	if (n > 2 && !strcmp(v[1], "pollers")) return pollers(atoi(v[2]));
	if (n > 3 && !strcmp(v[1], "churn")) return churn(v[2], atoi(v[3]));
	if (!strcmp(v[1], "filled")) return filled();
	if (!strcmp(v[1], "counted")) return counted();
	if (n > 2 && !strcmp(v[1], "later")) return later(atoi(v[2]));
	if (n > 2 && !strcmp(v[1], "limited")) return limited(v[2]);
	return 2;
}
