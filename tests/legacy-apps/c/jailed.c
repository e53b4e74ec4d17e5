/* A program that is started under a system-call filter: all that it does not need itself ends it ("kill"), fails
 * ("errno"), or waits for ever ("stall"). argv: which. */
#define _GNU_SOURCE
#include "pair.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static const int allowed[] = {
	/* The dynamic linker and libc. */
	SYS_execve, SYS_brk, SYS_mmap, SYS_munmap, SYS_mprotect, SYS_access, SYS_openat, SYS_read, SYS_pread64, SYS_fstat,
	SYS_newfstatat, SYS_close, SYS_arch_prctl, SYS_set_tid_address, SYS_set_robust_list, SYS_rseq, SYS_prlimit64,
	SYS_getrandom, SYS_write, SYS_exit_group,
	/* The program. */
	SYS_socket, SYS_bind, SYS_listen, SYS_getsockname, SYS_connect, SYS_accept, SYS_sendto, SYS_recvfrom, SYS_clone,
	SYS_wait4, SYS_fcntl,
};

static int jail(const char *how)
{
	enum { N = sizeof allowed / sizeof *allowed };
	struct sock_filter code[N + 4], *c = code;
	unsigned action = !strcmp(how, "kill") ? SECCOMP_RET_KILL_PROCESS
		: !strcmp(how, "stall") ? SECCOMP_RET_USER_NOTIF : SECCOMP_RET_ERRNO | EPERM;
	*c++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (int i = 0; i < N; i++) *c++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], N - i, 0);
	*c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
	*c++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog prog = { c - code, code };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
	unsigned flags = action == SECCOMP_RET_USER_NOTIF ? SECCOMP_FILTER_FLAG_NEW_LISTENER : 0;
	int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog);
	/* Whoever could answer on it never does. */
	return flags ? fcntl(listener, F_SETFD, 0) : listener;
}

static void peer(int s)
{
	char b;
	while (recv(s, &b, 1, 0) == 1) send(s, &b, 1, MSG_NOSIGNAL);
}

int main(int n, char **v)
{
	int status;
	if (n == 2) {
		pid_t p = fork();
		if (p == 0) {
			alarm(20);
			if (jail(v[1])) _exit(9);
			execl(v[0], v[0], v[1], "inside", (char *)0);
			_exit(8);
		}
		waitpid(p, &status, 0);
		printf("status %#x\n", status);
		return 0;
	}
	pid_t p = pair(peer);
	exchange(fd, 0);
	/* Until the test has looked. */
	char b;
	if (!strcmp(v[1], "errno")) read(0, &b, 1);
	close(fd);
	waitpid(p, &status, 0);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 5;
}
