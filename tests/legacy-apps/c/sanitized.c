/* A program built with a sanitizer, on a busy connection; -DOWN: with options of its own. */
#include "pair.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#ifdef OWN
const char *__asan_default_options(void)
{
	return "exitcode=33";
}
#endif

static void peer(int s)
{
	char b[64];
	ssize_t n;
	while ((n = read(s, b, sizeof b)) > 0) write(s, b, n);
}

int main(int n, char **v)
{
	char *b = malloc(64);
	int status;
	pid_t p = pair(peer);
	exchange(fd, 0);
	ssize_t (*get)(int, void *, size_t, int) = (ssize_t(*)(int, void *, size_t, int))dlsym(RTLD_DEFAULT, "recv");
	for (int i = 0; i < 3; i++) {
		write(fd, "hello", 5);
		printf("%zd bytes\n", get(fd, b, 5, MSG_WAITALL));
	}
	shutdown(fd, SHUT_WR);
	waitpid(p, &status, 0);
	printf("the peer's status: %d\n", status);
	fflush(stdout);
	free(b);
	/* What a sanitizer is for. */
	return n > 1 ? b[n] : 0;
}
