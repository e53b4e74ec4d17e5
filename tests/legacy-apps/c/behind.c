/* A busy connection with bytes that the peer has not read is closed by a system call of the program's own, and its number is
 * soon another file's: what is meant for the one must not come to the other. argv: what gets the number. */
#define _GNU_SOURCE
#include "pair.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

static int closed(int f)
{
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "a"(3L), "D"((long)f) : "rcx", "r11", "memory");
	return r;
}

static int listener;

/* Its own connection lies unread; the next one is asked for, and all that comes on it is said. */
static void peer(int s)
{
	struct sockaddr_in a;
	socklen_t l = sizeof a;
	static char b[100000];
	ssize_t n, all = 0;
	int t = socket(AF_INET, SOCK_STREAM, 0);
	getsockname(listener, (void *)&a, &l);
	if (connect(t, (void *)&a, l)) exit(4);
	exchange(t, 1);
	while ((n = recv(t, b + all, sizeof b - all, 0)) > 0) all += n;
	printf("the next connection: %zd bytes, then %zd, %.5s\n", all, n, b);
	for (all = 0; (n = recv(s, b, sizeof b, 0)) > 0;) all += n;
	printf("the first one: %zd bytes, then %zd\n", all, n);
	fflush(stdout);
}

int main(int n, char **v)
{
	static char b[5000];
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int status, got = -1;
	if (n != 2) return 2;
	alarm(50);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	bind(listener, (void *)&a, sizeof a);
	listen(listener, 1);
	pid_t p = pair(peer);
	exchange(fd, 0);
	send(fd, b, sizeof b, 0);
	/* The lowest number that is free is to be the connection's. */
	dup(2);
	closed(fd);
	char name[] = "/tmp/behindXXXXXX";
	if (!strcmp(v[1], "accept")) got = accept(listener, 0, 0);
	if (!strcmp(v[1], "dup")) got = dup(2);
	if (!strcmp(v[1], "stream")) got = fileno(tmpfile());
	if (!strcmp(v[1], "file")) got = mkstemp(name);
	printf("the same number: %d\n", got == fd);
	if (!strcmp(v[1], "file")) {
		printf("in the file: %d\n", (int)lseek(got, 0, SEEK_END));
		unlink(name);
	}
	fflush(stdout);
	int next = strcmp(v[1], "accept") ? accept(listener, 0, 0) : got;
	exchange(next, 0);
	send(next, "hello", 5, 0);
	close(next);
	waitpid(p, &status, 0);
	printf("the peer's status: %d\n", status);
	return 0;
}
