/* A client: client ADDRESS PORT BYTES. Sends so many bytes, reads the answer to its end, and says what it sees: whom it is connected to,
 * and what has come; exit status 0 if that is what it has sent. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6 };
	struct sockaddr_in four = { .sin_family = AF_INET };
	int is_six = argc > 3 && strchr(argv[1], ':') != NULL;
	size_t size = argc > 3 ? strtoul(argv[3], NULL, 10) : 0, at = 0, line = 0;
	union {
		struct sockaddr any;
		struct sockaddr_in four;
		struct sockaddr_in6 six;
	} peer;
	socklen_t len = sizeof(peer);
	char text[INET6_ADDRSTRLEN], *data = malloc(size), *back = malloc(size + 256);
	int fd = socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM, 0), ok;
	ssize_t n = 0;

	if (fd < 0 || !data || !back || argc < 4)
		return 2;
	for (size_t i = 0; i < size; i++)
		data[i] = (char)(i * 31 >> 3);
	six.sin6_port = four.sin_port = htons((unsigned short)atoi(argv[2]));
	ok = is_six ? inet_pton(AF_INET6, argv[1], &six.sin6_addr) : inet_pton(AF_INET, argv[1], &four.sin_addr);
	if (ok != 1)
		return 2;
	if (connect(fd, is_six ? (void *)&six : (void *)&four, is_six ? sizeof(six) : sizeof(four)) < 0) {
		printf("connect: %s\n", strerror(errno));
		return 1;
	}
	if (getpeername(fd, &peer.any, &len) < 0)
		return 2;
	if (peer.any.sa_family == AF_INET6)
		printf("peer [%s]:%d\n", inet_ntop(AF_INET6, &peer.six.sin6_addr, text, sizeof(text)), ntohs(peer.six.sin6_port));
	else
		printf("peer %s:%d\n", inet_ntop(AF_INET, &peer.four.sin_addr, text, sizeof(text)), ntohs(peer.four.sin_port));
	signal(SIGPIPE, SIG_IGN);
	while (at < size && (n = write(fd, data + at, size - at)) > 0)
		at += (size_t)n;
	shutdown(fd, SHUT_WR);
	for (at = 0; at < size + 256 && (n = read(fd, back + at, size + 256 - at)) > 0;)
		at += (size_t)n;
	if (n < 0) {
		printf("read: %s\n", strerror(errno));
		return 1;
	}
	while (line < at && back[line] != '\n')
		line++;
	printf("%.*s\n", (int)line, back);
	if (at != line + 1 + size || memcmp(back + line + 1, data, size)) {
		printf("other data\n");
		return 1;
	}
	return 0;
}
