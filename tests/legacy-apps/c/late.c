/* While one thread starts a program, another one makes a connection inheritable: that program has it by oversight, and a copy of what
 * is unread, and ends. Then the program is started that is to have the connection: what it says at last arrives, and the end. */
#define _GNU_SOURCE
#include "heir.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { ROUNDS = 4, LENGTH = 1000, ANSWER = 100000 };

extern char **environ;
static char all[ANSWER];
static int slow, said[2], over[2];
static volatile int started, tid;

/* Leaves bytes unread, and does not take them back: who starts a program waits for that. */
static void stop(int s)
{
	send(s, all, LENGTH, MSG_NOSIGNAL);
	raise(SIGSTOP);
}

static void speak(int s)
{
	close(slow);
	close(over[1]);
	send(s, all, LENGTH, MSG_NOSIGNAL);
	shutdown(s, SHUT_WR);
	if (write(said[1], "x", 1) != 1) exit(3);
	read_answer(s, over[0], all, sizeof all);
}

/* A program that does nothing. */
static void *overlook(void *unused)
{
	char *args[] = { "/bin/true", 0 };
	pid_t child;
	tid = syscall(SYS_gettid);
	if (posix_spawn(&child, args[0], 0, 0, args, environ)) exit(3);
	waitpid(child, 0, 0);
	started = 1;
	return 0;
}

/* Whether that thread waits for something by the clock. */
static int waits(void)
{
	char path[64];
	long call = -1;
	if (!tid) return 0;
	snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
	FILE *f = fopen(path, "r");
	if (f && fscanf(f, "%ld", &call) != 1) call = -1;
	if (f) fclose(f);
	return call == SYS_nanosleep || call == SYS_clock_nanosleep;
}

static void once(char *self)
{
	char b, number[16], *args[] = { self, number, 0 };
	pthread_t t;
	pid_t child;
	pipe(said);
	pid_t stopped = pair(stop);
	exchange(fd, 0);
	slow = fd;
	waitpid(stopped, 0, WUNTRACED);
	pipe2(over, O_CLOEXEC);
	pid_t p = pair(speak);
	close(over[0]);
	exchange(fd, 0);
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (read(said[0], &b, 1) != 1) exit(3);
	started = tid = 0;
	pthread_create(&t, 0, overlook, 0);
	/* Without culvert it never does. */
	while (!waits() && !started);
	fcntl(fd, F_SETFD, 0);
	pthread_join(t, 0);
	snprintf(number, sizeof number, "%d", fd);
	fcntl(over[1], F_SETFD, 0);
	if (posix_spawn(&child, "/proc/self/exe", 0, 0, args, environ)) exit(3);
	close(fd);
	close(over[1]);
	waitpid(child, 0, 0);
	waitpid(p, 0, 0);
	kill(stopped, SIGKILL);
	waitpid(stopped, 0, 0);
	close(slow);
	close(said[0]);
	close(said[1]);
}

int main(int argc, char **argv)
{
	if (argc > 1) return read_and_answer(atoi(argv[1]), all, sizeof all, ANSWER);
	for (int i = 0; i < ROUNDS; i++) once(argv[0]);
	return 0;
}
