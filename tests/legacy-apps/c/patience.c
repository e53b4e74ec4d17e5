/* Connections that have news again as soon as they have been told of, and a pipe that becomes ready now and then, in a set whose waiter has
 * room for few events: within how many calls it is told of the pipe. And whether it is told of a oneshot that is ready in another way by then. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include "talk.h"

/* Exchanges bring a connection to a ring. A pipe that is told of in more than so many calls is starved. */
enum { BUSY = 12, WARM = 40, ROUNDS = 5, MOST = 400 };

static int near[BUSY], far[BUSY], of[1024], ends[2];

static void watch(int set, int op, int fd, unsigned how)
{
	struct epoll_event e = { .events = EPOLLIN | how, .data.fd = fd };
	if (epoll_ctl(set, op, fd, &e)) fail("epoll_ctl");
}

/* What a connection said is answered, and it says more. */
static void exchange(int fd)
{
	char b[8];
	if (recv(fd, b, 8, MSG_DONTWAIT) != 1 || send(of[fd], "x", 1, 0) != 1) fail("exchange");
}

/* The calls of `epoll_wait` that it took, each with room for `room` events. */
static int calls_until_told(int set, int room, unsigned how)
{
	struct epoll_event e[8];
	char b[8];
	int calls = 0, told = 0;
	if (write(ends[1], "p", 1) != 1) fail("write");
	while (!told) {
		int n = epoll_wait(set, e, room, -1);
		if (n < 1) fail("epoll_wait");
		calls++;
		for (int i = 0; i < n; i++) {
			int fd = e[i].data.fd;
			if (fd == ends[0]) {
				if (read(fd, b, 1) != 1) fail("read");
				told = 1;
			} else {
				exchange(fd);
			}
			if (how & EPOLLONESHOT) watch(set, EPOLL_CTL_MOD, fd, how);
		}
	}
	return calls;
}

/* A oneshot for both directions of a socket that can be written. After `calls` it cannot any more, and can be read: it is told of in any case. */
static int is_told(int set, int room, int calls)
{
	static const char much[65536];
	struct epoll_event e[8];
	int pair[2], told = 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair)) fail("socketpair");
	watch(set, EPOLL_CTL_ADD, pair[0], EPOLLOUT | EPOLLONESHOT);
	for (int i = 1; i <= MOST && !told; i++) {
		int n = epoll_wait(set, e, room, -1);
		if (n < 1) fail("epoll_wait");
		for (int k = 0; k < n; k++) {
			if (e[k].data.fd == pair[0])
				told = 1;
			else
				exchange(e[k].data.fd);
		}
		if (i == calls) {
			while (write(pair[0], much, sizeof much) > 0) {}
			if (write(pair[1], "i", 1) != 1) fail("write");
		}
	}
	close(pair[0]);
	close(pair[1]);
	return told;
}

static void in_a_set(int room, unsigned how)
{
	struct epoll_event e[64];
	int set = epoll_create1(0), late = 0;
	char b[8];
	for (int i = 0; i < BUSY; i++) watch(set, EPOLL_CTL_ADD, near[i], how);
	watch(set, EPOLL_CTL_ADD, ends[0], how);
	while (epoll_wait(set, e, 64, 0) > 0) {}
	for (int i = 0; i < BUSY; i++)
		if (send(far[i], "x", 1, 0) != 1) fail("send");
	for (int i = 0; i < ROUNDS; i++) late += calls_until_told(set, room, how) > MOST;
	printf("room for %d, %x: told too late %d times\n", room, how, late);
	if (how == 0) {
		int missed = 0;
		for (int calls = 1; calls < 70; calls++) missed += !is_told(set, room, calls);
		printf("never told %d times\n", missed);
	}
	close(set);
	for (int i = 0; i < BUSY; i++)
		if (recv(near[i], b, 8, 0) != 1) fail("rest");
}

int main(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	char b;
	if (bind(listener, (void *)&a, l) || listen(listener, 8) || getsockname(listener, (void *)&a, &l)) fail("listen");
	for (int i = 0; i < BUSY; i++) {
		far[i] = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(far[i], (void *)&a, l) || (near[i] = accept(listener, 0, 0)) < 0) fail("connect");
		of[near[i]] = far[i];
		for (int k = 0; k < WARM; k++)
			if (send(far[i], "x", 1, 0) != 1 || recv(near[i], &b, 1, 0) != 1 || send(near[i], "y", 1, 0) != 1 ||
			    recv(far[i], &b, 1, 0) != 1)
				fail("exchange");
	}
	if (pipe2(ends, O_NONBLOCK)) fail("pipe2");
	unsigned kinds[] = { 0, EPOLLET, EPOLLONESHOT };
	int rooms[] = { 1, 2, 3, 5, 8 };
	for (unsigned k = 0; k < 3; k++)
		for (unsigned r = 0; r < 5; r++) in_a_set(rooms[r], kinds[k]);
	return 0;
}
