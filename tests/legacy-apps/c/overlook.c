/* Programs are started, time and again, while another thread reads a connection that they would inherit, whose peer was killed:
 * what is unread is copied for each of them. */
#define _GNU_SOURCE
#include "pair.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { ROUNDS = 150, LENGTH = 3000000, PIECE = 65536 };

extern char **environ;
static volatile int started;
/* What the peer has sent. */
static volatile int *sent;
static char all[LENGTH];

/* As much as fits. */
static void speak(int s)
{
	ssize_t n;
	*sent = 0;
	while (*sent < LENGTH && (n = send(s, all + *sent, LENGTH - *sent, MSG_NOSIGNAL | MSG_DONTWAIT)) > 0) *sent += n;
	raise(SIGKILL);
}

static void *reader(void *unused)
{
	static char b[PIECE];
	int at = 0, reads;
	ssize_t n;
	/* Looks at the same bytes until a program has been started, then reads them all. */
	while (reads = started, (n = recv(fd, b, sizeof b, reads ? 0 : MSG_PEEK)) > 0) {
		if (!reads) continue;
		if (at + n > *sent || memcmp(b, all + at, n)) printf("wrong bytes behind %d\n", at);
		at += n;
	}
	if (n < 0) printf("%s after %d of %d\n", strerror(errno), at, *sent);
	else if (at != *sent) printf("the end after %d of %d\n", at, *sent);
	return 0;
}

int main(void)
{
	char *args[] = { "/bin/true", 0 };
	sent = mmap(0, sizeof *sent, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (unsigned i = 0; i < LENGTH; i++) all[i] = i * 2654435761u >> 24;
	for (int i = 0; i < ROUNDS; i++) {
		pthread_t t;
		pid_t p = pair(speak), child;
		exchange(fd, 0);
		waitpid(p, 0, 0);
		started = 0;
		pthread_create(&t, 0, reader, 0);
		if (posix_spawn(&child, args[0], 0, 0, args, environ)) exit(3);
		started = 1;
		waitpid(child, 0, 0);
		pthread_join(t, 0);
		close(fd);
	}
	puts("done");
}
