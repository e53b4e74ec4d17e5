/* What a program writes to a busy connection while it ends, in every order of ending. The peer counts it, and says how
 * the connection ended. argv: how it ends, bytes that the peer sends before (the program reads them at the end), and
 * the library of c/lastwords.c. */
#define _GNU_SOURCE
#include "pair.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

void say_farewell(void);
void last_words(int s, int n);

static int unread, report[2];
static char how[32];

static void peer(int s)
{
	static char b[65536];
	char end[64];
	size_t n = 0;
	ssize_t r;
	for (int left = unread; left > 0; left -= r)
		if ((r = send(s, b, left < (int)sizeof b ? left : (int)sizeof b, MSG_NOSIGNAL)) <= 0) exit(4);
	while ((r = recv(s, b, 16384, 0)) > 0) n += r;
	int l = snprintf(end, sizeof end, "%zu bytes, then %s\n", n, r < 0 ? strerrorname_np(errno) : "the end");
	if (write(report[1], end, l) != l) exit(5);
	/* Not by exit(): the library is ours as well. */
	_exit(0);
}

static void atexit_handler(void)
{
	say_farewell();
}

static pthread_key_t key;

static void key_destructor(void *unused)
{
	(void)unused;
	say_farewell();
}

static pthread_t first;

static void *goes_on(void *unused)
{
	(void)unused;
	pthread_join(first, 0);
	/* The first thread is gone; the connection is not. */
	exchange(fd, 0);
	say_farewell();
	return 0;
}

static void *writes_on(void *unused)
{
	(void)unused;
	say_farewell();
	return 0;
}

static void *ends_all(void *unused)
{
	(void)unused;
	exit(0);
}

static void program(void)
{
	pthread_t t;
	pair(peer);
	if (strcmp(how, "first-thread")) exchange(fd, 0);
	if (!strcmp(how, "first-thread")) {
		first = pthread_self();
		last_words(fd, unread);
		pthread_create(&t, 0, goes_on, 0);
		pthread_exit(0);
	}
	last_words(fd, unread);
	/* So that what the peer sent lies there when the end begins. */
	char b;
	if (unread && recv(fd, &b, 1, MSG_PEEK) != 1) exit(6);
	if (!strcmp(how, "exit")) exit(0);
	if (!strcmp(how, "quick_exit")) {
		at_quick_exit(atexit_handler);
		quick_exit(0);
	}
	if (!strcmp(how, "atexit")) {
		atexit(atexit_handler);
		exit(0);
	}
	if (!strcmp(how, "key")) {
		pthread_key_create(&key, key_destructor);
		pthread_setspecific(key, "x");
		pthread_exit(0);
	}
	if (!strcmp(how, "_exit")) {
		say_farewell();
		_exit(0);
	}
	if (!strcmp(how, "killed")) {
		say_farewell();
		raise(9);
	}
	if (!strcmp(how, "raw")) {
		say_farewell();
		syscall(SYS_exit_group, 0);
	}
	if (!strcmp(how, "abort")) {
		say_farewell();
		abort();
	}
	if (!strcmp(how, "other-thread")) {
		pthread_create(&t, 0, ends_all, 0);
		pthread_join(t, 0);
	}
	if (!strcmp(how, "thread")) {
		pthread_create(&t, 0, writes_on, 0);
		pthread_join(t, 0);
		exit(0);
	}
	if (!strcmp(how, "stdio")) {
		/* Its buffer is flushed after all handlers and destructors. */
		FILE *f = fdopen(dup(fd), "w");
		last_words(-1, 0);
		setvbuf(f, 0, _IOFBF, 1 << 20);
		for (int i = 0; i < 100000; i++) fputs("farewell ", f);
		exit(0);
	}
	if (!strcmp(how, "shared")) {
		/* A child that holds the connection, too, ends first: its farewell, then ours. */
		pid_t p = fork();
		if (p == 0) exit(0);
		waitpid(p, 0, 0);
		last_words(fd, 0);
		exit(0);
	}
	exit(7);
}

int main(int argc, char **argv)
{
	char b[256];
	ssize_t n;
	if (argc != 3) return 2;
	strncpy(how, argv[1], sizeof how - 1);
	unread = atoi(argv[2]);
	if (pipe(report)) return 2;
	pid_t p = fork();
	if (p == 0) {
		alarm(50);
		setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
		program();
	}
	close(report[1]);
	waitpid(p, 0, 0);
	while ((n = read(report[0], b, sizeof b)) > 0) fwrite(b, 1, n, stdout);
	return 0;
}
