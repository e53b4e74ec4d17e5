/* A program is started, and inherits a connection whose peer was killed, while another one runs that has inherited it before by
 * oversight: it reads what this process has left, and nothing twice. */
#define _GNU_SOURCE
#include "pair.h"
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

enum { LENGTH = 200000, HALF = LENGTH / 2 };

extern char **environ;
static char all[LENGTH];
static char command[128];

static void speak(int s)
{
	if (send(s, all, LENGTH, MSG_NOSIGNAL) != LENGTH) exit(2);
	raise(SIGKILL);
}

static void *run(void *unused)
{
	if (system(command)) puts("the command has failed");
	return 0;
}

/* Reads on from `at`, to `to`, or to the end. */
static void go_on(const char *who, int s, int at, int to)
{
	char b[HALF];
	int from = at;
	ssize_t n = 0;
	while (at < to && (n = recv(s, b, to - at < HALF ? to - at : HALF, 0)) > 0) {
		if (at + n > LENGTH || memcmp(b, all + at, n)) printf("%s: wrong bytes behind %d\n", who, at);
		at += n;
	}
	printf("%s: %d bytes from %d, %zd\n", who, at - from, from, at < to ? n : 0);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	for (unsigned i = 0; i < LENGTH; i++) all[i] = i * 2654435761u >> 24;
	if (argc > 1) {
		go_on("the program", atoi(argv[1]), HALF, LENGTH + 1);
		return 0;
	}
	int in[2], out[2];
	char b, number[16];
	char *args[] = { argv[0], number, 0 };
	pthread_t t;
	pipe(in);
	pipe(out);
	pid_t p = pair(speak), child;
	exchange(fd, 0);
	waitpid(p, 0, 0);
	/* It runs until it is let go. */
	snprintf(command, sizeof command, "echo >&%d; read x <&%d", out[1], in[0]);
	pthread_create(&t, 0, run, 0);
	if (read(out[0], &b, 1) != 1) return 3;
	go_on("this one", fd, 0, HALF);
	snprintf(number, sizeof number, "%d", fd);
	if (posix_spawn(&child, "/proc/self/exe", 0, 0, args, environ)) return 3;
	waitpid(child, 0, 0);
	if (write(in[1], "\n", 1) != 1) return 3;
	pthread_join(t, 0);
	return 0;
}
