/*
 * A connection that one process accepts and another serves: the socket goes there in a message. The argument says who else
 * holds it, and takes his turn at serving it; he finds nothing where the connection was taken for the first one's alone.
 *
 * The client sends lines, and checks that each comes back behind the name of whoever is to serve it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Lines that the receiver serves, before and after the other one. */
enum { FIRST = 60, OTHER = 40, LAST = 100 };

extern char **environ;
static const char *mode;
static const char *self;
/* The pair through which the socket goes, another one, and the turns. */
static int p[2], q[2], turn[2], back[2], ready[2];

static int is(const char *m) { return strcmp(mode, m) == 0; }

static void check(int ok, const char *what)
{
	if (!ok) {
		printf("%s: %s: %s (%d)\n", mode, what, strerror(errno), getpid());
		fflush(stdout);
		_exit(1);
	}
}

static void say(int to) { check(write(to, "x", 1) == 1, "write to a pipe"); }

static void hear(int from)
{
	char b;
	check(read(from, &b, 1) == 1, "read from a pipe");
}

static void send_fds(int s, int n, const int *fds)
{
	char control[CMSG_SPACE(8 * sizeof *fds)] = { 0 }, b = 'x';
	struct iovec v = { &b, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(n * sizeof *fds) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(n * sizeof *fds);
	memcpy(CMSG_DATA(c), fds, n * sizeof *fds);
	check(sendmsg(s, &m, 0) == 1, "sendmsg");
}

static int receive_fds(int s, int flags, int *fds)
{
	char control[CMSG_SPACE(8 * sizeof *fds)], b;
	struct iovec v = { &b, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	check(recvmsg(s, &m, flags) == 1, "recvmsg");
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	check(c && c->cmsg_type == SCM_RIGHTS, "descriptors");
	int n = (c->cmsg_len - CMSG_LEN(0)) / sizeof *fds;
	memcpy(fds, CMSG_DATA(c), n * sizeof *fds);
	return n;
}

static int receive(int s, int flags)
{
	int fds[8];
	check(receive_fds(s, flags, fds) == 1, "one descriptor");
	return fds[0];
}

static int line(int s, char *to)
{
	for (int n = 0;;) {
		int r = recv(s, to + n, 1, 0);
		if (r == 0 && n == 0) return 0;
		check(r == 1, "recv");
		if (to[n++] == '\n') {
			to[n] = 0;
			return n;
		}
	}
}

static void serve(int s, const char *who, int n)
{
	char got[100], out[200];
	for (int i = 0; i < n; i++) {
		check(line(s, got) > 0, "a line");
		int len = sprintf(out, "%s %s", who, got);
		check(send(s, out, len, 0) == len, "send");
	}
}

/* The other one, who has the socket as well. */
static void serve_other(int s)
{
	hear(turn[0]);
	serve(s, "other", OTHER);
	say(back[1]);
}

/* The receiver: as a program of its own, or in a child. */
static void receiver(void)
{
	int fds[8] = { -1, -1 }, n, other = 0;
	if (is("user")) check(setuid(65534) == 0, "setuid");
	if (is("peeked") || is("peeked-plain") || is("spawned") || is("wrapped")) hear(ready[0]);
	n = receive_fds(p[1], 0, fds);
	int s = fds[0];
	if (is("killed")) {
		pid_t sender;
		char b;
		check(read(ready[0], &sender, sizeof sender) == sizeof sender, "the sender");
		kill(sender, SIGKILL);
		/* It has the last writing end. */
		close(ready[1]);
		check(read(ready[0], &b, 1) == 0, "its end");
	}
	if (is("inside")) hear(ready[0]);
	if (is("onward")) {
		serve(s, "receiver", FIRST);
		send_fds(q[0], 1, &s);
		close(s);
		return;
	}
	if (is("onward-kept")) {
		/* By the way on which it came. */
		send_fds(p[0], 1, &s);
		say(ready[1]);
		serve_other(s);
		return;
	}
	if (is("keeps") || is("forked") || is("peeked") || is("peeked-plain") || is("spawned") || is("wrapped") || is("twice"))
		other = 1;
	if (is("message")) check(n == 2, "two descriptors");
	serve(s, "receiver", FIRST);
	if (is("receiver-forks")) {
		pid_t c = fork();
		if (c == 0) {
			serve(s, "other", OTHER);
			_exit(0);
		}
		waitpid(c, 0, 0);
	} else if (is("message")) {
		serve(fds[1], "other", OTHER);
	} else if (other) {
		say(turn[1]);
		hear(back[0]);
	} else {
		serve(s, "other", OTHER);
	}
	serve(s, "receiver", LAST);
}

static void *reads_a_line(void *arg)
{
	char got[100] = { 0 };
	check(recv(*(int *)arg, got, sizeof got - 1, 0) > 0, "a line");
	printf("in time: %s", got);
	fflush(stdout);
	say(q[1]);
	return 0;
}

/* Accepts, or connects, and sends the socket. */
static void sender(int listener, struct sockaddr_in *a)
{
	int c;
	if (is("connector")) {
		c = socket(AF_INET, SOCK_STREAM, 0);
		check(connect(c, (void *)a, sizeof *a) == 0, "connect");
	} else {
		c = accept(listener, 0, 0);
	}
	check(c >= 0, "a connection");
	if (is("keeps")) {
		int kept = dup(c);
		send_fds(p[0], 1, &c);
		close(c);
		serve_other(kept);
	} else if (is("forked")) {
		pid_t k = fork();
		if (k == 0) {
			close(p[0]);
			serve_other(c);
			_exit(0);
		}
		send_fds(p[0], 1, &c);
		close(c);
		waitpid(k, 0, 0);
	} else if (is("twice")) {
		send_fds(p[0], 1, &c);
		send_fds(q[0], 1, &c);
		close(c);
	} else if (is("message")) {
		int both[2] = { c, c };
		send_fds(p[0], 2, both);
		close(c);
	} else if (is("killed")) {
		pid_t me = getpid();
		send_fds(p[0], 1, &c);
		check(write(ready[1], &me, sizeof me) == sizeof me, "write");
		for (;;) pause();
	} else if (is("inside")) {
		pthread_t t;
		pthread_create(&t, 0, reads_a_line, &c);
		/* The first line comes once the socket is closed. */
		usleep(100000);
		send_fds(p[0], 1, &c);
		close(c);
		say(q[1]);
		pthread_join(t, 0);
		say(ready[1]);
		/* ... and holds the socket no longer. */
	} else {
		send_fds(p[0], 1, &c);
		close(c);
	}
}

static void client(int listener, struct sockaddr_in *a)
{
	char out[100], got[200], want[200];
	int s;
	close(ready[1]);
	if (is("connector")) {
		s = accept(listener, 0, 0);
	} else {
		s = socket(AF_INET, SOCK_STREAM, 0);
		check(connect(s, (void *)a, sizeof *a) == 0, "connect");
	}
	if (is("inside")) {
		hear(q[0]);
		check(send(s, "for a thread\n", 13, 0) == 13, "send");
		hear(q[0]);
	}
	int other = is("onward-kept") ? 0 : FIRST;
	for (int i = 0; i < FIRST + OTHER + LAST; i++) {
		const char *who = i < other ? "receiver" : i < other + OTHER ? "other" : "receiver";
		int n = sprintf(out, "line %d\n", i);
		check(send(s, out, n, 0) == n, "send");
		check(line(s, got) > 0, "an answer");
		sprintf(want, "%s %s", who, out);
		if (strcmp(got, want)) printf("%s: %s instead of %s", mode, got, want);
	}
	shutdown(s, SHUT_WR);
	check(recv(s, got, 1, 0) == 0, "the end");
	printf("%s: %d lines\n", mode, FIRST + OTHER + LAST);
}

/* Becomes another program, with all descriptors. */
static void become(const char *program, const char *what)
{
	char n[10][12];
	const char *a[16] = { program, what, mode, self };
	int fds[10] = { p[0], p[1], q[0], q[1], turn[0], turn[1], back[0], back[1], ready[0], ready[1] };
	for (int i = 0; i < 10; i++) {
		sprintf(n[i], "%d", fds[i]);
		a[4 + i] = n[i];
	}
	execv(program, (char **)a);
	check(0, program);
}

/* Takes the socket out of the message that the receiver is about to receive. */
static void peeker(void)
{
	int s = receive(p[1], MSG_PEEK);
	say(ready[1]);
	serve_other(s);
}

static pid_t start(void (*f)(void))
{
	fflush(stdout);
	pid_t c = fork();
	if (c == 0) {
		f();
		fflush(stdout);
		_exit(0);
	}
	return c;
}

static void image(void) { become(self, "receiver"); }

/* Without culvert, and with an end of the pair. */
static void plain(void)
{
	unsetenv("LD_PRELOAD");
	become(self, "peeker");
}

/* A program that does not load culvert, although it is told to, leaves a child and becomes one that does. */
static void wrapped(void) { become(getenv("STATIC"), "wrapper"); }

/* Inherits an end by oversight. */
static void spawned(void)
{
	char n[10][12];
	char *a[16] = { (char *)self, "peeker", (char *)mode, (char *)self };
	int fds[10] = { p[0], p[1], q[0], q[1], turn[0], turn[1], back[0], back[1], ready[0], ready[1] };
	for (int i = 0; i < 10; i++) {
		sprintf(n[i], "%d", fds[i]);
		a[4 + i] = n[i];
	}
	char *none[] = { 0 };
	pid_t c;
	check(posix_spawn(&c, self, 0, 0, a, none) == 0, "posix_spawn");
	waitpid(c, 0, 0);
}

static void takes_over(void)
{
	if (is("onward-kept")) hear(ready[0]);
	int s = receive(is("onward-kept") ? p[1] : q[1], 0);
	if (is("onward")) {
		serve(s, "other", OTHER);
		serve(s, "receiver", LAST);
	} else if (is("onward-kept")) {
		/* Its sender has it still. */
		say(turn[1]);
		hear(back[0]);
		serve(s, "receiver", FIRST);
		serve(s, "receiver", LAST);
	} else {
		serve_other(s);
	}
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	alarm(60);
	if (argc > 4) {
		int *fds[10] = { p, p + 1, q, q + 1, turn, turn + 1, back, back + 1, ready, ready + 1 };
		mode = argv[2];
		self = argv[3];
		for (int i = 0; i < 10; i++) *fds[i] = atoi(argv[4 + i]);
		if (strcmp(argv[1], "receiver") == 0) receiver();
		if (strcmp(argv[1], "peeker") == 0) peeker();
		if (strcmp(argv[1], "wrapper") == 0) {
			start(peeker);
			image();
		}
		return 0;
	}
	mode = argv[1];
	self = argv[0];
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(bind(listener, (void *)&a, l) == 0 && listen(listener, 1) == 0, "listen");
	getsockname(listener, (void *)&a, &l);
	check(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, q) == 0, "socketpair");
	check(pipe(turn) == 0 && pipe(back) == 0 && pipe(ready) == 0, "pipe");
	pid_t all[5];
	int n = 0;
	all[n] = fork();
	if (all[n++] == 0) {
		client(listener, &a);
		fflush(stdout);
		_exit(0);
	}
	all[n++] = start(is("wrapped") ? wrapped : is("child") || is("user") || is("onward") || is("onward-kept") ? receiver : image);
	if (is("peeked")) all[n++] = start(peeker);
	if (is("peeked-plain")) all[n++] = start(plain);
	if (is("spawned")) all[n++] = start(spawned);
	if (is("twice") || is("onward") || is("onward-kept")) all[n++] = start(takes_over);
	all[n] = fork();
	if (all[n++] == 0) {
		sender(listener, &a);
		fflush(stdout);
		_exit(0);
	}
	close(ready[1]);
	for (int i = 0; i < n; i++) {
		int status;
		waitpid(all[i], &status, 0);
		printf("%d: %x\n", i, status);
	}
	return 0;
}
