/* Calls on short stacks, and calls that are left without a return. One scenario per name and call. Prints the same natively and
 * under culvert. SIGALRM ends what hangs. */
#define _GNU_SOURCE
#include "pair.h"
#include <dirent.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>

/* Descriptors of the connection that poll and select ask for. */
enum { MANY = 100, ROUNDS = 200, SETTLED = 50 };

static const char *call;
static int set, all[MANY];
static volatile int inside, left;
static char much[1 << 20];

static void fail(const char *what)
{
	perror(what);
	exit(4);
}

/* Waits until there is something to read, or for ever. */
static void wait_by_call(void)
{
	struct pollfd p[MANY];
	struct epoll_event e[2];
	struct iovec v = { much, sizeof much };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	char b;
	fd_set r;
	if (!strcmp(call, "recv")) recv(fd, &b, 1, MSG_PEEK);
	if (!strcmp(call, "epoll")) epoll_wait(set, e, 2, -1);
	if (!strcmp(call, "sendmsg")) for (;;) sendmsg(fd, &m, 0);
	if (!strcmp(call, "poll")) {
		for (int i = 0; i < MANY; i++) p[i] = (struct pollfd){ all[i], POLLIN, 0 };
		poll(p, MANY, -1);
	}
	if (!strcmp(call, "select")) {
		FD_ZERO(&r);
		for (int i = 0; i < MANY; i++) FD_SET(all[i], &r);
		select(all[MANY - 1] + 1, &r, 0, 0, 0);
	}
}

/* Each answer lets its reader sleep first. */
static void answer(int s)
{
	struct timespec t = { 0, 1000000 };
	char b[64];
	ssize_t n;
	while ((n = recv(s, b, sizeof b, 0)) > 0) {
		nanosleep(&t, 0);
		send(s, b, n, MSG_NOSIGNAL);
	}
}

static void listen_not(int s)
{
	for (;;) pause();
}

static void prepare(void)
{
	struct epoll_event e = { .events = EPOLLIN };
	set = epoll_create1(0);
	epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
	for (int i = 0; i < MANY; i++) all[i] = dup(fd);
}

static ucontext_t outside, within;

static void converse(void)
{
	char b = 'x';
	prepare();
	for (int i = 0; i < WARM + 100; i++) {
		if (send(fd, &b, 1, 0) != 1) fail("send");
		wait_by_call();
		if (recv(fd, &b, 1, 0) != 1) fail("recv");
	}
}

/* A coroutine with a stack of two pages, and a page behind it that nobody may touch. */
static void coroutine(void)
{
	size_t page = 4096;
	char *stack = mmap(0, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(stack, page, PROT_NONE);
	getcontext(&within);
	within.uc_stack.ss_sp = stack + page;
	within.uc_stack.ss_size = 2 * page;
	within.uc_link = &outside;
	makecontext(&within, converse, 0);
	swapcontext(&outside, &within);
	puts("conversed");
}

static void note(void *unused)
{
	left++;
}

static void *cancelled(void *unused)
{
	pthread_cleanup_push(note, 0);
	inside = 1;
	wait_by_call();
	pthread_cleanup_pop(0);
	return 0;
}

static sigjmp_buf back;

static void jump(int sig)
{
	left++;
	siglongjmp(back, 1);
}

static int descriptors(void)
{
	int n = 0;
	DIR *d = opendir("/proc/self/fd");
	while (readdir(d)) n++;
	closedir(d);
	return n;
}

static long size(void)
{
	long kb = 0;
	char line[256];
	FILE *f = fopen("/proc/self/status", "r");
	while (fgets(line, sizeof line, f)) sscanf(line, "VmSize: %ld", &kb);
	fclose(f);
	return kb;
}

/* Many threads, of the shortest stack there is, are cancelled in a call; or one jumps out of it many times. */
static void leave(int jumps)
{
	long bytes = 0;
	int open = 0;
	pthread_attr_t a;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, PTHREAD_STACK_MIN);
	prepare();
	signal(SIGUSR1, jump);
	for (int i = 0; i < ROUNDS; i++) {
		struct timespec t = { 0, i % 5 * 400000 };
		if (jumps) {
			struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
			struct itimerspec s = { .it_value.tv_nsec = 1000000 + t.tv_nsec };
			timer_t timer;
			timer_create(CLOCK_MONOTONIC, &e, &timer);
			if (!sigsetjmp(back, 1)) {
				timer_settime(timer, 0, &s, 0);
				wait_by_call();
			}
			timer_delete(timer);
		} else {
			pthread_t p;
			inside = 0;
			if (pthread_create(&p, &a, cancelled, 0)) fail("pthread_create");
			while (!inside) sched_yield();
			nanosleep(&t, 0);
			pthread_cancel(p);
			pthread_join(p, 0);
		}
		if (i == SETTLED) open = descriptors(), bytes = size();
	}
	printf("left %d times; descriptors: %s, memory: %s\n", left, descriptors() > open + 4 ? "more and more" : "as many",
		size() > bytes + 400 ? "more and more" : "as much");
}

/* All calls of a connection's life, both ends of it. */
static void live(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int listener = socket(AF_INET, SOCK_STREAM, 0), waits = epoll_create1(0), end[2];
	struct epoll_event e = { .events = EPOLLIN };
	struct iovec v;
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	char b[64] = { 0 };
	bind(listener, (void *)&a, l);
	listen(listener, 1);
	getsockname(listener, (void *)&a, &l);
	end[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(end[0], (void *)&a, l)) _exit(3);
	end[1] = accept(listener, 0, 0);
	epoll_ctl(waits, EPOLL_CTL_ADD, end[1], &e);
	v = (struct iovec){ b, sizeof b };
	for (int i = 0; i < WARM; i++) {
		struct pollfd p = { end[0], POLLIN, 0 };
		if (sendmsg(end[0], &m, 0) != sizeof b) _exit(4);
		if (epoll_wait(waits, &e, 1, -1) != 1 || recvmsg(end[1], &m, 0) != sizeof b) _exit(5);
		if (send(end[1], b, sizeof b, 0) != sizeof b) _exit(6);
		if (poll(&p, 1, -1) != 1 || recv(end[0], b, sizeof b, 0) != sizeof b) _exit(7);
	}
	shutdown(end[0], SHUT_WR);
	if (recv(end[1], b, 1, 0) != 0) _exit(8);
	close(end[0]), close(end[1]), close(listener), close(waits);
}

static void *lives(void *unused)
{
	live();
	return 0;
}

static void handles(int sig)
{
	live();
}

/* A process whose first sockets are made on the shortest stack of a thread, or in a handler on one of 8 KB (SIGSTKSZ). */
static void first(void)
{
	enum { PAGE = 4096, STACK = 8192 };
	if (!strcmp(call, "thread")) {
		pthread_attr_t a;
		pthread_t p;
		pthread_attr_init(&a);
		pthread_attr_setstacksize(&a, PTHREAD_STACK_MIN);
		if (pthread_create(&p, &a, lives, 0)) fail("pthread_create");
		pthread_join(p, 0);
	} else {
		char *stack = mmap(0, PAGE + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		stack_t s = { .ss_sp = stack + PAGE, .ss_size = STACK };
		struct sigaction a = { .sa_handler = handles, .sa_flags = SA_ONSTACK };
		mprotect(stack, PAGE, PROT_NONE);
		sigaltstack(&s, 0);
		sigaction(SIGUSR1, &a, 0);
		raise(SIGUSR1);
	}
	puts("lived");
}

int main(int n, char **v)
{
	if (n != 3) return 2;
	alarm(100);
	call = v[2];
	if (!strcmp(v[1], "first")) {
		first();
		return 0;
	}
	if (!strcmp(v[1], "coroutine")) {
		start(answer, 0);
		coroutine();
		return 0;
	}
	pid_t peer = pair(!strcmp(call, "sendmsg") ? listen_not : answer);
	exchange(fd, 0);
	leave(!strcmp(v[1], "jump"));
	kill(peer, SIGKILL);
	return 0;
}
