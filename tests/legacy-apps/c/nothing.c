/* Receives of no bytes that have to wait: whatever ends the wait, they return 0, and leave it to the next call. */
#include "pair.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>

/* Returns when the first thread of a process has been asleep for a while. */
static void until_sleeps(pid_t who)
{
	char path[64], text[512];
	sprintf(path, "/proc/%d/task/%d/stat", who, who);
	for (int seen = 0; seen < 10; usleep(1000)) {
		int f = open(path, O_RDONLY);
		ssize_t n = read(f, text, sizeof text - 1);
		close(f);
		text[n > 0 ? n : 0] = 0;
		char *state = strrchr(text, ')');
		seen = state && state[2] == 'S' ? seen + 1 : 0;
	}
}

/* Ends with a reset: what the other side has sent lies unread. */
static void resets(int s)
{
	char b;
	if (recv(s, &b, 1, MSG_PEEK) != 1) exit(3);
	until_sleeps(getppid());
	close(s);
}

static void ends(int s)
{
	until_sleeps(getppid());
	shutdown(s, SHUT_WR);
	char b;
	recv(s, &b, 1, 0);
}

static void sends(int s)
{
	until_sleeps(getppid());
	send(s, "x", 1, 0);
	char b;
	recv(s, &b, 1, 0);
}

/* Until it is killed. */
static void stays(int s)
{
	for (;;) pause();
}

extern char **environ;

/* Starts another program that shuts the connection down, while the first thread waits. */
static void *program(void *self)
{
	char number[8], *arguments[] = { self, number, 0 };
	pid_t other;
	sprintf(number, "%d", fd);
	until_sleeps(getpid());
	if (posix_spawn(&other, "/proc/self/exe", 0, 0, arguments, environ)) exit(3);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		/* Another program, which has the connection as well. */
		until_sleeps(getppid());
		return shutdown(atoi(argv[1]), SHUT_WR);
	}
	void (*const peers[])(int) = { resets, ends, sends, stays };
	for (int i = 0; i < 8; i++) {
		char b;
		pthread_t t;
		int first;
		pid_t peer = pair(peers[i % 4]);
		exchange(fd, 0);
		if (i % 4 == 0) send(fd, "u", 1, 0);
		if (i % 4 == 3) pthread_create(&t, 0, program, argv[0]);
		errno = 0;
		first = recv(fd, &b, 0, i < 4 ? 0 : MSG_WAITALL);
		printf("nothing: %d %d", first, first < 0 ? errno : 0);
		errno = 0;
		first = recv(fd, &b, 1, i % 4 == 3 ? MSG_DONTWAIT : 0);
		printf(", then %d %d\n", first, first < 0 ? errno : 0);
		fflush(stdout);
		if (i % 4 == 3) {
			pthread_join(t, 0);
			kill(peer, SIGKILL);
		}
		close(fd);
	}
	return 0;
}
