/* Takes its sockets from libc, and waits for them in an epoll set or has an io_uring made by the syscall instruction,
 * as rustix and liburing do. */
#include "pair.h"
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

static long raw(long n, long a, long b, long c, long d, long e, long f)
{
	long r;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return r;
}

/* Enough for culvert to be sure. */
static void exchanges(int s, int first)
{
	for (int i = 0; i < 40; i++) exchange(s, first);
}

static void one_more(int s)
{
	char b;
	exchanges(s, 1);
	send(s, "y", 1, 0);
	recv(s, &b, 1, 0);
}

int main(int n, char **v)
{
	if (n != 2) return 2;
	long set = -1;
	if (!strcmp(v[1], "epoll")) {
		set = raw(SYS_epoll_create1, EPOLL_CLOEXEC, 0, 0, 0, 0, 0);
	} else {
		struct io_uring_params p = { 0 };
		long ring = raw(SYS_io_uring_setup, 4, (long)&p, 0, 0, 0, 0);
		printf("io_uring: %s\n", ring < 0 ? strerror(-ring) : "made");
		/* Or the child would print it, too, at its end, which may come behind ours. */
		fflush(stdout);
	}
	pair(one_more);
	struct epoll_event e = { .events = EPOLLIN, .data.u64 = 42 };
	if (set >= 0) raw(SYS_epoll_ctl, set, EPOLL_CTL_ADD, fd, (long)&e, 0, 0);
	exchange(fd, 0);
	exchanges(fd, 0);
	e.data.u64 = 0;
	if (set >= 0) {
		long r = raw(SYS_epoll_pwait, set, (long)&e, 1, PATIENCE_MS, 0, 8);
		printf("%ld event, data %d\n", r, (int)e.data.u64);
	}
	char b = 0;
	printf("%zd byte", recv(fd, &b, 1, 0));
	printf(": %c\n", b);
	return 0;
}
