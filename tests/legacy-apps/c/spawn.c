/* A process whose peer is stopped starts another program. One scenario per name. Prints the same natively and under culvert.
 * SIGALRM ends what hangs. */
#define _GNU_SOURCE
#include "pair.h"
#include "talk.h"
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static char buf[1 << 16];
static int *ends;

/* Starts a peer that connects `n` times, and takes those connections. Both ends are brought to where they go. */
static pid_t meet(int n, void (*peer)(int))
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int s = socket(AF_INET, SOCK_STREAM, 0);
	bind(s, (void *)&a, l);
	if (listen(s, n)) fail("listen");
	getsockname(s, (void *)&a, &l);
	ends = calloc(n, sizeof *ends);
	pid_t p = fork();
	for (int i = 0; i < n; i++) {
		if (p == 0) {
			ends[i] = socket(AF_INET, SOCK_STREAM, 0);
			if (connect(ends[i], (void *)&a, l)) fail("connect");
		} else if ((ends[i] = accept(s, 0, 0)) < 0) fail("accept");
	}
	close(s);
	/* No connection is warm before the others. */
	for (int round = 0; round < 64; round++)
		for (int i = 0; i < n; i++) {
			char b;
			if (p == 0 && send(ends[i], "x", 1, 0) != 1) exit(3);
			if (recv(ends[i], &b, 1, 0) != 1) exit(3);
			if (p != 0 && send(ends[i], "x", 1, 0) != 1) exit(3);
		}
	if (p == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		peer(n);
		exit(0);
	}
	return p;
}

static void await_stop(pid_t p)
{
	int status;
	if (waitpid(p, &status, WUNTRACED) != p || !WIFSTOPPED(status)) fail("a peer that stops");
}

static void say_and_stop(int n)
{
	for (int i = 0; i < n; i++)
		if (send(ends[i], buf, 100, 0) != 100) exit(3);
	raise(SIGSTOP);
	for (int i = 0; i < n; i++)
		if (recv(ends[i], buf, 1, 0) != 0) exit(3);
}

static char *environment[] = { 0 };

/* Runs a command. What it prints comes before what is printed next. */
static void run(const char *how, const char *command)
{
	char *argv[] = { "sh", "-c", (char *)command, 0 };
	int status;
	pid_t c;
	fflush(stdout);
	if (!strcmp(how, "system")) {
		if (system(command)) fail("system");
	} else if (!strcmp(how, "popen")) {
		char b[100];
		FILE *f = popen(command, "r");
		while (f && fgets(b, sizeof b, f)) fputs(b, stdout);
		if (!f || pclose(f)) fail("popen");
	} else {
		if (!strncmp(how, "posix", 5)) {
			if (posix_spawn(&c, "/bin/sh", 0, 0, argv, !strcmp(how, "posix-bare") ? environment : environ)) fail("posix_spawn");
		} else if ((c = !strcmp(how, "vfork") ? vfork() : fork()) == 0) {
			execv("/bin/sh", argv);
			_exit(9);
		}
		if (waitpid(c, &status, 0) != c || status) fail("exec");
	}
}

/* What the peer has said before it was stopped lies unread on many connections: that does not add up. */
static void unread(const char *how)
{
	int n = 400;
	pid_t p = meet(n, say_and_stop);
	await_stop(p);
	alarm(15);
	run(how, "true");
	alarm(0);
	kill(p, SIGCONT);
	for (int i = 0; i < n; i++) {
		if (recv(ends[i], buf, 100, MSG_WAITALL) != 100) fail("what was unread");
		shutdown(ends[i], SHUT_WR);
	}
	int status;
	waitpid(p, &status, 0);
	printf("%s: all is read, %x\n", how, status);
}

static int sum[2];

static void stop_and_count(int n)
{
	long all = 0;
	ssize_t r;
	raise(SIGSTOP);
	for (int i = 0; i < n; i++)
		while ((r = recv(ends[i], buf, sizeof buf, 0)) != 0) {
			if (r < 0) exit(5);
			for (int k = 0; k < r; k++)
				if (buf[k] != 's') exit(6);
			all += r;
		}
	if (write(sum[1], &all, sizeof all) != sizeof all) exit(3);
}

/* The peer has not read what was sent, and it is more than its socket takes. */
static void sent(const char *how)
{
	int n = 4;
	long all = 0, counted = 0;
	if (pipe(sum)) fail("pipe");
	pid_t p = meet(n, stop_and_count);
	await_stop(p);
	memset(buf, 's', sizeof buf);
	for (int i = 0; i < n; i++)
		for (long here = 0; here < 14000000;) {
			ssize_t r = send(ends[i], buf, sizeof buf, MSG_DONTWAIT);
			if (r < 0 && errno == EAGAIN) break;
			if (r < 0) fail("send");
			here += r;
			all += r;
		}
	run(how, "true");
	for (int i = 0; i < n; i++) shutdown(ends[i], SHUT_WR);
	kill(p, SIGCONT);
	int status;
	waitpid(p, &status, 0);
	close(sum[1]);
	if (read(sum[0], &counted, sizeof counted) < 0) fail("read");
	printf("%s: %s, %x\n", how, counted == all ? "all arrives" : "it is cut short", status);
}

static void say_and_die(int n)
{
	for (int i = 0; i < n; i++)
		if (send(ends[i], buf, 100, 0) != 100) exit(3);
	kill(getpid(), SIGKILL);
}

/* Bytes that are there on the descriptors from `first` to `last`, and whether they end. */
static void count(int first, int last)
{
	long all = 0, over = 0;
	ssize_t r;
	for (int i = first; i <= last; i++) {
		while ((r = read(i, buf, sizeof buf)) > 0) all += r;
		over += r == 0 || errno == ECONNRESET;
	}
	printf("%ld bytes, %ld ends\n", all, over);
}

/* What a killed peer has said lies unread on many connections, which a program inherits that reads them, or does not. */
static void killed(const char *how, const char *self, int n)
{
	char command[200];
	int status, reads = !strncmp(how, "read-", 5);
	if (reads) how += 5;
	pid_t p = meet(n, say_and_die);
	waitpid(p, &status, 0);
	alarm(30);
	snprintf(command, sizeof command, reads ? "%s count %d %d" : "true", self, ends[0], ends[n - 1]);
	run(how, command);
	/* What that program has read is nobody else's. */
	if (!reads) count(ends[0], ends[n - 1]);
}

int main(int argc, char **argv)
{
	if (argc < 3) return 2;
	setvbuf(stdout, 0, _IOLBF, 0);
	if (argc == 4 && !strcmp(argv[1], "count")) count(atoi(argv[2]), atoi(argv[3]));
	else if (!strcmp(argv[1], "killed")) killed(argv[2], argv[0], 20);
	else if (!strcmp(argv[1], "killed-many")) killed(argv[2], argv[0], 150);
	else if (!strcmp(argv[1], "unread")) unread(argv[2]);
	else if (!strcmp(argv[1], "sent")) sent(argv[2]);
	else return 2;
	return 0;
}
