/* A program is started that reads on where its parent closes the connection at once: what it says at last arrives, and the end. */
#define _GNU_SOURCE
#include "pair.h"
#include <errno.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

enum { MUCH = 15000000, ANSWER = 100000 };

extern char **environ;
static char all[MUCH];
static int over[2];

static void speak(int s)
{
	ssize_t n, at = 0;
	char b;
	close(over[1]);
	while (at < MUCH && (n = send(s, all + at, MUCH - at, MSG_NOSIGNAL)) > 0) at += n;
	shutdown(s, SHUT_WR);
	/* Until nobody has the other end any more. */
	read(over[0], &b, 1);
	for (at = 0; (n = recv(s, all, sizeof all, 0)) > 0; at += n);
	printf("the peer: %zd bytes, %s\n", at, n ? strerror(errno) : "the end");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		ssize_t n, at = 0;
		int s = atoi(argv[1]);
		while ((n = recv(s, all, sizeof all, 0)) > 0) at += n;
		printf("the program: %zd bytes, %s\n", at, n ? strerror(errno) : "the end");
		fflush(stdout);
		if (send(s, all, ANSWER, MSG_NOSIGNAL) != ANSWER) return 1;
		return 0;
	}
	char number[16], *args[] = { argv[0], number, 0 };
	pipe(over);
	pid_t p = pair(speak), child;
	close(over[0]);
	exchange(fd, 0);
	/* As a rule the peer has sent all by then, where so much fits. */
	struct pollfd f = { fd, POLLRDHUP, 0 };
	poll(&f, 1, 300);
	snprintf(number, sizeof number, "%d", fd);
	if (posix_spawn(&child, "/proc/self/exe", 0, 0, args, environ)) return 3;
	close(fd);
	close(over[1]);
	waitpid(child, 0, 0);
	waitpid(p, 0, 0);
	return 0;
}
