/* Counts what the kernel carries of a busy connection, before and after a line on standard input. argv: how the program
 * waits, and the port of a server that echoes. */
#define _GNU_SOURCE
#include "pair.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <linux/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

enum { SIZE = 100 };

/* What the kernel itself says: received, and sent and acknowledged or not. */
static unsigned long carried(void)
{
	static struct tcp_info i;
	unsigned n = sizeof i;
	long r;
	register long level __asm__("rdi") = fd, name __asm__("rsi") = IPPROTO_TCP, what __asm__("rdx") = TCP_INFO;
	register void *value __asm__("r10") = &i;
	register unsigned *size __asm__("r8") = &n;
	__asm__ volatile("syscall" : "=a"(r) : "a"(55L), "r"(level), "r"(name), "r"(what), "r"(value), "r"(size)
		: "rcx", "r11", "memory");
	return r < 0 ? 0 : i.tcpi_bytes_received;
}

static int set, waits;

static void wait_readable(void)
{
	struct epoll_event e;
	struct pollfd p = { fd, POLLIN, 0 };
	if (waits == 'e') epoll_wait(set, &e, 1, -1);
	if (waits == 'p') poll(&p, 1, -1);
}

static void exchanges(int n)
{
	char b[SIZE], got[SIZE];
	for (int i = 0; i < n; i++) {
		memset(b, i, sizeof b);
		if (send(fd, b, sizeof b, 0) != sizeof b) exit(4);
		for (size_t at = 0; at < sizeof b;) {
			wait_readable();
			ssize_t r = recv(fd, got + at, sizeof b - at, waits ? MSG_DONTWAIT : 0);
			if (r < 0 && waits) continue;
			if (r <= 0) exit(5);
			at += r;
		}
		if (memcmp(b, got, sizeof b)) exit(6);
	}
}

int main(int n, char **v)
{
	char line;
	struct epoll_event e = { EPOLLIN, { 0 } };
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (n != 3) return 2;
	waits = !strcmp(v[1], "epoll") ? 'e' : !strcmp(v[1], "poll") ? 'p' : 0;
	alarm(50);
	a.sin_port = htons(atoi(v[2]));
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (void *)&a, sizeof a)) return 7;
	exchange(fd, 1);
	set = epoll_create1(0);
	epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
	exchanges(300);
	puts("ready");
	fflush(stdout);
	if (read(0, &line, 1) != 1) return 3;
	exchanges(1);
	unsigned long before = carried();
	exchanges(300);
	printf("by the kernel: %lu\n", carried() - before);
	shutdown(fd, SHUT_WR);
	printf("the end: %zd\n", recv(fd, &line, 1, 0));
	return 0;
}
