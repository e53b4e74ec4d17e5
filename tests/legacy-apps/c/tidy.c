/* Both ends of a connection close, or duplicate over, every descriptor that they do not know, while it is busy; then it goes
 * on, and another one is made. argv: how. */
#define _GNU_SOURCE
#include "pair.h"
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static const char *how;
static int listener;

/* All but the standard ones, `a` and `b`. */
static void tidy(int a, int b)
{
	struct rlimit r;
	int low = a < b ? a : b, high = a < b ? b : a;
	getrlimit(RLIMIT_NOFILE, &r);
	if (!strcmp(how, "close")) {
		for (int i = 3; i < (int)r.rlim_cur && i < 100000; i++) if (i != a && i != b) close(i);
	} else if (!strcmp(how, "close_range")) {
		if (low > 3) close_range(3, low - 1, 0);
		if (high > low + 1) close_range(low + 1, high - 1, 0);
		close_range(high + 1, ~0u, 0);
	} else if (!strcmp(how, "closefrom")) {
		closefrom(high + 1);
	} else {
		/* What there is, by its number. */
		int seen[64], n = 0;
		DIR *d = opendir("/proc/self/fd");
		for (struct dirent *e; d && (e = readdir(d)) && n < 64;) seen[n++] = atoi(e->d_name);
		if (d) closedir(d);
		for (int i = 0; i < n; i++) {
			if (seen[i] < 3 || seen[i] == a || seen[i] == b) continue;
			if (!strcmp(how, "dup2")) dup2(0, seen[i]);
			else dup3(0, seen[i], 02000000);
			close(seen[i]);
		}
	}
}

static void peer(int s)
{
	struct sockaddr_in a;
	socklen_t l = sizeof a;
	tidy(s, listener);
	exchange(s, 1);
	tidy(s, listener);
	getsockname(listener, (void *)&a, &l);
	int t = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(t, (void *)&a, sizeof a)) exit(4);
	exchange(t, 1);
	exchange(s, 1);
	char b;
	exit(recv(t, &b, 1, 0) == 0 && recv(s, &b, 1, 0) == 0 ? 0 : 5);
}

int main(int n, char **v)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int status;
	if (n != 2) return 2;
	how = v[1];
	alarm(50);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	bind(listener, (void *)&a, sizeof a);
	listen(listener, 1);
	pid_t p = pair(peer);
	exchange(fd, 0);
	tidy(fd, listener);
	exchange(fd, 0);
	tidy(fd, listener);
	int next = accept(listener, 0, 0);
	printf("the next number: %d\n", next - fd);
	exchange(next, 0);
	exchange(fd, 0);
	close(next);
	close(fd);
	waitpid(p, &status, 0);
	printf("the peer's status: %d\n", status);
	return 0;
}
