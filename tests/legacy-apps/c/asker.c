/* A library that receives: the number of bytes that came, or -1. */
#include <poll.h>
#include <sys/socket.h>

int ask(int fd)
{
	char b[64];
	struct pollfd f = { fd, POLLIN, 0 };
	return poll(&f, 1, 20000) == 1 && f.revents == POLLIN ? recv(fd, b, sizeof b, 0) : -1;
}
