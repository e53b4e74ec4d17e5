/* Bytes lie unread on a connection that programs inherit, which this one starts: each byte is read once, by whoever comes first, and
 * the connection ends as if the kernel had the bytes.
 *
 * sibling: of two programs that are started one reads all, and the other one, which has inherited the connection by oversight, ends.
 * sibling-thread: the same, started by two threads at the same time.
 * parent: this one reads all; then a program that has inherited the connection by oversight ends.
 * turns: programs read pieces, one after the other, and this one reads on in between.
 * late: this one closes when a program has read all. */
#define _GNU_SOURCE
#include "heir.h"
#include <poll.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>

enum { MUCH = 15000000, PIECE = 1000000, ANSWER = 100000 };

extern char **environ;
static char all[MUCH], got[MUCH];
static char *self;
static int over[2], go[2], said[2];

static void speak(int s)
{
	ssize_t n, at = 0;
	close(over[1]);
	while (at < MUCH && (n = send(s, all + at, MUCH - at, MSG_NOSIGNAL)) > 0) at += n;
	shutdown(s, SHUT_WR);
	read_answer(s, over[0], got, sizeof got);
}

/* Reads up to `most` bytes, from which the stream has `from` before. */
static void take(const char *who, int s, int from, int most)
{
	ssize_t n = 0, at = 0;
	while (at < most && (n = recv(s, got + at, most - at, 0)) > 0) at += n;
	printf("%s: %zd bytes, %s%s\n", who, at, n < 0 ? strerror(errno) : at < most ? "the end" : "more",
	       memcmp(got, all + from, at) ? ", wrong ones" : "");
	fflush(stdout);
}

static void answer(int s)
{
	if (send(s, all, ANSWER, MSG_NOSIGNAL) != ANSWER) exit(5);
}

static pid_t program(const char *what, int from)
{
	char number[16], where[16], *args[] = { self, (char *)what, number, where, 0 };
	pid_t child;
	snprintf(number, sizeof number, "%d", fd);
	snprintf(where, sizeof where, "%d", from);
	if (posix_spawn(&child, "/proc/self/exe", 0, 0, args, environ)) exit(3);
	return child;
}

/* Has the connection by oversight, and ends when it may. */
static pid_t overlook(void)
{
	char in[16], out[16], *args[] = { self, "overlook", in, out, 0 };
	pid_t child;
	snprintf(in, sizeof in, "%d", go[0]);
	snprintf(out, sizeof out, "%d", said[1]);
	if (posix_spawn(&child, "/proc/self/exe", 0, 0, args, environ)) exit(3);
	return child;
}

static void *overlook_in_thread(void *child)
{
	*(pid_t *)child = overlook();
	return 0;
}

static void let_go(pid_t child)
{
	if (write(go[1], "g", 1) != 1) exit(4);
	waitpid(child, 0, 0);
}

int main(int argc, char **argv)
{
	for (unsigned i = 0; i < MUCH; i++) all[i] = i * 2654435761u >> 24;
	char b;
	if (argc > 3) {
		int s = atoi(argv[2]), from = atoi(argv[3]);
		if (!strcmp(argv[1], "overlook")) {
			write(from, "s", 1);
			return read(s, &b, 1) != 1;
		}
		take("a program", s, from, strcmp(argv[1], "all") ? PIECE : MUCH + 1);
		if (!strcmp(argv[1], "all")) {
			/* Until the other one has ended. */
			if (read(atoi(getenv("GO")), &b, 1) != 1) return 4;
			answer(s);
		}
		return 0;
	}
	const char *how = argv[1];
	char number[16];
	self = argv[0];
	pipe(over);
	pipe(said);
	pipe(go);
	int go_all[2];
	pipe(go_all);
	snprintf(number, sizeof number, "%d", go_all[0]);
	setenv("GO", number, 1);
	pid_t p = pair(speak), child, other = 0;
	close(over[0]);
	exchange(fd, 0);
	/* As a rule the peer has sent all by then, where so much fits. */
	struct pollfd f = { fd, POLLRDHUP, 0 };
	poll(&f, 1, 300);
	if (!strncmp(how, "sibling", 7)) {
		pthread_t t;
		pid_t o;
		if (!strcmp(how, "sibling")) o = overlook();
		else pthread_create(&t, 0, overlook_in_thread, &o);
		child = program("all", 0);
		if (strcmp(how, "sibling")) pthread_join(t, 0);
		close(fd);
		/* Both run; the reader has read all when nothing is left to be read. */
		if (read(said[0], &b, 1) != 1) return 4;
		siginfo_t i;
		while (waitid(P_PID, child, &i, WNOHANG | WEXITED | WNOWAIT) == 0 && i.si_pid == 0) {
			char path[64], line[512];
			snprintf(path, sizeof path, "/proc/%d/syscall", child);
			FILE *in = fopen(path, "r");
			/* It sleeps in read(2) on the pipe. */
			int is = in && fgets(line, sizeof line, in) && atoi(line) == 0 && strstr(line, "0x") && (int)strtol(strstr(line, "0x"), 0, 16) == go_all[0];
			if (in) fclose(in);
			if (is) break;
		}
		let_go(o);
		if (write(go_all[1], "g", 1) != 1) return 4;
		waitpid(child, 0, 0);
	} else if (!strcmp(how, "parent")) {
		other = overlook();
		if (read(said[0], &b, 1) != 1) return 4;
		take("this one", fd, 0, MUCH + 1);
		let_go(other);
		answer(fd);
		close(fd);
	} else if (!strcmp(how, "turns")) {
		int at = 0;
		for (int i = 0; i < 3; i++) {
			child = program("piece", at);
			waitpid(child, 0, 0);
			at += PIECE;
			take("this one", fd, at, PIECE);
			at += PIECE;
		}
		take("this one", fd, at, MUCH + 1);
		answer(fd);
		close(fd);
	} else {
		for (int at = 0; at < MUCH; at += PIECE) {
			child = program("piece", at);
			waitpid(child, 0, 0);
		}
		answer(fd);
		close(fd);
	}
	close(over[1]);
	waitpid(p, 0, 0);
	return 0;
}
