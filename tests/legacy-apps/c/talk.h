/* A conversation between the two ends of a connection, and what ends a test. */
#include <stdio.h>
#include <string.h>

static inline void fail(const char *what)
{
	perror(what);
	exit(4);
}

/* Asks `n` times, and is answered by an echo. */
static inline void converse(int s, int n)
{
	char b[8];
	for (int i = 0; i < n; i++)
		if (send(s, "question", 8, MSG_NOSIGNAL) != 8 || recv(s, b, 8, MSG_WAITALL) != 8 || memcmp(b, "question", 8))
			fail("conversation");
}

static inline void echo(int s)
{
	char b[64];
	ssize_t n;
	while ((n = recv(s, b, sizeof b, 0)) > 0 && send(s, b, n, MSG_NOSIGNAL) == n);
}
