/* A program with a connection on a ring forbids itself something, and goes on with the connection, whose peer sleeps each time.
 *
 *   scoped      Landlock, by a system call of its own: it may not write to abstract Unix sockets of others (LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)
 *   dispatched  system calls from other code than libc's raise SIGSYS (PR_SET_SYSCALL_USER_DISPATCH) */
#define _GNU_SOURCE
#include "pair.h"
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static pid_t peer;

static void echo(int s)
{
	char b;
	while (recv(s, &b, 1, 0) == 1) send(s, &b, 1, MSG_NOSIGNAL);
}

static long bare(long nr, long a, long b, long c)
{
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return r;
}

static int scope(void)
{
	unsigned long attributes[3] = { 0, 0, 1 };
	int rules = bare(SYS_landlock_create_ruleset, (long)attributes, sizeof attributes, 0);
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || bare(SYS_landlock_restrict_self, rules, 0, 0);
}

static char blocks = 1;

static int dispatch(void)
{
	unsigned long from, to, first = 0, last = 0;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		if (strstr(line, "/libc.so") && sscanf(line, "%lx-%lx", &from, &to) == 2) {
			if (!first) first = from;
			last = to;
		}
	fclose(maps);
	return prctl(59, 1, first, last - first, &blocks);
}

/* Until the peer waits, and has done so for longer than it dozes (5 ms). What else /proc tells of it is not for a process in a domain. */
static void asleep(void)
{
	char path[64], text[512], state = 0;
	snprintf(path, sizeof path, "/proc/%d/stat", peer);
	while (state != 'S') {
		usleep(10000);
		FILE *f = fopen(path, "r");
		if (!f || !fgets(text, sizeof text, f)) _exit(6);
		fclose(f);
		state = strrchr(text, ')')[2];
	}
}

int main(int argc, char **argv)
{
	alarm(60);
	peer = pair(echo);
	exchange(fd, 0);
	int e = strcmp(argv[1], "scoped") ? dispatch() : scope();
	for (int i = 0; i < 50; i++) {
		char b = i;
		asleep();
		if (send(fd, &b, 1, 0) != 1) return 3;
		struct pollfd p = { .fd = fd, .events = POLLIN };
		if (i % 2 && !strcmp(argv[1], "scoped") && poll(&p, 1, -1) != 1) return 4;
		if (recv(fd, &b, 1, 0) != 1 || b != (char)i) return 5;
	}
	printf("%s %d\n", argv[1], e);
	return 0;
}
