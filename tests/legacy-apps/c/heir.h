/* A program that is handed a connection, and the peer that it answers. */
#include "pair.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Says how much was read, and how that ended. */
static inline void report(const char *who, ssize_t all, ssize_t last)
{
	printf("%s: %zd bytes, %s\n", who, all, last ? strerror(errno) : "the end");
	fflush(stdout);
}

/* The peer has said all. It reads the answer once nobody has the other end any more: `over` is closed then. */
static inline void read_answer(int s, int over, char *to, size_t room)
{
	ssize_t n, at = 0;
	char b;
	read(over, &b, 1);
	while ((n = recv(s, to, room, 0)) > 0) at += n;
	report("the peer", at, n);
}

/* The program reads all, and answers with `length` bytes. Returns what it exits with. */
static inline int read_and_answer(int s, char *to, size_t room, ssize_t length)
{
	ssize_t n, at = 0;
	while ((n = recv(s, to, room, 0)) > 0) at += n;
	report("the program", at, n);
	return send(s, to, length, MSG_NOSIGNAL) != length;
}
