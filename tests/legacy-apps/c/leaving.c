/* A signal comes while a descriptor is passed on, whose peer has sent more than its socket takes, and has finished. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>

#include "pair.h"

static int told[2];
static volatile double ran;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void alarmed(int n)
{
	(void)n;
	ran = now();
}

static void peer(int s)
{
	static char b[65536];
	int size = 65536;
	setsockopt(s, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	fcntl(s, F_SETFL, O_NONBLOCK);
	while (send(s, b, sizeof b, 0) > 0) {}
	if (errno != EAGAIN) exit(3);
	shutdown(s, SHUT_WR);
	write(told[1], "x", 1);
	pause();
}

int main(void)
{
	char b, room[CMSG_SPACE(sizeof(int))] = { 0 };
	int pass[2];
	pipe(told);
	socketpair(AF_UNIX, SOCK_STREAM, 0, pass);
	pid_t p = pair(peer);
	exchange(fd, 0);
	read(told[0], &b, 1);

	struct iovec v = { "x", 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	*(int *)CMSG_DATA(c) = fd;

	struct sigaction a = { .sa_handler = alarmed };
	struct itimerval t = { .it_value.tv_usec = 100000 };
	sigaction(SIGALRM, &a, 0);
	double begin = now();
	setitimer(ITIMER_REAL, &t, 0);
	ssize_t r = sendmsg(pass[0], &m, 0);
	double end = now();
	while (ran == 0) usleep(1000);
	/* A call that did not wait is over before the signal. */
	puts(r == 1 && (end < ran || ran - begin < (end - begin) / 2) ? "handled meanwhile" : "handled late");
	kill(p, SIGKILL);
	return 0;
}
