/* Waits that end by their timeout, on a busy connection that has fallen silent. */
#define _GNU_SOURCE
#include "pair.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>

static void silent(int s)
{
	char b;
	recv(s, &b, 1, 0);
}

int main(void)
{
	char b;
	pair(silent);
	exchange(fd, 0);
	struct pollfd p = { fd, POLLIN, 0 };
	printf("poll %d\n", poll(&p, 1, 20));
	struct epoll_event e = { EPOLLIN, { .fd = fd } };
	int set = epoll_create1(0);
	epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
	printf("epoll_wait %d\n", epoll_wait(set, &e, 1, 20));
	fd_set r;
	FD_ZERO(&r);
	FD_SET(fd, &r);
	struct timeval t = { 0, 20000 };
	printf("select %d\n", select(fd + 1, &r, 0, 0, &t));
	t = (struct timeval){ 0, 20000 };
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
	ssize_t n = recv(fd, &b, 1, 0);
	printf("recv %zd, again %d\n", n, errno == EAGAIN);
	return 0;
}
