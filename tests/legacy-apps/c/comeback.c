/* A thread comes back from epoll_wait with an event that the kernel has told it, and is held up there by the handler of a signal. Meanwhile
 * another thread uses the connection, which goes to a ring by that. The first thread is told of it once. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "talk.h"

/* Times that a thread must have been held up; how often that is tried; exchanges that bring a connection to a ring. */
enum { WANTED = 10, TRIES = 2000, WARM = 400 };

static int set, listener, held[2], go[2];
static volatile int waits, handled, tid;
/* Of the last wait: events in all, those of the connection, and whether the handler has run before it was told any. */
static int told, same, interrupted;
static int near, far;

static void hold(int sig)
{
	int e = errno;
	char b = 0;
	if (waits) {
		handled = 1;
		if (write(held[1], &b, 1) != 1 || read(go[0], &b, 1) != 1) _exit(5);
	}
	errno = e;
}

static void open_pair(void)
{
	struct sockaddr_in a;
	socklen_t l = sizeof a;
	getsockname(listener, (void *)&a, &l);
	far = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(far, (void *)&a, l)) fail("connect");
	near = accept(listener, 0, 0);
	if (near < 0) fail("accept");
}

static void both(int n)
{
	char b;
	for (int i = 0; i < n; i++)
		if (send(near, "x", 1, 0) != 1 || recv(far, &b, 1, 0) != 1 || send(far, "y", 1, 0) != 1 || recv(near, &b, 1, 0) != 1)
			fail("exchange");
}

static void watch(int op, int fd, unsigned how)
{
	struct epoll_event e = { .events = EPOLLIN | how, .data.fd = fd };
	if (epoll_ctl(set, op, fd, &e)) fail("epoll_ctl");
}

static void *waiter(void *unused)
{
	struct epoll_event e[8];
	struct sched_param none = { 0 };
	/* Who wakes it is not preempted by it. */
	sched_setscheduler(0, SCHED_BATCH, &none);
	tid = syscall(SYS_gettid);
	waits = 1;
	while ((told = epoll_wait(set, e, 8, -1)) < 0 && errno == EINTR) interrupted = 1;
	waits = 0;
	for (int i = 0; i < told; i++) same += e[i].data.fd == near;
	return 0;
}

static int is_asleep(void)
{
	char name[64], b[512];
	snprintf(name, sizeof name, "/proc/self/task/%d/stat", tid);
	int f = open(name, O_RDONLY), n = read(f, b, sizeof b - 1);
	close(f);
	b[n > 0 ? n : 0] = 0;
	char *state = strrchr(b, ')');
	return state && state[2] == 'S';
}

/* One connection; whether the waiter was held up when the kernel had told it of that. */
static int round_of(unsigned how)
{
	char b, all[4096];
	pthread_t t;
	open_pair();
	watch(EPOLL_CTL_ADD, near, how);
	waits = handled = same = interrupted = 0;
	pthread_create(&t, 0, waiter, 0);
	while (!waits || !is_asleep()) sched_yield();
	if (send(far, "a", 1, 0) != 1) fail("send");
	pthread_kill(t, SIGUSR1);
	/* The handler has run, or the wait is over. */
	fcntl(held[0], F_SETFL, O_NONBLOCK);
	while (read(held[0], &b, 1) != 1 && waits) sched_yield();
	if (handled) {
		for (int i = 0; i < WARM; i++)
			if (send(near, "x", 1, 0) != 1 || recv(far, &b, 1, 0) != 1 || recv(near, &b, 1, MSG_PEEK) != 1) fail("exchange");
		if (write(go[1], &b, 1) != 1) fail("write");
	}
	pthread_join(t, 0);
	int read_all = 0, n;
	while ((n = recv(near, all, sizeof all, MSG_DONTWAIT)) > 0) read_all += n;
	if (told != same || same != 1 || read_all != 1)
		printf("told of %d, %d times of the connection, on which were %d bytes\n", told, same, read_all);
	close(near);
	close(far);
	return handled && !interrupted;
}

int main(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sigaction act = { .sa_handler = hold, .sa_flags = SA_RESTART };
	cpu_set_t cpus, one;
	sched_getaffinity(0, sizeof cpus, &cpus);
	CPU_ZERO(&one);
	for (int c = 0; c < CPU_SETSIZE; c++)
		if (CPU_ISSET(c, &cpus)) {
			CPU_SET(c, &one);
			break;
		}
	sched_setaffinity(0, sizeof one, &one);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (void *)&a, sizeof a) || listen(listener, 8) || pipe(held) || pipe(go)) fail("beginning");
	sigaction(SIGUSR1, &act, 0);
	set = epoll_create1(0);
	/* One that is on a ring throughout. */
	open_pair();
	watch(EPOLL_CTL_ADD, near, 0);
	both(WARM);
	unsigned kinds[] = { 0, EPOLLET };
	for (int k = 0; k < 2; k++) {
		int done = 0;
		for (int i = 0; i < TRIES && done < WANTED; i++) done += round_of(kinds[k]);
		printf("held up %d times\n", done);
	}
	return 0;
}
