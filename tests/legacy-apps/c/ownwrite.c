/* A program with functions of its own that have the names of libc's, made of syscall() and of each other. */
#define _GNU_SOURCE
#include "pair.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

ssize_t write(int f, const void *b, size_t n) { return syscall(SYS_write, f, b, n); }
ssize_t read(int f, void *b, size_t n) { return syscall(SYS_read, f, b, n); }
ssize_t writev(int f, const struct iovec *v, int n) { return syscall(SYS_writev, f, v, n); }
int close(int f) { return syscall(SYS_close, f); }
char *getenv(const char *name) { (void)name; abort(); }

static void peer(int s)
{
	char b[5];
	while (recv(s, b, sizeof b, MSG_WAITALL) == sizeof b) write(s, b, sizeof b);
}

int main(void)
{
	char b[5];
	struct iovec v = { "hello", 5 };
	pair(peer);
	exchange(fd, 0);
	for (int i = 0; i < 3; i++) {
		if (writev(fd, &v, 1) != 5) return 1;
		for (size_t n = 0; n < sizeof b; n += read(fd, b + n, sizeof b - n));
		write(1, b, sizeof b);
	}
	close(fd);
	return 0;
}
