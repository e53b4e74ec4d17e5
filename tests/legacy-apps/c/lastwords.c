/* The library of c/farewell.c: in its destructor it reads what is left on a connection, and says a long farewell. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int fd = -1, unread;
static char text[1 << 20];

void say_farewell(void)
{
	ssize_t n;
	int got = 0, put = 0;
	while (got < unread && (n = read(fd, text, unread - got)) > 0) got += n;
	memset(text, 'f', sizeof text);
	while (put < (int)sizeof text && (n = write(fd, text + put, sizeof text - put)) > 0) put += n;
	dprintf(2, "read %d, written %d\n", got, put);
	fd = -1;
}

void last_words(int s, int n)
{
	fd = s;
	unread = n;
}

__attribute__((destructor)) static void destructor(void)
{
	if (fd >= 0) say_farewell();
}
