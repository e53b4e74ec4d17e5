/* A program is started that reads on where its parent closes the connection at once: what it says at last arrives, and the end. */
#define _GNU_SOURCE
#include "heir.h"
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>

enum { MUCH = 15000000, ANSWER = 100000 };

extern char **environ;
static char all[MUCH];
static int over[2];

static void speak(int s)
{
	ssize_t n, at = 0;
	close(over[1]);
	while (at < MUCH && (n = send(s, all + at, MUCH - at, MSG_NOSIGNAL)) > 0) at += n;
	shutdown(s, SHUT_WR);
	read_answer(s, over[0], all, sizeof all);
}

int main(int argc, char **argv)
{
	if (argc > 1) return read_and_answer(atoi(argv[1]), all, sizeof all, ANSWER);
	char number[16], *args[] = { argv[0], number, 0 };
	pipe(over);
	pid_t p = pair(speak), child;
	close(over[0]);
	exchange(fd, 0);
	/* As a rule the peer has sent all by then, where so much fits. */
	struct pollfd f = { fd, POLLRDHUP, 0 };
	poll(&f, 1, 300);
	snprintf(number, sizeof number, "%d", fd);
	if (posix_spawn(&child, "/proc/self/exe", 0, 0, args, environ)) return 3;
	close(fd);
	close(over[1]);
	waitpid(child, 0, 0);
	waitpid(p, 0, 0);
	return 0;
}
