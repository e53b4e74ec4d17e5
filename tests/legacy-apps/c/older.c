/* Runs a program as on Linux before 5.14, which does not tell in which network namespace a socket lives (SO_NETNS_COOKIE). */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NETNS_COOKIE = 71 };

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define UNLESS(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)

int main(int n, char **v)
{
	struct sock_filter code[] = {
		LOAD(nr),      UNLESS(SYS_getsockopt, 5),
		LOAD(args[1]), UNLESS(SOL_SOCKET, 3),
		LOAD(args[2]), UNLESS(NETNS_COOKIE, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOPROTOOPT),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	unsigned long id;
	socklen_t len = sizeof id;
	if (n < 2) return 2;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
		perror("filter");
		return 3;
	}
	int s = socket(AF_UNIX, SOCK_DGRAM, 0);
	if (!getsockopt(s, SOL_SOCKET, NETNS_COOKIE, &id, &len) || errno != ENOPROTOOPT) return 4;
	close(s);
	execvp(v[1], v + 1);
	perror(v[1]);
	return 5;
}
