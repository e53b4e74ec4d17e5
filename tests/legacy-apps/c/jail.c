/* A program that goes into a jail (chroot(2), pivot_root(2)): no descriptor leads out of it, and connections go on to be made.
 * argv[1]: how; argv[2]: an empty directory. */
#define _GNU_SOURCE
#include "pair.h"
#include "talk.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void peer(int s)
{
	char b;
	while (recv(s, &b, 1, 0) == 1) ;
}

static void visit(void)
{
	int status;
	pid_t p = start(peer, 1);
	exchange(fd, 0);
	close(fd);
	waitpid(p, &status, 0);
	printf("exchanged %d\n", status);
}

int main(int n, char **v)
{
	if (n != 3) return 2;
	const char *how = v[1], *jail = v[2];
	const char *ways[] = { "etc/passwd", "../etc/passwd", "../../etc/passwd", "../../../etc/passwd" };
	int out = 0;
	visit();
	if (!strcmp(how, "chroot") && chroot(jail)) fail("chroot");
	if (!strcmp(how, "syscall") && syscall(SYS_chroot, jail)) fail("chroot");
	if (!strcmp(how, "pivot")) {
		if (unshare(CLONE_NEWNS) || mount(0, "/", 0, MS_REC | MS_PRIVATE, 0)) fail("mounts");
		if (mount(jail, jail, 0, MS_BIND, 0) || chdir(jail) || syscall(SYS_pivot_root, ".", ".")) fail("pivot_root");
		if (umount2(".", MNT_DETACH)) fail("umount2");
	}
	if (chdir("/")) fail("chdir");
	for (int d = 0; d < 100000; d++)
		for (int up = 0; up < 4; up++)
			if (openat(d, ways[up], O_RDONLY) >= 0) out++;
	printf("ways out: %d\n", out);
	visit();
	return 0;
}
