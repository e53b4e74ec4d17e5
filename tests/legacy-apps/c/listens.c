/* A library behind culvert: a call of listen says its socket's cookie, and waits for a line: "fail", or it comes to pass. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int listen(int fd, int backlog)
{
	unsigned long long cookie = 0;
	char line[16] = "";
	size_t n = 0;
	socklen_t l = sizeof cookie;
	getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &l);
	dprintf(1, "%llu\n", cookie);
	while (n < sizeof line - 1 && read(0, line + n, 1) == 1 && line[n] != '\n') n++;
	if (n > 0 && strncmp(line, "fail", 4)) return syscall(SYS_listen, fd, backlog);
	errno = EADDRINUSE;
	return -1;
}
