/* poll and select over connections whose peers have shut down sending, beside a busy one: how many system calls that takes. A parent
 * counts them (ptrace). */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HALF = 20, ROUNDS = 50, MANY = 8 };

static void pair(int *c, int *s)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	char b[4];
	bind(listener, (void *)&a, l);
	listen(listener, 1);
	getsockname(listener, (void *)&a, &l);
	*c = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(*c, (void *)&a, l)) exit(3);
	*s = accept(listener, 0, 0);
	close(listener);
	for (int i = 0; i < 40; i++) {
		if (write(*c, "ping", 4) != 4 || read(*s, b, 4) != 4) exit(3);
		if (write(*s, "pong", 4) != 4 || read(*c, b, 4) != 4) exit(3);
	}
}

/* The one whose peer has shut down, or the one that has. */
static void traced(int selects, int ended)
{
	struct pollfd p[HALF + 1];
	int busy[2], other, most = 0;
	char b[100] = { 0 };
	for (int i = 0; i < HALF; i++) {
		int c, s;
		pair(&c, &s);
		shutdown(c, SHUT_WR);
		if (read(s, b, 1) != 0) exit(3);
		p[i] = (struct pollfd){ ended ? s : c, ended ? 0 : POLLIN, 0 };
	}
	pair(&busy[0], &busy[1]);
	other = busy[1];
	p[HALF] = (struct pollfd){ busy[0], POLLIN, 0 };
	for (int i = 0; i <= HALF; i++)
		if (p[i].fd > most) most = p[i].fd;
	ptrace(PTRACE_TRACEME, 0, 0, 0);
	raise(SIGSTOP);
	for (int i = 0; i < ROUNDS; i++) {
		if (write(other, b, 100) != 100) exit(4);
		if (selects) {
			fd_set r;
			FD_ZERO(&r);
			for (int k = 0; k <= HALF; k++)
				if (p[k].events) FD_SET(p[k].fd, &r);
			if (select(most + 1, &r, 0, 0, 0) != 1 || !FD_ISSET(busy[0], &r)) exit(5);
		} else if (poll(p, HALF + 1, -1) != 1 || p[HALF].revents != POLLIN) {
			exit(5);
		}
		if (read(busy[0], b, 100) != 100) exit(6);
	}
	syscall(SYS_exit, 0);
}

int main(void)
{
	for (int kind = 0; kind < 3; kind++) {
		int status, calls = 0;
		pid_t p = fork();
		if (p == 0) traced(kind == 2, kind == 1);
		waitpid(p, &status, 0);
		while (WIFSTOPPED(status)) {
			calls++;
			ptrace(PTRACE_SYSCALL, p, 0, 0);
			waitpid(p, &status, 0);
		}
		/* Each stops the child twice. */
		calls /= 2;
		int ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
		if (ok && calls <= ROUNDS * MANY) printf("%d: few system calls\n", kind);
		else printf("%d: status %x, %d system calls\n", kind, status, calls);
	}
	return 0;
}
