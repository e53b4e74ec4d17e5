/* Execs that fail, with bytes of a peer that was killed lying unread, and what they leave behind. argv: the descriptor under
 * which the connection is inherited, and a file that may be executed but is no program. */
#define _GNU_SOURCE
#include "pair.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

enum { LEFT = 20000 };

static void peer(int s)
{
	static char b[LEFT];
	memset(b, 'l', sizeof b);
	send(s, b, sizeof b, MSG_NOSIGNAL);
	/* Dead, it can take nothing back. */
	raise(SIGKILL);
}

/* Descriptors that the next program has. */
static int inherited(void)
{
	int n = 0;
	for (int i = 0; i < 20000; i++) {
		int f = fcntl(i, F_GETFD);
		n += f >= 0 && !(f & FD_CLOEXEC);
	}
	return n;
}

static void say(const char *what, int r)
{
	int e = r < 0 ? errno : 0;
	printf("%s: %d %s, %d descriptors\n", what, r, e ? strerrorname_np(e) : "", inherited());
}

int main(int n, char **v)
{
	static char b[LEFT], *volatile bad = (char *)8;
	char *list[] = { v[2], "x", 0 }, *none[] = { 0 };
	struct sockaddr_in a;
	socklen_t l = sizeof a;
	int status, to = n == 3 ? atoi(v[1]) : -1;
	if (n == 4 && !strcmp(v[1], "rest")) {
		ssize_t all = 0, r;
		to = atoi(v[2]);
		/* Where standard input was the connection, that is kept open under another number. */
		if (to) printf("the next program: %d descriptors\n", inherited());
		while ((r = read(to, b, sizeof b)) > 0) all += r;
		printf("%s: the rest %zd, then %zd\n", v[3], all, r);
		return 0;
	}
	if (to < 0) return 2;
	setvbuf(stdout, 0, _IOLBF, 0);
	pid_t p = pair(peer);
	exchange(fd, 0);
	/* All is there, and so is the end. */
	waitpid(p, &status, 0);
	dup2(fd, to);
	close(fd);
	say("before", 0);
	say("execl", execl("/no/such/program", "x", "1", "2", "3", "4", "5", "6", "7", (char *)0));
	say("execlp", execlp("no-such-program", "x", "1", (char *)0));
	say("execlp of nothing", execlp("", "x", (char *)0));
	say("execle", execle("/etc/passwd/x", "x", "1", "2", "3", "4", "5", "6", (char *)0, none));
	say("execv of a directory", execv("/etc", list));
	say("execve of what may not be executed", execve("/etc/passwd", list, none));
	say("execve of no program", execve(v[2], list, environ));
	say("execveat of no program", execveat(AT_FDCWD, v[2], list, environ, 0));
	say("execve of a bad pointer", execve(bad, list, environ));
	ssize_t got = 0, r;
	int wrong = 0;
	printf("a socket: %d\n", getpeername(to, (void *)&a, &l));
	while (got < LEFT / 2 && (r = read(to, b, LEFT / 2 - got)) > 0)
		for (got += r; r > 0; r--) wrong += b[r - 1] != 'l';
	printf("read on: %d, wrong %d\n", got >= LEFT / 2, wrong);
	/* The next program has the rest, and no descriptor that it should not have. */
	execlp(v[0], v[0], "rest", v[1], got % 2 ? "odd" : "even", (char *)0);
	return 3;
}
