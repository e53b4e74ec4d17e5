/* A program with a busy connection and a young one installs a system-call filter that lets it send, receive and end, and goes on
 * with the young one. */
#define _GNU_SOURCE
#include "pair.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static const int allowed[] = { SYS_sendto, SYS_recvfrom, SYS_exit_group };

static void echo(int s)
{
	char b;
	while (recv(s, &b, 1, 0) == 1) send(s, &b, 1, MSG_NOSIGNAL);
}

/* Does not wait for exchanges. */
static void young(int s)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	bind(listener, (void *)&a, l);
	listen(listener, 1);
	getsockname(listener, (void *)&a, &l);
	if (fork() == 0) {
		close(listener);
		close(s);
		int c = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(c, (void *)&a, l)) _exit(3);
		echo(c);
		_exit(0);
	}
	fd = accept(listener, 0, 0);
	close(listener);
}

static int inside(void)
{
	enum { N = sizeof allowed / sizeof *allowed };
	struct sock_filter code[N + 4], *c = code;
	pair(echo);
	exchange(fd, 0);
	young(fd);
	*c++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (int i = 0; i < N; i++) *c++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], N - i, 0);
	*c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	*c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog prog = { c - code, code };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)) return 4;
	char b = 'x';
	for (int i = 0; i < 20; i++)
		if (send(fd, &b, 1, 0) != 1 || recv(fd, &b, 1, 0) != 1) return 5;
	return 0;
}

int main(void)
{
	int status;
	pid_t p = fork();
	if (p == 0) _exit(inside());
	waitpid(p, &status, 0);
	printf("status %#x\n", status);
	return 0;
}
