/* Processes that share a connection, and of which one is dead, or seems to be, or is not born. One scenario per name.
 * Prints the same natively and under culvert. SIGALRM ends what hangs. */
#define _GNU_SOURCE
#include "pair.h"
#include "talk.h"
#include <errno.h>
#include <linux/sched.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static char buf[1 << 16];

static void pass(long us)
{
	struct timespec t = { 0, us * 1000 };
	nanosleep(&t, 0);
}

static void flood(int s)
{
	while (send(s, buf, 1 + rand() % sizeof buf, MSG_NOSIGNAL) > 0);
}

/* Until it is killed, by whomever. */
static void linger(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) pause();
}

static void drain(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (recv(fd, buf, sizeof buf, 0) > 0);
	_exit(0);
}

/* A connection that is where it goes. */
static pid_t meet(void (*peer)(int))
{
	pid_t p = pair(peer);
	exchange(fd, 0);
	return p;
}

/* A forked process receives as fast as it can and is killed at some moment. It stays a zombie, or another process gets its
 * id. The other holder goes on. */
static void killed(int reuse)
{
	for (int i = 0; i < 100; i++) {
		pid_t peer = meet(flood);
		pid_t c = fork();
		if (c == 0) drain();
		pass(1000 + rand() % 3000);
		kill(c, SIGKILL);
		siginfo_t dead;
		waitid(P_PID, c, &dead, WEXITED | WNOWAIT);
		if (reuse) {
			waitpid(c, 0, 0);
			struct clone_args a = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&c, .set_tid_size = 1 };
			pid_t other = syscall(SYS_clone3, &a, sizeof a);
			if (other == 0) linger();
			if (other != c) fail("clone3");
		}
		alarm(20);
		for (int n = 0; n < 100; n++)
			if (recv(fd, buf, sizeof buf, 0) <= 0) fail("recv");
		alarm(0);
		kill(c, SIGKILL);
		kill(peer, SIGKILL);
		waitpid(c, 0, 0);
		waitpid(peer, 0, 0);
		close(fd);
	}
	puts("goes on");
}

/* A child in a pid namespace of its own, where its parent has no id, uses one of the two connections that it inherited. */
static void foreign(void)
{
	meet(echo);
	int a = fd, l = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof at;
	bind(l, (void *)&at, n);
	listen(l, 1);
	getsockname(l, (void *)&at, &n);
	if (fork() == 0) {
		int s = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(s, (void *)&at, n)) exit(3);
		echo(s);
		exit(0);
	}
	int b = accept(l, 0, 0);
	alarm(30);
	pid_t c = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
	if (c < 0) fail("clone");
	if (c == 0) {
		converse(b, 500);
		_exit(getpid() == 1 ? 0 : 5);
	}
	int status;
	waitpid(c, &status, 0);
	printf("child %x\n", status);
	converse(b, 100);
	if (recv(a, buf, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN) fail("nothing");
	converse(a, 500);
	puts("goes on");
}

/* More children than a family has places are not born, or are killed before they do anything. The next one takes part. */
static void unborn(void)
{
	meet(echo);
	for (int i = 0; i < 300; i++)
		/* CLONE_SIGHAND without CLONE_VM is refused. */
		if (syscall(SYS_clone, CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0) != -1 || errno != EINVAL) fail("clone");
	for (int i = 0; i < 300; i++) {
		pid_t c = fork();
		if (c < 0) fail("fork");
		if (c == 0) linger();
		kill(c, SIGKILL);
		waitpid(c, 0, 0);
	}
	alarm(30);
	converse(fd, 100);
	meet(echo);
	converse(fd, 100);
	puts("goes on");
}

/* prctl without libc: nobody is to prepare for a filter. */
static long bare_prctl(long option, long a, const void *b)
{
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;
	long r = SYS_prctl;
	__asm__ volatile("syscall" : "+a"(r) : "D"(option), "S"(a), "d"(b), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return r;
}

/* As many processes are killed inside fork, at the system call that would make the child. The next ones take part. */
static void killed_in_fork(void)
{
	struct sock_filter kills[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof kills / sizeof *kills, kills };
	int status;
	meet(echo);
	for (int i = 0; i < 300; i++) {
		pid_t c = fork();
		if (c < 0) fail("fork");
		if (c == 0) {
			if (bare_prctl(PR_SET_NO_NEW_PRIVS, 1, 0)) _exit(1);
			if (bare_prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(1);
			fork();
			_exit(1);
		}
		if (waitpid(c, &status, 0) != c || !WIFSIGNALED(status)) fail("not killed");
	}
	alarm(30);
	converse(fd, 100);
	/* The dead leave a place to one. */
	for (int i = 0; i < 2; i++) {
		meet(echo);
		converse(fd, 100);
	}
	puts("goes on");
}

static int close_all(void *unused)
{
	for (int i = 3; i < 64; i++) close(i);
	return 0;
}

static int use_and_close(void *unused)
{
	converse(fd, 50);
	close(fd);
	return 0;
}

/* A child that shares memory and no descriptors closes what it inherited; one that shares descriptors and no memory closes
 * what its parent has. */
static void children_that_share(void)
{
	static char stack[1 << 18] __attribute__((aligned(16)));
	int status;
	meet(echo);
	alarm(30);
	pid_t c = clone(close_all, stack + sizeof stack, CLONE_VM | SIGCHLD, 0);
	waitpid(c, &status, 0);
	printf("memory: child %x\n", status);
	converse(fd, 200);
	meet(echo);
	converse(fd, 100);
	c = clone(use_and_close, stack + sizeof stack, CLONE_FILES | SIGCHLD, 0);
	waitpid(c, &status, 0);
	printf("descriptors: child %x\n", status);
	if (send(fd, "x", 1, MSG_NOSIGNAL) >= 0 || errno != EBADF) fail("closed");
	puts("goes on");
}

static pthread_barrier_t turn;

static void *own_table(void *closes)
{
	if (unshare(CLONE_FILES)) fail("unshare");
	pthread_barrier_wait(&turn);
	if (closes) {
		close(fd);
		if (dup2(0, fd) != fd) fail("number");
	}
	pthread_barrier_wait(&turn);
	if (!closes) converse(fd, 200);
	pthread_barrier_wait(&turn);
	return 0;
}

/* A thread with a table of its own closes a connection that the others go on with, or goes on with one that they close. */
static void table(const char *closes)
{
	pthread_t t;
	meet(echo);
	alarm(30);
	pthread_barrier_init(&turn, 0, 2);
	pthread_create(&t, 0, own_table, (void *)closes);
	pthread_barrier_wait(&turn);
	if (!closes) close(fd);
	pthread_barrier_wait(&turn);
	if (closes) converse(fd, 200);
	pthread_barrier_wait(&turn);
	pthread_join(t, 0);
	puts("goes on");
}

static int ends[2], closed[2], gone[2];

/* Waits until nobody has the writing end any more. */
static void all_closed(int *pipe)
{
	char b;
	close(pipe[1]);
	while (read(pipe[0], &b, 1) > 0);
}

/* Forks a child that closes the one connection, and goes on with the other. */
static void *fork_one(void *second)
{
	int mine = second != 0;
	pthread_barrier_wait(&turn);
	pid_t c = fork();
	if (c == 0) {
		alarm(20);
		all_closed(closed);
		close(ends[!mine]);
		all_closed(gone);
		converse(ends[mine], 100);
		_exit(0);
	}
	return (void *)(intptr_t)c;
}

/* The peer of one connection has no part in another. */
static void echo_alone(int s)
{
	for (int i = 3; i < 64; i++)
		if (i != s) close(i);
	echo(s);
}

/* Two threads fork at the same time: either child has one connection for itself once its parent and the other child have
 * closed it. */
static void abreast(void)
{
	pthread_barrier_init(&turn, 0, 2);
	for (int i = 0; i < 40; i++) {
		pthread_t t;
		void *c[2];
		pid_t peer[2];
		for (int e = 0; e < 2; e++) {
			peer[e] = meet(echo_alone);
			ends[e] = fd;
		}
		if (pipe(closed) || pipe(gone)) fail("pipe");
		pthread_create(&t, 0, fork_one, "second");
		c[0] = fork_one(0);
		pthread_join(t, &c[1]);
		close(ends[0]);
		close(ends[1]);
		close(gone[1]);
		close(closed[1]);
		for (int e = 0; e < 2; e++) {
			int status;
			if (waitpid((intptr_t)c[e], &status, 0) < 0) fail("waitpid");
			if (status) {
				printf("round %d: child %x\n", i, status);
				exit(4);
			}
			waitpid(peer[e], 0, 0);
		}
		close(closed[0]);
		close(gone[0]);
	}
	puts("go on");
}

static void nothing(int sig) {}

/* Two processes receive on one connection by turns, and one of them is stopped at some moment. The other one goes on, but
 * for those rounds in which the first was stopped in the middle of a step: then it waits as its call may, which SIGALRM
 * ends. They must be few. */
static void stopped(void)
{
	struct sigaction a = { .sa_handler = nothing };
	int helped = 0, rounds = 60;
	sigaction(SIGALRM, &a, 0);
	for (int i = 0; i < rounds; i++) {
		pid_t peer = meet(flood);
		pid_t c = fork();
		if (c == 0) drain();
		for (int n = 0; n < 40; n++) {
			pass(rand() % 100);
			if (recv(fd, buf, sizeof buf, 0) <= 0) fail("recv");
		}
		pass(rand() % 2000);
		kill(c, SIGSTOP);
		int status, kept = 0;
		waitpid(c, &status, WUNTRACED);
		alarm(2);
		for (int n = 0; n < 100; n++)
			if (recv(fd, buf, sizeof buf, 0) <= 0) {
				if (errno != EINTR || kept++) fail("recv");
				kill(c, SIGCONT);
			}
		alarm(0);
		helped += kept;
		kill(c, SIGKILL);
		kill(peer, SIGKILL);
		waitpid(c, 0, 0);
		waitpid(peer, 0, 0);
		close(fd);
	}
	if (getenv("ALIVE_HELPED")) fprintf(stderr, "helped %d of %d\n", helped, rounds);
	puts(helped <= rounds / 6 ? "goes on" : "is kept");
}

/* The same, of one that was stopped before the other one has received anything: it is not kept from signals, nor from
 * returning. */
static void stopped_first(void)
{
	struct sigaction a = { .sa_handler = nothing };
	sigaction(SIGALRM, &a, 0);
	for (int i = 0; i < 40; i++) {
		pid_t peer = meet(flood);
		pid_t c = fork();
		if (c == 0) drain();
		pass(1000 + rand() % 2000);
		kill(c, SIGSTOP);
		int status;
		waitpid(c, &status, WUNTRACED);
		if (recv(fd, buf, sizeof buf, MSG_DONTWAIT) <= 0 && errno != EAGAIN) fail("recv");
		alarm(1);
		if (recv(fd, buf, sizeof buf, 0) <= 0 && errno != EINTR) fail("recv");
		alarm(0);
		kill(c, SIGKILL);
		waitpid(c, 0, 0);
		for (int n = 0; n < 10; n++)
			if (recv(fd, buf, sizeof buf, 0) <= 0) fail("recv");
		kill(peer, SIGKILL);
		waitpid(peer, 0, 0);
		close(fd);
	}
	puts("comes back");
}

static char large[4 << 20];

static void drain_much(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (recv(fd, large, sizeof large, 0) > 0);
	_exit(0);
}

static void flood_much(int s)
{
	while (send(s, large, sizeof large, MSG_NOSIGNAL) > 0);
}

/* The same, of one that receives much at a time, and is stopped in the middle of that more often than not. The other one
 * receives, and so does the first once it goes on. */
static void stopped_copying(void)
{
	struct sigaction a = { .sa_handler = nothing };
	int helped = 0, rounds = 40;
	sigaction(SIGALRM, &a, 0);
	for (int i = 0; i < rounds; i++) {
		pid_t peer = meet(flood_much);
		pid_t c = fork();
		if (c == 0) drain_much();
		pass(10000 + rand() % 5000);
		kill(c, SIGSTOP);
		int status, kept = 0;
		waitpid(c, &status, WUNTRACED);
		alarm(2);
		for (int n = 0; n < 20; n++)
			if (recv(fd, buf, sizeof buf, 0) <= 0) {
				if (errno != EINTR || kept++) fail("recv");
				kill(c, SIGCONT);
			}
		alarm(0);
		kill(c, SIGCONT);
		helped += kept;
		pass(2000);
		kill(c, SIGKILL);
		kill(peer, SIGKILL);
		if (waitpid(c, &status, 0) != c || !WIFSIGNALED(status)) fail("the first one");
		waitpid(peer, 0, 0);
		close(fd);
	}
	if (getenv("ALIVE_HELPED")) fprintf(stderr, "helped %d of %d\n", helped, rounds);
	puts(helped <= rounds / 6 ? "goes on" : "is kept");
}

/* What three processes count of one stream. */
struct counts {
	long by[2], got[2];
	int over;
};
static struct counts *counts;

/* Sends its letter, in pieces as large as `n`, until it is over. */
static void tell(int s, int who, size_t n, int pieces)
{
	memset(large, 'a' + who, n);
	for (int i = 0; pieces ? i < pieces : !counts->over; i++) {
		ssize_t r = send(s, large, n, MSG_NOSIGNAL);
		if (r < 0 && errno != EINTR) fail("send");
		if (r > 0) counts->by[who] += r;
	}
}

static void count(int s)
{
	ssize_t n;
	while ((n = recv(s, large, sizeof large, 0)) > 0)
		for (ssize_t i = 0; i < n; i++)
			if (large[i] == 'a' || large[i] == 'b') counts->got[large[i] - 'a']++;
}

/* Two processes send on one connection, and one of them is stopped at some moment. The other one goes on, and so does the
 * first, later; whatever either has been told that it sent arrives, once. */
static void stopped_sending(void)
{
	struct sigaction a = { .sa_handler = nothing };
	int helped = 0, rounds = 40;
	sigaction(SIGALRM, &a, 0);
	counts = mmap(0, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < rounds; i++) {
		memset(counts, 0, sizeof *counts);
		pid_t peer = meet(count);
		pid_t c = fork();
		if (c == 0) {
			tell(fd, 0, i % 2 ? 100 + rand() % 10000 : 1 << 18, 0);
			_exit(0);
		}
		pass(2000 + rand() % 5000);
		kill(c, SIGSTOP);
		int status;
		waitpid(c, &status, WUNTRACED);
		alarm(2);
		tell(fd, 1, 1000, 1);
		if (!counts->by[1]) {
			helped++;
			kill(c, SIGCONT);
		}
		alarm(0);
		tell(fd, 1, 7000, 30);
		kill(c, SIGCONT);
		tell(fd, 1, 7000, 30);
		counts->over = 1;
		if (waitpid(c, &status, 0) != c || status) fail("the first one");
		close(fd);
		waitpid(peer, 0, 0);
		if (memcmp(counts->by, counts->got, sizeof counts->by)) {
			printf("round %d: sent %ld and %ld, got %ld and %ld\n", i, counts->by[0], counts->by[1], counts->got[0], counts->got[1]);
			exit(4);
		}
	}
	if (getenv("ALIVE_HELPED")) fprintf(stderr, "helped %d of %d\n", helped, rounds);
	puts(helped <= rounds / 6 ? "goes on" : "is kept");
}

/* A process that has the same epoll set is stopped at some moment while it changes it. The other one goes on with the set. */
static void stopped_set(void)
{
	meet(echo);
	int ep = epoll_create1(0);
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 5 };
	if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev)) fail("epoll");
	converse(fd, 100);
	for (int i = 0; i < 60; i++) {
		pid_t c = fork();
		if (c == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;) {
				ev.events ^= EPOLLOUT;
				if (epoll_ctl(ep, EPOLL_CTL_MOD, fd, &ev)) _exit(3);
			}
		}
		pass(1000 + rand() % 3000);
		kill(c, SIGSTOP);
		int status;
		waitpid(c, &status, WUNTRACED);
		alarm(10);
		ev.events = EPOLLIN;
		if (epoll_ctl(ep, EPOLL_CTL_MOD, fd, &ev)) fail("epoll_ctl");
		if (epoll_wait(ep, &ev, 1, 0) != 0) fail("nothing");
		if (send(fd, "x", 1, 0) != 1 || epoll_wait(ep, &ev, 1, -1) != 1 || recv(fd, buf, 1, 0) != 1) fail("epoll_wait");
		alarm(0);
		kill(c, SIGKILL);
		waitpid(c, 0, 0);
	}
	puts("goes on");
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	setvbuf(stdout, 0, _IOLBF, 0);
	if (!strcmp(what, "zombie")) killed(0);
	else if (!strcmp(what, "reused")) killed(1);
	else if (!strcmp(what, "foreign")) foreign();
	else if (!strcmp(what, "unborn")) unborn();
	else if (!strcmp(what, "killed-in-fork")) killed_in_fork();
	else if (!strcmp(what, "share")) children_that_share();
	else if (!strcmp(what, "table-thread")) table("");
	else if (!strcmp(what, "table-main")) table(0);
	else if (!strcmp(what, "abreast")) abreast();
	else if (!strcmp(what, "stopped")) stopped();
	else if (!strcmp(what, "stopped-first")) stopped_first();
	else if (!strcmp(what, "stopped-copying")) stopped_copying();
	else if (!strcmp(what, "stopped-sending")) stopped_sending();
	else if (!strcmp(what, "stopped-set")) stopped_set();
	else return 2;
	return 0;
}
