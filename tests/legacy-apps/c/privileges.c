/* Processes that give up their user. One scenario per name, for root. Prints the same natively and under culvert. SIGALRM ends
 * what hangs. */
#define _GNU_SOURCE
#include "pair.h"
#include "talk.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { NOBODY = 61003 };

/* Dies with the test. */
static void answer(int s)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	echo(s);
}

static pid_t meet(void)
{
	pid_t p = pair(answer);
	exchange(fd, 0);
	return p;
}

static void give_up(const char *how)
{
	int r;
	if (setgid(NOBODY)) fail("setgid");
	if (!strcmp(how, "setuid")) r = setuid(NOBODY);
	else if (!strcmp(how, "setreuid")) r = setreuid(NOBODY, NOBODY);
	else if (!strcmp(how, "setresuid")) r = setresuid(NOBODY, NOBODY, NOBODY);
	else if (!strcmp(how, "seteuid")) r = seteuid(NOBODY) || setresuid(NOBODY, -1, NOBODY);
	else r = syscall(SYS_setresuid, NOBODY, NOBODY, NOBODY);
	if (r) fail(how);
}

static void await(pid_t c, const char *what)
{
	int status;
	if (waitpid(c, &status, 0) != c) fail("waitpid");
	printf("%s %x\n", what, status);
}

/* Writes all over the memory that this process shares with others. */
static void garble(void)
{
	struct { volatile uint64_t *at; size_t n; } m[64];
	char line[512], perm[8], name[256];
	unsigned long from, to;
	int n = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, f)) {
		name[0] = 0;
		if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %255s", &from, &to, perm, name) >= 3 && n < 64
				&& perm[1] == 'w' && perm[3] == 's') {
			m[n].at = (void *)from;
			m[n++].n = (to - from) / 8;
		}
	}
	fclose(f);
	uint64_t r = 88172645463325252ull;
	for (int round = 0; round < 400; round++) {
		for (int i = 0; i < n; i++)
			for (int j = 0; j < 500; j++) {
				r ^= r << 13, r ^= r >> 7, r ^= r << 17;
				size_t lim = j & 1 && m[i].n > 8192 ? 8192 : m[i].n;
				m[i].at[r % lim] = j % 3 ? r >> (r & 63) : ~0ull;
			}
		struct timespec t = { 0, 500000 };
		nanosleep(&t, 0);
	}
	_exit(0);
}

/* A child that was taken over does not reach its parent's connections, nor its epoll set. */
static void taken_over(const char *how)
{
	meet();
	int ep = epoll_create1(0);
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 77 };
	if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev)) fail("epoll");
	converse(fd, 100);
	int ready[2];
	char b;
	if (pipe(ready)) fail("pipe");
	pid_t c = fork();
	if (c == 0) {
		close(fd);
		close(ready[0]);
		give_up(how);
		close(ready[1]);
		garble();
	}
	close(ready[1]);
	if (read(ready[0], &b, 1) != 0) fail("pipe");
	alarm(40);
	int status;
	do {
		converse(fd, 100);
		if (send(fd, "x", 1, 0) != 1 || epoll_wait(ep, &ev, 1, -1) != 1 || ev.data.u64 != 77) fail("epoll_wait");
		if (recv(fd, &b, 1, 0) != 1) fail("recv");
	} while (waitpid(c, &status, WNOHANG) == 0);
	meet();
	converse(fd, 100);
	puts("is not reached");
}

/* The memory that this process shares with one of its former user's goes, and the connection goes on. */
static void former(const char *how)
{
	char line[512];
	int n = 0;
	meet();
	alarm(40);
	converse(fd, 100);
	give_up(how);
	converse(fd, 100);
	FILE *f = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, f)) n += strstr(line, "culvert-channel") != 0;
	fclose(f);
	printf("%d channels\n", n);
	_exit(0);
}

/* Both go on with a connection that both have, one after the other, and with a set. */
static void both(const char *how)
{
	char b;
	int turn[2];
	if (pipe(turn)) fail("pipe");
	meet();
	int ep = epoll_create1(0), own;
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 77 };
	if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev)) fail("epoll");
	converse(fd, 100);
	alarm(40);
	pid_t c = fork();
	if (c == 0) {
		close(turn[1]);
		if (read(turn[0], &b, 1) != 1) exit(3);
		give_up(how);
		converse(fd, 300);
		if (send(fd, "x", 1, 0) != 1 || epoll_wait(ep, &ev, 1, -1) != 1 || ev.data.u64 != 77) exit(5);
		if (recv(fd, &b, 1, 0) != 1) exit(6);
		own = epoll_create1(0);
		if (epoll_ctl(own, EPOLL_CTL_ADD, fd, &ev) || epoll_wait(own, &ev, 1, 0) != 0) exit(7);
		_exit(0);
	}
	/* An answer lies unread when its user is given up. */
	if (send(fd, "x", 1, 0) != 1 || recv(fd, &b, 1, MSG_PEEK) != 1) fail("peek");
	if (recv(fd, &b, 1, 0) != 1) fail("recv");
	if (write(turn[1], "x", 1) != 1) fail("write");
	await(c, "child");
	converse(fd, 300);
	if (send(fd, "x", 1, 0) != 1 || epoll_wait(ep, &ev, 1, -1) != 1 || ev.data.u64 != 77) fail("epoll_wait");
	puts("both go on");
}

/* What lay unread when a child gave up its user is read once, by it. */
static void unread(const char *how)
{
	char b[8];
	meet();
	alarm(40);
	if (send(fd, "answered", 8, 0) != 8 || recv(fd, b, 8, MSG_PEEK | MSG_WAITALL) != 8) fail("peek");
	pid_t c = fork();
	if (c == 0) {
		give_up(how);
		if (recv(fd, b, 8, MSG_WAITALL) != 8 || memcmp(b, "answered", 8)) _exit(5);
		converse(fd, 100);
		_exit(0);
	}
	await(c, "child");
	converse(fd, 100);
	puts("it is read");
}

static void *receiver(void *unused)
{
	char b[8];
	return (void *)(intptr_t)(recv(fd, b, 8, MSG_WAITALL) == 8 && !memcmp(b, "question", 8));
}

/* A thread that receives when another one gives up the user of both. */
static void threads(const char *how)
{
	meet();
	alarm(40);
	pid_t c = fork();
	if (c == 0) {
		pthread_t t;
		void *ok;
		pthread_create(&t, 0, receiver, 0);
		give_up(how);
		if (send(fd, "question", 8, 0) != 8 || pthread_join(t, &ok) || !ok) _exit(5);
		converse(fd, 100);
		_exit(0);
	}
	await(c, "child");
	converse(fd, 100);
	puts("go on");
}

/* A worker that has given up its user accepts connections. */
static void worker(const char *how)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int s = socket(AF_INET, SOCK_STREAM, 0);
	bind(s, (void *)&a, l);
	listen(s, 5);
	getsockname(s, (void *)&a, &l);
	alarm(40);
	pid_t c = fork();
	if (c == 0) {
		give_up(how);
		for (int i = 0; i < 10; i++) {
			int x = accept(s, 0, 0), ep = epoll_create1(EPOLL_CLOEXEC);
			struct epoll_event ev = { .events = EPOLLIN };
			char b;
			if (x < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, x, &ev)) _exit(5);
			while (epoll_wait(ep, &ev, 1, -1) == 1 && recv(x, &b, 1, 0) == 1)
				if (send(x, &b, 1, 0) != 1) _exit(6);
			close(x);
			close(ep);
		}
		_exit(0);
	}
	for (int i = 0; i < 10; i++) {
		int x = socket(AF_INET, SOCK_STREAM, 0);
		char b;
		if (connect(x, (void *)&a, l)) fail("connect");
		for (int k = 0; k < 400; k++)
			if (send(x, "x", 1, 0) != 1 || recv(x, &b, 1, 0) != 1) fail("exchange");
		close(x);
	}
	await(c, "worker");
}

/* A server that takes on its client's user for a moment stays who it is. */
static void for_a_moment(void)
{
	meet();
	alarm(40);
	pid_t c = fork();
	if (c == 0) _exit(pause());
	for (int i = 0; i < 10; i++) {
		if (seteuid(NOBODY)) fail("seteuid");
		converse(fd, 20);
		if (seteuid(0)) fail("seteuid");
		converse(fd, 20);
	}
	kill(c, SIGKILL);
	puts("stays");
	_exit(0);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "", *how = argc > 2 ? argv[2] : "setuid";
	setvbuf(stdout, 0, _IOLBF, 0);
	if (!strcmp(what, "taken-over")) taken_over(how);
	else if (!strcmp(what, "former")) former(how);
	else if (!strcmp(what, "both")) both(how);
	else if (!strcmp(what, "unread")) unread(how);
	else if (!strcmp(what, "threads")) threads(how);
	else if (!strcmp(what, "worker")) worker(how);
	else if (!strcmp(what, "for-a-moment")) for_a_moment();
	else return 2;
	return 0;
}
