/* Loads a library such that its calls find libc's functions first, and lets it receive on a busy connection. */
#define _GNU_SOURCE
#include "pair.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static void echo(int s)
{
	char b[64];
	ssize_t n;
	while ((n = recv(s, b, sizeof b, 0)) > 0) send(s, b, n, MSG_NOSIGNAL);
}

int main(int n, char **v)
{
	if (n != 3) return 2;
	pair(echo);
	exchange(fd, 0);
	int deep = !strcmp(v[1], "deepbind");
	void *library = deep ? dlopen(v[2], RTLD_NOW | RTLD_DEEPBIND) : dlmopen(LM_ID_NEWLM, v[2], RTLD_NOW);
	if (!library) {
		puts(dlerror());
		return 1;
	}
	int (*ask)(int) = (int (*)(int))dlsym(library, "ask");
	for (int i = 0; i < 3; i++) {
		send(fd, "hello", 5, 0);
		printf("received %d\n", ask(fd));
	}
	fflush(stdout);
	_exit(0);
}
