/* Looks libc's functions up in the named way, and answers on a connection by them. A part of c/handles.c, or a library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static void *find(const char *how, const char *name)
{
	/* libc is there already. */
	void *libc = dlopen("libc.so.6", RTLD_NOW);
	if (!strcmp(how, "handle")) return dlsym(libc, name);
	if (!strcmp(how, "version")) return dlvsym(libc, name, "GLIBC_2.2.5");
	if (!strcmp(how, "next-version")) return dlvsym(RTLD_NEXT, name, "GLIBC_2.2.5");
	if (!strcmp(how, "default")) return dlsym(RTLD_DEFAULT, name);
	/* By the dlsym that libc says it has. */
	if (!strcmp(how, "again")) {
		void *(*again)(void *, const char *) = (void *(*)(void *, const char *))dlsym(libc, "dlsym");
		return again(libc, name);
	}
	return dlsym(RTLD_NEXT, name);
}

int answer(int fd, const char *how)
{
	int (*wait)(struct pollfd *, nfds_t, int) = (int (*)(struct pollfd *, nfds_t, int))find(how, "poll");
	ssize_t (*get)(int, void *, size_t, int) = (ssize_t(*)(int, void *, size_t, int))find(how, "recv");
	ssize_t (*put)(int, const void *, size_t, int) = (ssize_t(*)(int, const void *, size_t, int))find(how, "send");
	struct pollfd p = { fd, POLLIN, 0 };
	char b[64];
	ssize_t n;
	if (wait(&p, 1, 20000) != 1 || (n = get(fd, b, sizeof b, 0)) <= 0) return -1;
	/* What is not there is missed as ever, and said once. */
	int wrong = find(how, "no_such_function") != 0 || dlerror() == 0 || dlerror() != 0;
	wrong |= find(how, "close") == 0 || dlerror() != 0 || find(how, "memcpy") == 0;
	return wrong ? -2 : put(fd, b, n, MSG_NOSIGNAL);
}
