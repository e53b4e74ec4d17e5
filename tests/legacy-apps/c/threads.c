/* What happens to a thread that sleeps in recv() on a busy connection: one scenario per name. Prints the same natively
 * and under culvert. Nothing is waited for by the clock, but a hang. */
#define _GNU_SOURCE
#include "pair.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

static volatile int tid, received;
static sem_t jumped, never;
static sigjmp_buf back;

/* Until a thread of ours sleeps. */
static void wait_asleep(void)
{
	char path[64], text[256], *state;
	do {
		sched_yield();
		snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
		FILE *f = tid ? fopen(path, "r") : 0;
		text[f ? fread(text, 1, sizeof text - 1, f) : 0] = 0;
		if (f) fclose(f);
		state = strrchr(text, ')');
	} while (!state || state[2] != 'S');
}

/* A message every millisecond, for some seconds. */
static void babble(int s)
{
	struct timespec ms = { 0, 1000000 };
	for (int i = 0; i < 5000; i++) {
		if (send(s, "x", 1, MSG_NOSIGNAL) != 1) return;
		nanosleep(&ms, 0);
	}
}

static void *reader(void *unused)
{
	char b[64];
	exchange(fd, 0);
	while (recv(fd, b, sizeof b, 0) > 0) received++;
	return 0;
}

/* Cancelled between messages, none of which lets it wait for long. */
static void cancel(void)
{
	void *how;
	pthread_t t;
	pid_t p = pair(babble);
	pthread_create(&t, 0, reader, 0);
	while (received < 100) sched_yield();
	pthread_cancel(t);
	pthread_join(t, &how);
	puts(how == PTHREAD_CANCELED ? "cancelled" : "read to the end");
	kill(p, SIGKILL);
}

static void hear_end(int s)
{
	struct pollfd f = { s, POLLIN, 0 };
	char b[8];
	exit(poll(&f, 1, PATIENCE_MS) == 1 && recv(s, b, sizeof b, 0) == 0 ? 0 : 1);
}

static void leave(int sig)
{
	siglongjmp(back, 1);
}

static void *jumper(void *unused)
{
	char b[64];
	exchange(fd, 0);
	tid = gettid();
	if (!sigsetjmp(back, 1)) recv(fd, b, sizeof b, 0);
	sem_post(&jumped);
	sem_wait(&never);
	return 0;
}

/* Closed after a handler has jumped out of the sleep, while the thread sleeps on something else. */
static void jump(void)
{
	int status;
	pthread_t t;
	pid_t p = pair(hear_end);
	signal(SIGUSR1, leave);
	pthread_create(&t, 0, jumper, 0);
	wait_asleep();
	pthread_kill(t, SIGUSR1);
	sem_wait(&jumped);
	wait_asleep();
	close(fd);
	waitpid(p, &status, 0);
	puts(status ? "the peer heard no end" : "the peer heard the end");
}

static int ready[2];

/* Killed with bytes unread, it would reset the connection. */
static void stay(int s)
{
	write(ready[1], "x", 1);
	for (;;) pause();
}

static void *sleeper(void *unused)
{
	char b[64];
	exchange(fd, 0);
	tid = gettid();
	printf("received %zd\n", recv(fd, b, sizeof b, 0));
	return 0;
}

/* Closed under the sleeper, and its number another file's, before the peer dies. */
static void reuse(void)
{
	int other[2];
	char b;
	pthread_t t;
	pipe(ready);
	pid_t p = pair(stay);
	pthread_create(&t, 0, sleeper, 0);
	if (read(ready[0], &b, 1) != 1) exit(3);
	wait_asleep();
	int number = fd;
	close(fd);
	pipe(other);
	printf("reused: %d\n", other[0] == number);
	kill(p, SIGKILL);
	pthread_join(t, 0);
}

#define MANY 150
static int ends[MANY][2], seats;

static void *answerer(void *of)
{
	int s = ends[(long)of][1];
	char b[64];
	ssize_t k;
	while ((k = recv(s, b, sizeof b, 0)) > 0)
		if (send(s, b, k, MSG_NOSIGNAL) != k) break;
	return 0;
}

/* Times that the threads of this process have gone to sleep by themselves. */
static long slept(void)
{
	long all = 0, one;
	DIR *d = opendir("/proc/self/task");
	for (struct dirent *e; (e = readdir(d)); ) {
		char path[300], line[256];
		snprintf(path, sizeof path, "/proc/self/task/%s/status", e->d_name);
		FILE *f = fopen(path, "r");
		while (f && fgets(line, sizeof line, f))
			if (sscanf(line, "voluntary_ctxt_switches: %ld", &one) == 1) all += one;
		if (f) fclose(f);
	}
	closedir(d);
	return all;
}

/* More threads than there are pollers, each in recv() on a connection of its own: all are answered, and then none of them
 * stirs. Threads that sleep in steps of milliseconds would go to sleep tens of thousands of times meanwhile. */
static void many(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	pthread_t t;
	char b[64] = "x";
	int listener = socket(AF_INET, SOCK_STREAM, 0), answered = 0;
	bind(listener, (void *)&a, l);
	getsockname(listener, (void *)&a, &l);
	listen(listener, MANY);
	for (seats = 0; seats < MANY; seats++) {
		int *e = ends[seats];
		e[0] = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(e[0], (void *)&a, l) || (e[1] = accept(listener, 0, 0)) < 0) exit(3);
		pthread_create(&t, 0, answerer, (void *)(long)seats);
	}
	for (int round = 0; round < 40; round++)
		for (int i = 0; i < MANY; i++)
			answered += send(ends[i][0], b, 64, 0) == 64 && recv(ends[i][0], b, 64, MSG_WAITALL) == 64;
	printf("answered %d\n", answered);
	long before = slept();
	struct timespec second = { 2, 0 };
	nanosleep(&second, 0);
	printf("they sleep: %s\n", slept() - before < 20 * MANY ? "yes" : "in steps");
}

int main(int n, char **v)
{
	const char *name = n > 1 ? v[1] : "";
	sem_init(&jumped, 0, 0);
	sem_init(&never, 0, 0);
	if (!strcmp(name, "cancel")) cancel();
	else if (!strcmp(name, "jump")) jump();
	else if (!strcmp(name, "reuse")) reuse();
	else if (!strcmp(name, "many")) many();
	else return 2;
	fflush(stdout);
	_exit(0);
}
