/* The other names of calls that move bytes or wait (those of fortified programs, of large files, and libc's own), and ways to
 * a socket's bytes beside the usual ones: aio, stdio, splice, tee, vmsplice. Each on a connection of its own, on which bytes lie
 * unread in both directions: what each returns, and what is read behind it. The output is the same natively and under culvert.
 *
 * names KIND. KIND: tcp, pinned (a connection that only the kernel can have). */
#define _GNU_SOURCE
#include <aio.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* What headers do not declare, or only for fortified programs. */
ssize_t __read(int, void *, size_t);
ssize_t __write(int, const void *, size_t);
ssize_t __send(int, const void *, size_t, int);
int __close(int);
int __dup2(int, int);
int __fcntl(int, int, ...);
int __poll(struct pollfd *, nfds_t, int);
int __select(int, fd_set *, fd_set *, fd_set *, struct timeval *);
int __connect(int, const struct sockaddr *, socklen_t);
ssize_t __read_chk(int, void *, size_t, size_t);
ssize_t __recv_chk(int, void *, size_t, size_t, int);
ssize_t __recvfrom_chk(int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *);
int __poll_chk(struct pollfd *, nfds_t, int, size_t);
int __ppoll_chk(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t);
int __dprintf_chk(int, int, const char *, ...);
int __vdprintf_chk(int, int, const char *, va_list);

static const char *kind;
static int fd = -1, other = -1, number;
static const char pattern[] = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen jugs.";

static void die(const char *what) { perror(what); exit(3); }

static void make(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int on = 1, s = socket(AF_INET, SOCK_STREAM, 0);
	unsigned rate = 2000000000;
	char b[4];
	if (bind(s, (void *)&a, l) || listen(s, 1) || getsockname(s, (void *)&a, &l)) die("listen");
	other = socket(AF_INET, SOCK_STREAM, 0);
	if (__connect(other, (void *)&a, l)) die("connect");
	if ((fd = accept(s, 0, 0)) < 0) die("accept");
	close(s);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	setsockopt(other, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (!strcmp(kind, "pinned") && setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate)) die("rate");
	for (int i = 0; i < 3; i++)
		if (send(other, "ping", 4, 0) != 4 || recv(fd, b, 4, 0) != 4 || send(fd, "pong", 4, 0) != 4 || recv(other, b, 4, 0) != 4) die("ping");
	/* Both ways, and the first of it read. */
	if (send(fd, "before ", 7, 0) != 7 || send(other, pattern, 64, 0) != 64 || recv(fd, b, 4, MSG_WAITALL) != 4) die("feed");
}

static unsigned sum(const char *b, long n)
{
	unsigned h = 17;
	for (long i = 0; i < n; i++) h = h * 31 + (unsigned char)b[i];
	return h;
}

/* All that comes until the other end has shut down. */
static void drain(const char *who, int s)
{
	static char b[1 << 20];
	long n = 0, r;
	if (s < 0) return;
	while (n < (long)sizeof b && (r = recv(s, b + n, sizeof b - n, 0)) > 0) n += r;
	printf(" %s(%ld %x%s)", who, n, sum(b, n), r < 0 ? strerrorname_np(errno) : "");
}

static void result(const char *name, long r)
{
	int e = errno;
	printf("%d %s: %ld %s", number, name, r, r < 0 ? strerrorname_np(e) : "-");
}

/* Both ends go on, and finish. */
static void finish(void)
{
	if (fd >= 0 && fcntl(fd, F_GETFD) >= 0) {
		send(fd, "behind", 6, MSG_NOSIGNAL);
		shutdown(fd, SHUT_WR);
	}
	send(other, "more", 4, MSG_NOSIGNAL);
	shutdown(other, SHUT_WR);
	if (fd >= 0 && fcntl(fd, F_GETFD) >= 0) drain("here", fd), close(fd);
	drain("there", other);
	close(other);
	fd = other = -1;
	printf("\n");
	fflush(stdout);
	number++;
}

#define ROW(name, call) do { make(); errno = 0; long r_ = (call); result(name, r_); finish(); } while (0)
/* The same with what it read or said. */
#define SEEN(name, call, b, n) do { make(); errno = 0; memset(b, 'z', n); long r_ = (call); result(name, r_); printf(" %x", sum((void *)(b), n)); finish(); } while (0)

static int formatted(int checked, const char *how, ...)
{
	va_list l;
	va_start(l, how);
	int r = checked ? __vdprintf_chk(fd, 1, how, l) : vdprintf(fd, how, l);
	va_end(l);
	return r;
}

static void other_names(void)
{
	char b[128], *none = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec v[2] = { { b, 8 }, { b + 8, 8 } }, out[2] = { { (void *)pattern, 8 }, { (void *)(pattern + 8), 8 } };
	struct pollfd p[2];
	struct timespec now = { 0, 0 };
	struct timeval none_left = { 0, 0 };
	struct sockaddr_in a;
	socklen_t l = sizeof a;
	fd_set in;
	off64_t at = 3;
	int file = memfd_create("file", 0), spare;
	if (write(file, pattern, 64) != 64) die("file");
	SEEN("__read", __read(fd, b, 16), b, 64);
	ROW("__read fault", __read(fd, none, 16));
	ROW("__write", __write(fd, pattern, 16));
	ROW("__write fault", __write(fd, none, 16));
	ROW("__send", __send(fd, pattern, 16, MSG_NOSIGNAL));
	ROW("__send flag", __send(fd, pattern, 16, MSG_NOSIGNAL | MSG_MORE));
	SEEN("__read_chk", __read_chk(fd, b, 16, sizeof b), b, 64);
	SEEN("__recv_chk", __recv_chk(fd, b, 16, sizeof b, 0), b, 64);
	SEEN("__recv_chk peek", __recv_chk(fd, b, 16, sizeof b, MSG_PEEK), b, 64);
	SEEN("__recv_chk trunc", __recv_chk(fd, b, 16, sizeof b, MSG_TRUNC), b, 64);
	SEEN("__recvfrom_chk", __recvfrom_chk(fd, b, 16, sizeof b, 0, (void *)&a, &l), b, 64);
	SEEN("__recvfrom_chk none", __recvfrom_chk(fd, b, 16, sizeof b, MSG_DONTWAIT, 0, 0), b, 64);
	SEEN("preadv2", preadv2(fd, v, 2, -1, 0), b, 64);
	SEEN("preadv2 flag", preadv2(fd, v, 2, -1, RWF_NOWAIT), b, 64);
	SEEN("preadv2 offset", preadv2(fd, v, 2, 0, 0), b, 64);
	SEEN("preadv64v2", preadv64v2(fd, v, 2, -1, 0), b, 64);
	SEEN("preadv64v2 offset", preadv64v2(fd, v, 2, 5, 0), b, 64);
	ROW("pwritev2", pwritev2(fd, out, 2, -1, 0));
	ROW("pwritev64v2", pwritev64v2(fd, out, 2, -1, 0));
	ROW("pwritev64v2 offset", pwritev64v2(fd, out, 2, 5, 0));
	ROW("pwritev64v2 flag", pwritev64v2(fd, out, 2, -1, 0x8000));
	ROW("sendfile64", sendfile64(fd, file, &at, 16));
	ROW("sendfile64 on", sendfile64(fd, file, 0, 16));
	ROW("pread64", pread64(fd, b, 16, 0));
	ROW("pwrite64", pwrite64(fd, pattern, 16, 0));
	ROW("lseek64", lseek64(fd, 0, SEEK_CUR));
	ROW("ftruncate64", ftruncate64(fd, 3));
#define ASKED() (p[0] = (struct pollfd){ fd, POLLIN | POLLOUT, 0 }, p[1] = (struct pollfd){ other, POLLIN, 0 })
	SEEN("__poll", (ASKED(), __poll(p, 2, 0)), &p->revents, 2);
	make(), ASKED(), result("__poll_chk", __poll_chk(p, 2, 0, sizeof p)), printf(" %x %x", p[0].revents, p[1].revents), finish();
	make(), ASKED(), result("__ppoll_chk", __ppoll_chk(p, 2, &now, 0, sizeof p)), printf(" %x %x", p[0].revents, p[1].revents), finish();
	make();
	FD_ZERO(&in);
	FD_SET(fd, &in), FD_SET(other, &in), result("__select", __select(other + fd + 1, &in, 0, 0, &none_left)), printf(" %d %d", !!FD_ISSET(fd, &in), !!FD_ISSET(other, &in)), finish();
	ROW("__fcntl", __fcntl(fd, F_GETFL));
	ROW("__fcntl set", __fcntl(fd, F_SETFL, O_RDWR));
	ROW("fcntl64", fcntl64(fd, F_GETFL));
	make(), spare = __fcntl(fd, F_DUPFD, 500), result("__fcntl dup", spare >= 500), close(fd), fd = spare, finish();
	make(), spare = fcntl64(fd, F_DUPFD_CLOEXEC, 500), result("fcntl64 dup", spare >= 500), close(fd), fd = spare, finish();
	make(), spare = __dup2(fd, 600), result("__dup2", spare), __close(fd), fd = spare, finish();
	make(), result("__close", __close(fd)), fd = -1, finish();
	ROW("dprintf", dprintf(fd, "%s %d", "said", 7));
	ROW("dprintf nothing", dprintf(fd, "%s", ""));
	ROW("__dprintf_chk", __dprintf_chk(fd, 1, "%s %d", "said", 7));
	ROW("vdprintf", formatted(0, "%s %d", "said", 7));
	ROW("__vdprintf_chk", formatted(1, "%s %d", "said", 7));
	close(file);
}

/* --- aio */

static long wait_for(struct aiocb *c)
{
	const struct aiocb *list[1] = { c };
	while (aio_error(c) == EINPROGRESS) aio_suspend(list, 1, 0);
	errno = aio_error(c);
	return aio_return(c);
}

static void aio(void)
{
	char b[128], *none = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct aiocb c, d, *both[2] = { &c, &d };
#define CALL(where, n) ((struct aiocb){ .aio_fildes = fd, .aio_buf = (void *)(where), .aio_nbytes = n, .aio_sigevent.sigev_notify = SIGEV_NONE })
	SEEN("aio_read", (c = CALL(b, 16), aio_read(&c) ?: wait_for(&c)), b, 64);
	SEEN("aio_read64", (c = CALL(b, 16), aio_read64((void *)&c) ?: wait_for(&c)), b, 64);
	ROW("aio_read fault", (c = CALL(none, 16), aio_read(&c) ?: wait_for(&c)));
	ROW("aio_read priority", (c = CALL(b, 16), c.aio_reqprio = -1, aio_read(&c) ?: wait_for(&c)));
	ROW("aio_write", (c = CALL(pattern, 16), aio_write(&c) ?: wait_for(&c)));
	ROW("aio_write64", (c = CALL(pattern, 16), aio_write64((void *)&c) ?: wait_for(&c)));
	ROW("aio_write fault", (c = CALL(none, 16), aio_write(&c) ?: wait_for(&c)));
	ROW("aio_fsync", (c = CALL(b, 0), aio_fsync(O_SYNC, &c) ?: wait_for(&c)));
	ROW("aio_cancel", (c = CALL(b, 16), aio_read(&c), wait_for(&c), aio_cancel(fd, 0)));
	for (int wide = 0; wide < 2; wide++) {
		make();
		memset(b, 'z', sizeof b);
		c = CALL(b, 16), d = CALL(pattern, 16);
		c.aio_lio_opcode = LIO_READ, d.aio_lio_opcode = LIO_WRITE;
		errno = 0;
		result(wide ? "lio_listio64" : "lio_listio", wide ? lio_listio64(LIO_WAIT, (void *)both, 2, 0) : lio_listio(LIO_WAIT, both, 2, 0));
		printf(" %ld %ld %x", wait_for(&c), wait_for(&d), sum(b, 64));
		finish();
	}
	make(), c = CALL(b, 16), c.aio_lio_opcode = LIO_NOP, both[1] = 0, result("lio_listio nothing", lio_listio(LIO_WAIT, both, 2, 0)), finish();
	make(), c = CALL(b, 16), c.aio_lio_opcode = 77, errno = 0, result("lio_listio wrong", lio_listio(LIO_WAIT, both, 1, 0)), finish();
	make(), result("lio_listio mode", lio_listio(77, both, 1, 0)), finish();
}

/* --- stdio */

static void stdio(void)
{
	char b[128];
	FILE *f;
	static const char *const modes[] = { "r", "w", "r+", "a", "rb", "w+", "rwx", "", "z", "re" };
	for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++) {
		make();
		errno = 0;
		f = fdopen(fd, modes[i]);
		result("fdopen", f ? 0 : -1);
		printf(" '%s'", modes[i]);
		if (f) {
			memset(b, 'z', sizeof b);
			if (*modes[i] == 'r' || modes[i][1] == '+') printf(" read %zu", fread(b, 1, 20, f));
			if (*modes[i] != 'r' || modes[i][1] == '+') printf(" wrote %d", fprintf(f, "%s", "as a stream "));
			printf(" flush %d %x", fflush(f), sum(b, 64));
			/* What it has read ahead is gone with it. */
			shutdown(fd, SHUT_WR);
			printf(" close %d", fclose(f));
			fd = -1;
		}
		finish();
	}
	/* A duplicate of the descriptor is the stream's; the other goes on by itself. */
	make();
	f = fdopen(dup(fd), "w");
	setvbuf(f, 0, _IONBF, 0);
	result("unbuffered", fputs("by the stream ", f));
	send(fd, "by the number ", 14, 0);
	fputs("and again ", f);
	fclose(f);
	finish();
	make();
	f = fdopen(dup(fd), "r");
	setvbuf(f, 0, _IONBF, 0);
	result("a byte", fgetc(f));
	printf(" %zd %c", recv(fd, b, 5, 0), fgetc(f));
	fclose(f);
	finish();
}

/* --- pipes */

static void pipes(void)
{
	int p[2], q[2], file = memfd_create("file", 0);
	char b[4096];
	struct iovec v = { (void *)pattern, 16 };
	loff_t at = 0;
	if (pipe2(p, O_NONBLOCK) || pipe2(q, O_NONBLOCK) || write(file, pattern, 64) != 64) die("pipe");
	static const unsigned flags[] = { 0, SPLICE_F_MOVE, SPLICE_F_NONBLOCK, SPLICE_F_MORE, SPLICE_F_GIFT, 16, 0x80000000 };
	for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++) {
		printf("flags %x\n", flags[i]);
		SEEN("splice out of it", splice(fd, 0, p[1], 0, 16, flags[i]), b, 16);
		printf("  %zd\n", read(p[0], b, sizeof b));
		if (write(p[1], pattern, 32) != 32) die("write");
		ROW("splice into it", splice(p[0], 0, fd, 0, 16, flags[i]));
		ROW("splice into it with an offset", splice(p[0], 0, fd, &at, 16, flags[i]));
		ROW("splice out of it with an offset", splice(fd, &at, p[1], 0, 16, flags[i]));
		ROW("tee out of it", tee(fd, p[1], 16, flags[i]));
		ROW("tee into it", tee(p[0], fd, 16, flags[i]));
		ROW("vmsplice", vmsplice(fd, &v, 1, flags[i]));
		printf("  %zd\n", read(p[0], b, sizeof b));
	}
	ROW("splice of nothing", splice(fd, 0, p[1], 0, 0, 0));
	ROW("splice between sockets", splice(fd, 0, other, 0, 16, 0));
	ROW("splice to a file", splice(fd, 0, file, 0, 16, 0));
	ROW("copy_file_range out of it", copy_file_range(fd, 0, file, 0, 16, 0));
	ROW("copy_file_range into it", copy_file_range(file, 0, fd, 0, 16, 0));
	/* What was copied from a pipe by tee, and goes on into the connection. */
	if (write(p[1], pattern, 48) != 48) die("write");
	make();
	result("teed", tee(p[0], q[1], 48, 0));
	printf(" %zd %zd", splice(q[0], 0, fd, 0, 48, 0), splice(p[0], 0, fd, 0, 48, 0));
	finish();
	make();
	result("mapped", vmsplice(p[1], &v, 1, 0));
	printf(" %zd", splice(p[0], 0, fd, 0, 16, SPLICE_F_MOVE));
	finish();
	close(file);
}

int main(int argc, char **argv)
{
	if (argc < 2) return 2;
	kind = argv[1];
	signal(SIGPIPE, SIG_IGN);
	alarm(200);
	other_names();
	aio();
	stdio();
	pipes();
	printf("rows %d\n", number);
	return 0;
}
