/* Sockets, streams, children and a signal, for a libc that is not glibc. Not a line depends on which. */
#include "pair.h"
#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

static void peer(int s)
{
	char b;
	while (recv(s, &b, 1, 0) == 1) send(s, &b, 1, MSG_NOSIGNAL);
}

static volatile int caught;

static void handler(int s)
{
	caught = s;
}

int main(int n, char **v)
{
	char b, line[64];
	int status;
	if (n > 1) return puts("a child of a child") < 0;
	setvbuf(stdout, 0, _IONBF, 0);
	pid_t p = pair(peer);
	exchange(fd, 0);
	struct pollfd f = { fd, POLLIN, 0 };
	for (int i = 0; i < 100; i++)
		if (send(fd, "x", 1, 0) != 1 || poll(&f, 1, -1) != 1 || recv(fd, &b, 1, 0) != 1) return 1;
	shutdown(fd, SHUT_WR);
	printf("the end: %zd\n", recv(fd, &b, 1, 0));
	waitpid(p, &status, 0);
	printf("the peer's status: %d\n", status);
	signal(SIGUSR1, handler);
	raise(SIGUSR1);
	printf("caught: %d\n", caught == SIGUSR1);
	printf("dlsym: %d\n", dlsym(RTLD_DEFAULT, "write") != 0);
	FILE *s = popen("echo popen", "r");
	printf("%s", s && fgets(line, sizeof line, s) ? line : "nothing");
	if (s) pclose(s);
	printf("system: %d\n", system("exit 3") >> 8);
	if ((p = vfork()) == 0) {
		execl(v[0], v[0], "child", (char *)0);
		_exit(9);
	}
	waitpid(p, &status, 0);
	execl(v[0], v[0], "child", (char *)0);
	return 2;
}
