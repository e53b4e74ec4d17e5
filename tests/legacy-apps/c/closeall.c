/* A program that closes every number it does not know, by system calls of its own, and gets them all for sockets then. Its connection
 * goes on, and nothing of it appears elsewhere. */
#define _GNU_SOURCE
#include "pair.h"
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

enum { PAIRS = 550 };

static int ends[PAIRS][2];

static void close_without_libc(long number)
{
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "a"(SYS_close), "D"(number) : "rcx", "r11", "memory");
}

static void pass(long ms)
{
	struct timespec t = { 0, ms * 1000000 };
	nanosleep(&t, 0);
}

/* Each end lets the other go to sleep. */
static void answer(int s)
{
	char b[64];
	ssize_t n;
	while ((n = recv(s, b, sizeof b, 0)) > 0) {
		pass(3);
		send(s, b, n, MSG_NOSIGNAL);
	}
}

int main(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	struct rlimit many = { 1200, 1200 };
	char b[64];
	int strange = 0;
	alarm(60);
	if (setrlimit(RLIMIT_NOFILE, &many)) return 77;
	pid_t peer = pair(answer);
	exchange(fd, 0);
	for (long i = 3; i < 1200; i++)
		if (i != fd) close_without_libc(i);
	int s = socket(AF_INET, SOCK_STREAM, 0);
	bind(s, (void *)&a, l);
	listen(s, PAIRS);
	getsockname(s, (void *)&a, &l);
	for (int i = 0; i < PAIRS; i++) {
		ends[i][0] = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(ends[i][0], (void *)&a, l) || (ends[i][1] = accept(s, 0, 0)) < 0) return 3;
	}
	for (int i = 0; i < 100; i++) {
		if (send(fd, "question", 8, 0) != 8 || recv(fd, b, 8, MSG_WAITALL) != 8) return 4;
		pass(8);
	}
	for (int i = 0; i < 2 * PAIRS; i++)
		strange += recv(ends[i / 2][i % 2], b, sizeof b, MSG_DONTWAIT) > 0;
	printf("answered; %d sockets got what was never sent\n", strange);
	kill(peer, SIGKILL);
	return 0;
}
