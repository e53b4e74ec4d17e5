/* A program with a connection on a ring forbids itself something, and goes on with the connection, whose peer sleeps each time.
 *
 *   scoped      Landlock, by a system call of its own: it may not write to abstract Unix sockets of others (LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)
 *   dispatched  system calls from other code than libc's raise SIGSYS (PR_SET_SYSCALL_USER_DISPATCH)
 *   flooded     as scoped, while its peer waits for room in a send
 *   polled      as scoped, while its peer waits for room in epoll
 *   sends N B   as scoped, and sends N bytes, while its peer sleeps; with a send buffer (SO_SNDBUF) of B bytes, unless that is 0
 *   file N B    the same by sendfile */
#define _GNU_SOURCE
#include "pair.h"
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static pid_t peer;
static long amount;

static void echo(int s)
{
	char b;
	while (recv(s, &b, 1, 0) == 1) send(s, &b, 1, MSG_NOSIGNAL);
}

enum { FLOOD = 24 << 20, PIECE = 1 << 16 };

/* Byte i of the flood. */
static char at(long i)
{
	return i * 7 + i / PIECE;
}

/* Sends the flood, and waits for an answer. */
static void flood(int s)
{
	static char piece[PIECE];
	int set = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLOUT | EPOLLET };
	epoll_ctl(set, EPOLL_CTL_ADD, s, &e);
	for (long done = 0; done < FLOOD;) {
		for (int i = 0; i < PIECE; i++) piece[i] = at(done + i);
		for (int n = 0; n < PIECE;) {
			ssize_t r = send(s, piece + n, PIECE - n, MSG_NOSIGNAL);
			if (r < 0 && epoll_wait(set, &e, 1, -1) != 1) exit(7);
			if (r > 0) n += r;
		}
		done += PIECE;
	}
	close(set);
	fcntl(s, F_SETFL, 0);
	char b;
	if (recv(s, &b, 1, 0) != 1) exit(8);
}

static void flood_polling(int s)
{
	fcntl(s, F_SETFL, O_NONBLOCK);
	flood(s);
}

/* Reads as much as there is to come, and answers. */
static void reader(int s)
{
	static char piece[PIECE];
	long n = 0, r;
	while ((r = recv(s, piece, PIECE, 0)) > 0) {
		for (long i = 0; i < r; i++)
			if (piece[i] != at(n + i)) exit(7);
		n += r;
		if (n == amount && send(s, "x", 1, MSG_NOSIGNAL) != 1) exit(8);
	}
	exit(n == amount ? 0 : 9);
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

/* Reads the flood, of which the peer sends more whenever there is room. */
static int reads(void)
{
	static char piece[PIECE];
	for (long done = 0; done < FLOOD;) {
		if (done % (4 << 20) == 0) asleep();
		ssize_t r = recv(fd, piece, PIECE - done % PIECE, 0);
		if (r <= 0) return 4;
		for (int i = 0; i < r; i++)
			if (piece[i] != at(done + i)) return 5;
		done += r;
	}
	if (send(fd, "", 1, 0) != 1) return 3;
	return recv(fd, piece, 1, 0) ? 9 : 0;
}

/* Sends the bytes while the peer sleeps, and waits for its answer. */
static int sends(int buffer, int by_file)
{
	char *all = malloc(amount);
	for (long i = 0; i < amount; i++) all[i] = at(i);
	FILE *f = tmpfile();
	if (fwrite(all, 1, amount, f) != (size_t)amount || fflush(f)) return 2;
	if (buffer) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
	asleep();
	off_t from = 0;
	for (long n = 0, r; n < amount; n += r) {
		r = by_file ? sendfile(fd, fileno(f), &from, amount - n) : send(fd, all + n, amount - n, 0);
		if (r <= 0) return 3;
	}
	if (recv(fd, all, 1, 0) != 1) return 4;
	shutdown(fd, SHUT_WR);
	int status;
	return waitpid(peer, &status, 0) == peer && status == 0 ? 0 : 5;
}

int main(int argc, char **argv)
{
	alarm(60);
	if (argc > 3) {
		amount = atol(argv[2]);
		peer = pair(reader);
		exchange(fd, 0);
		asleep();
		int e = scope(), r = sends(atoi(argv[3]), !strcmp(argv[1], "file"));
		printf("%s %d\n", argv[1], e);
		return r;
	}
	int polls = !strcmp(argv[1], "polled"), floods = polls || !strcmp(argv[1], "flooded");
	peer = pair(polls ? flood_polling : floods ? flood : echo);
	exchange(fd, 0);
	if (floods) {
		asleep();
		int e = scope(), r = reads();
		printf("%s %d\n", argv[1], e);
		return r;
	}
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
