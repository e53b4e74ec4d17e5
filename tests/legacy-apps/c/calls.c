/* Every flag, option value and bad pointer in the calls that culvert takes, on one kind of descriptor: what each returns, and
 * what it leaves behind. The output is the same natively and under culvert, or culvert is wrong.
 *
 * calls KIND TABLE. KIND: tcp (under culvert attached or not, as the environment says), pinned (a connection that only the
 * kernel can have), pipe, udp, listen, none (a closed number), idle (as udp, in a process that has no TCP socket).
 * TABLE: recv, send, pointers, waits, lengths, options, inq, kept, interrupted, commands, events. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *kind;
/* The descriptor that is tried, and the one at the other end (-1: there is none). */
static int fd = -1, other = -1;
static char *none, *readonly, *edge;

static int tcp(void) { return !strcmp(kind, "tcp") || !strcmp(kind, "pinned"); }

static void die(const char *what) { perror(what); exit(3); }

/* A connection that only the kernel can have, if that is what is to be tried. */
static void pin(int s)
{
	unsigned rate = 2000000000;
	if (!strcmp(kind, "pinned") && setsockopt(s, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate)) die("rate");
}

static void make(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int p[2], on = 1;
	if (tcp() || !strcmp(kind, "listen")) {
		int s = socket(AF_INET, SOCK_STREAM, 0);
		if (bind(s, (void *)&a, l) || listen(s, 1) || getsockname(s, (void *)&a, &l)) die("listen");
		fcntl(s, F_SETFL, O_NONBLOCK);
		if (!tcp()) { fd = s; return; }
		other = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(other, (void *)&a, l)) die("connect");
		fcntl(s, F_SETFL, 0);
		if ((fd = accept(s, 0, 0)) < 0) die("accept");
		close(s);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		setsockopt(other, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		pin(fd);
		/* Each side learns where it is. */
		char b[4];
		for (int i = 0; i < 3; i++)
			if (send(other, "ping", 4, 0) != 4 || recv(fd, b, 4, 0) != 4 || send(fd, "pong", 4, 0) != 4 || recv(other, b, 4, 0) != 4) die("ping");
	} else if (!strcmp(kind, "pipe")) {
		if (pipe(p)) die("pipe");
		fd = p[0], other = p[1];
	} else if (!strcmp(kind, "none")) {
		fd = dup(2), close(fd);
		return;
	} else {
		fd = socket(AF_INET, SOCK_DGRAM, 0), other = socket(AF_INET, SOCK_DGRAM, 0);
		struct sockaddr_in b = a;
		bind(fd, (void *)&a, l), getsockname(fd, (void *)&a, &l);
		bind(other, (void *)&b, l), getsockname(other, (void *)&b, &l);
		if (connect(fd, (void *)&b, l) || connect(other, (void *)&a, l)) die("udp");
	}
	fcntl(fd, F_SETFL, O_NONBLOCK), fcntl(other, F_SETFL, O_NONBLOCK);
}

static void unmake(void)
{
	if (strcmp(kind, "none") && fd >= 0) close(fd);
	if (other >= 0) close(other);
	fd = other = -1;
}

static unsigned sum(const char *b, long n)
{
	unsigned h = 17;
	for (long i = 0; i < n; i++) h = h * 31 + (unsigned char)b[i];
	return h;
}

/* What can be read from `s` now, or soon if less than `want`. */
static void drain(const char *who, int s, long want)
{
	static char b[1 << 20];
	long n = 0, r;
	if (s < 0) return;
	while (n < (long)sizeof b) {
		struct pollfd p = { s, POLLIN, 0 };
		if (n < want && poll(&p, 1, 2000) < 1) break;
		if ((r = read(s, b + n, sizeof b - n)) <= 0) break;
		n += r;
	}
	printf(" %s(%ld %x)", who, n, sum(b, n));
}

static const char pattern[] = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen jugs.";

/* Puts 64 bytes where `fd` reads. */
static void feed(void) { if (other >= 0 && write(other, pattern, 64) != 64) die("feed"); }

static void result(const char *name, int i, long r)
{
	int e = errno;
	printf("%s %d: %ld %s", name, i, r, r < 0 ? strerrorname_np(e) : "-");
}

/* What is left, of a connection as `make` made it. `n`: bytes that may be on their way to the other end. */
static void after(long n)
{
	int left = -1;
	if (strcmp(kind, "none")) {
		fcntl(fd, F_SETFL, O_NONBLOCK);
		struct pollfd p = { fd, POLLIN | POLLPRI | POLLRDHUP, 0 };
		int r = ioctl(fd, FIONREAD, &left);
		poll(&p, 1, 0);
		printf(" | left %d %d events %x", r, left, p.revents);
		if (strcmp(kind, "listen")) drain("here", fd, 0);
		if (strcmp(kind, "pipe")) drain("there", other, n);
	}
	printf("\n");
	fflush(stdout);
}

/* --- flags of receives */

static void recv_flags(void)
{
	static const int with[] = { 0, MSG_PEEK, MSG_TRUNC, MSG_PEEK | MSG_TRUNC, MSG_WAITALL, MSG_DONTWAIT };
	for (int bit = -1; bit < 32; bit++) {
		for (unsigned w = 0; w < sizeof with / sizeof *with; w++) {
			int flags = with[w] | (bit < 0 ? 0 : (int)(1u << bit));
			for (int call = 0; call < 4; call++) {
				for (int data = 0; data < 2; data++) {
					char b[40], name[64];
					struct iovec v[2] = { { b, 7 }, { b + 7, 9 } };
					struct sockaddr_in a;
					struct mmsghdr m = { .msg_hdr = { .msg_iov = v, .msg_iovlen = 2, .msg_name = &a, .msg_namelen = sizeof a } };
					socklen_t l = sizeof a;
					long r;
					memset(b, 'z', sizeof b);
					if (data) feed();
					errno = 0;
					sprintf(name, "recv flags %x data %d call", flags, data);
					switch (call) {
					case 0: r = recv(fd, b, 16, flags); break;
					case 1: r = recvfrom(fd, b, 16, flags, (void *)&a, &l); break;
					case 2: r = recvmsg(fd, &m.msg_hdr, flags); break;
					default: r = recvmmsg(fd, &m, 1, flags, 0);
					}
					result(name, call, r);
					if (r > 0) printf(" %x", sum(b, 40));
					if (call >= 2) printf(" flags %x control %zu name %u len %u", m.msg_hdr.msg_flags, m.msg_hdr.msg_controllen, m.msg_hdr.msg_namelen, m.msg_len);
					after(0);
				}
			}
		}
	}
}

static void send_flags(void)
{
	for (int bit = -1; bit < 32; bit++) {
		int flags = (bit < 0 ? 0 : (int)(1u << bit)) | MSG_NOSIGNAL;
		for (int call = 0; call < 4; call++) {
			struct iovec v[2] = { { (void *)pattern, 7 }, { (void *)(pattern + 7), 9 } };
			struct mmsghdr m = { .msg_hdr = { .msg_iov = v, .msg_iovlen = 2 } };
			char name[64];
			long r;
			errno = 0;
			sprintf(name, "send flags %x call", flags);
			switch (call) {
			case 0: r = send(fd, pattern, 16, flags); break;
			case 1: r = sendto(fd, pattern, 16, flags, 0, 0); break;
			case 2: r = sendmsg(fd, &m.msg_hdr, flags); break;
			default: r = sendmmsg(fd, &m, 1, flags);
			}
			result(name, call, r);
			/* What MSG_MORE may hold back goes with it. */
			long more = tcp() ? send(fd, "tail", 4, MSG_NOSIGNAL) : 0;
			int mark = -1, r2 = tcp() ? ioctl(other, SIOCATMARK, &mark) : 0;
			printf(" tail %ld mark %d %d %d", more, r2, mark, tcp() ? sockatmark(fd) : 0);
			after(flags & MSG_OOB ? 15 + more : (r > 0 ? (call == 3 ? 16 : r) : 0) + more);
			/* Urgent data stay. */
			if (flags & MSG_OOB) unmake(), make();
		}
	}
}

/* --- bad pointers */

enum { POINTERS = 9 };

/* A pointer to `size` bytes that is bad in the way `i`, or (0) good. */
static void *bad(int i, size_t size)
{
	static char good[16][4096];
	static int next;
	switch (i) {
	case 0: return memset(good[next++ % 16], 0, sizeof *good);
	case 1: return 0;
	case 2: return none;
	case 3: return readonly;
	/* Its last byte is beyond the edge; half of it is. */
	case 4: return edge - size + 1;
	case 5: return edge - size / 2;
	case 6: return (void *)0xffff888000000000;
	case 7: return (void *)0x8000000000000000;
	default: return (void *)(0x7ffffffff000 - size / 2);
	}
}

/* The same with what is good of it filled. */
static void *filled(int i, const void *from, size_t size)
{
	char *p = bad(i, size);
	if (i == 0) memcpy(p, from, size);
	if (i == 4) memcpy(p, from, size - 1);
	if (i == 5) memcpy(p, from, size / 2);
	return p;
}

#define TRY(name, n, call) do { errno = 0; long try_ = (call); result(name, i, try_); after(n); } while (0)

static void pointers(void)
{
	/* A file to send. */
	int file = memfd_create("file", 0), sink[2];
	char b[64];
	if (write(file, pattern, 64) != 64 || pipe2(sink, O_NONBLOCK)) die("file");
	for (int i = 0; i < POINTERS; i++) {
		for (int data = 0; data < 2; data++) {
#define FEED() do { if (data) feed(); } while (0)
			FEED(); TRY("read", 0, read(fd, bad(i, 16), 16));
			FEED(); TRY("recv", 0, recv(fd, bad(i, 16), 16, 0));
			FEED(); TRY("recv peek", 0, recv(fd, bad(i, 16), 16, MSG_PEEK));
			FEED(); TRY("recv trunc", 0, recv(fd, bad(i, 16), 16, MSG_TRUNC));
			FEED(); TRY("recv all", 0, recv(fd, bad(i, 16), 16, MSG_WAITALL));
			FEED(); TRY("recv none", 0, recv(fd, bad(i, 16), 0, 0));
			FEED(); TRY("recvfrom", 0, recvfrom(fd, bad(i, 16), 16, 0, 0, 0));
			socklen_t l = 16;
			FEED(); TRY("recvfrom address", 0, recvfrom(fd, b, 16, 0, bad(i, 16), &l));
			FEED(); TRY("recvfrom length", 0, recvfrom(fd, b, 16, 0, (void *)b, bad(i, 4)));
			struct iovec one = { bad(i, 16), 16 }, two[3] = { { b, 8 }, { bad(i, 16), 16 }, { b + 8, 8 } };
			struct iovec good = { b, 16 };
			FEED(); TRY("readv", 0, readv(fd, &one, 1));
			FEED(); TRY("readv second", 0, readv(fd, two, 3));
			FEED(); TRY("readv vector", 0, readv(fd, filled(i, &good, sizeof good), 1));
			FEED(); TRY("readv vectors", 0, readv(fd, filled(i, two, sizeof two), 2));
			FEED(); TRY("preadv2", 0, preadv2(fd, &one, 1, -1, 0));
			struct msghdr h = { .msg_iov = &one, .msg_iovlen = 1 };
			FEED(); TRY("recvmsg", 0, recvmsg(fd, &h, 0));
			h = (struct msghdr){ .msg_iov = two, .msg_iovlen = 3 };
			FEED(); TRY("recvmsg second", 0, recvmsg(fd, &h, 0));
			h = (struct msghdr){ .msg_iov = filled(i, &good, sizeof good), .msg_iovlen = 1 };
			FEED(); TRY("recvmsg vector", 0, recvmsg(fd, &h, 0));
			h = (struct msghdr){ .msg_iov = &good, .msg_iovlen = 1, .msg_name = bad(i, 16), .msg_namelen = 16 };
			FEED(); TRY("recvmsg name", 0, recvmsg(fd, &h, 0));
			h = (struct msghdr){ .msg_iov = &good, .msg_iovlen = 1, .msg_control = bad(i, 64), .msg_controllen = 64 };
			FEED(); TRY("recvmsg control", 0, recvmsg(fd, &h, 0));
			h = (struct msghdr){ .msg_iov = &good, .msg_iovlen = 1 };
			FEED(); TRY("recvmsg header", 0, recvmsg(fd, filled(i, &h, sizeof h), 0));
			struct mmsghdr mm = { .msg_hdr = h };
			FEED(); TRY("recvmmsg", 0, recvmmsg(fd, filled(i, &mm, sizeof mm), 1, 0, 0));
			struct timespec now = { 0, 0 };
			FEED(); TRY("recvmmsg time", 0, syscall(SYS_recvmmsg, fd, &mm, 1, 0, filled(i, &now, sizeof now)));
			FEED(); TRY("splice offset", 0, splice(fd, bad(i, 8), sink[1], 0, 16, SPLICE_F_NONBLOCK));
			while (read(sink[0], b, sizeof b) > 0) ;
			if (tcp()) unmake(), make();
		}
		int out = strcmp(kind, "pipe") ? fd : other;
		int n = i == 0 || i == 3 ? 16 : 0;
		TRY("write", n, write(out, bad(i, 16), 16));
		TRY("send", n, send(out, bad(i, 16), 16, MSG_NOSIGNAL));
		TRY("sendto", n, sendto(out, bad(i, 16), 16, MSG_NOSIGNAL, 0, 0));
		if (tcp()) TRY("sendto address", n, sendto(out, pattern, 16, MSG_NOSIGNAL, bad(i, 16), 16));
		TRY("send none", 0, tcp() ? send(out, bad(i, 16), 0, MSG_NOSIGNAL) : 0);
		struct iovec one = { bad(i, 16), 16 }, two[3] = { { (void *)pattern, 8 }, { bad(i, 16), 16 }, { (void *)pattern, 8 } };
		struct iovec good = { (void *)pattern, 16 };
		TRY("writev", n, writev(out, &one, 1));
		TRY("writev second", n ? 32 : 0, writev(out, two, 3));
		TRY("writev vector", i == 0 ? 16 : 0, writev(out, filled(i, &good, sizeof good), 1));
		TRY("writev vectors", i == 0 ? 24 : 0, writev(out, filled(i, two, sizeof two), 2));
		TRY("pwritev2", n, pwritev2(out, &one, 1, -1, 0));
		struct msghdr h = { .msg_iov = &one, .msg_iovlen = 1 };
		TRY("sendmsg", n, sendmsg(out, &h, MSG_NOSIGNAL));
		h = (struct msghdr){ .msg_iov = two, .msg_iovlen = 3 };
		TRY("sendmsg second", n ? 32 : 0, sendmsg(out, &h, MSG_NOSIGNAL));
		h = (struct msghdr){ .msg_iov = filled(i, &good, sizeof good), .msg_iovlen = 1 };
		TRY("sendmsg vector", i == 0 ? 16 : 0, sendmsg(out, &h, MSG_NOSIGNAL));
		h = (struct msghdr){ .msg_iov = &good, .msg_iovlen = 1, .msg_name = bad(i, 16), .msg_namelen = 16 };
		if (tcp()) TRY("sendmsg name", n, sendmsg(out, &h, MSG_NOSIGNAL));
		h = (struct msghdr){ .msg_iov = &good, .msg_iovlen = 1, .msg_control = bad(i, 64), .msg_controllen = 64 };
		if (i) TRY("sendmsg control", 0, sendmsg(out, &h, MSG_NOSIGNAL));
		if (tcp()) unmake(), make(), out = fd;
		h = (struct msghdr){ .msg_iov = &good, .msg_iovlen = 1 };
		TRY("sendmsg header", i == 0 ? 16 : 0, sendmsg(out, filled(i, &h, sizeof h), MSG_NOSIGNAL));
		struct mmsghdr mm[2] = { { .msg_hdr = h }, { .msg_hdr = h } };
		TRY("sendmmsg", 0, sendmmsg(out, filled(i, mm, sizeof mm), 2, MSG_NOSIGNAL));
		if (tcp()) drain("sent", other, i == 0 ? 32 : 0);
		off_t at = 3;
		TRY("sendfile offset", n, sendfile(out, file, filled(i, &at, sizeof at), 16));
		TRY("setsockopt", 0, setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, bad(i, 4), 4));
		TRY("setsockopt cork", 0, setsockopt(fd, IPPROTO_TCP, TCP_CORK, bad(i, 4), 4));
		TRY("setsockopt time", 0, setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, bad(i, 16), 16));
		int four = 4;
		TRY("getsockopt", 0, getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, bad(i, 4), (void *)&four));
		TRY("getsockopt length", 0, getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, b, filled(i, &four, 4)));
		four = 4;
		TRY("getsockopt error", 0, getsockopt(fd, SOL_SOCKET, SO_ERROR, bad(i, 4), (void *)&four));
		TRY("getsockopt error length", 0, getsockopt(fd, SOL_SOCKET, SO_ERROR, b, filled(i, &four, 4)));
		static const unsigned long asked[] = { FIONREAD, TIOCOUTQ, 0x894b /* SIOCOUTQNSD */, SIOCATMARK, FIONBIO };
		for (int k = 0; k < 5; k++)
			if (strcmp(kind, "pipe") || k == 0) TRY("ioctl", 0, ioctl(fd, asked[k], filled(i, &four, 4)));
		fcntl(fd, F_SETFL, O_NONBLOCK);
		socklen_t l = 16;
		TRY("getsockname", 0, getsockname(fd, bad(i, 16), &l));
		TRY("getpeername length", 0, getpeername(fd, (void *)b, filled(i, &l, 4)));
		l = 16;
		TRY("accept", 0, accept(fd, bad(i, 16), &l));
		TRY("connect", 0, i ? connect(fd, bad(i, 16), 16) : 0);
		TRY("bind", 0, i ? bind(fd, bad(i, 16), 16) : 0);
		if (tcp()) unmake(), make();
	}
	close(file), close(sink[0]), close(sink[1]);
}

/* Waits. libc reads some times itself, so those calls are made by number. */
static void waits(void)
{
	int set = epoll_create1(0);
	struct epoll_event ev = { EPOLLIN, { .u64 = 7 } }, out[4];
	for (int ready = 0; ready < 2; ready++) {
		for (int i = 0; i < POINTERS; i++) {
			struct pollfd p[2] = { { fd, POLLIN, 0 }, { -1, 0, 0 } };
			struct timespec ts = { 0, 1000 };
			struct timeval tv = { 0, 1 };
			struct { const void *set; size_t size; } mask = { 0, 8 };
			fd_set r;
			/* The kernel looks at no more than the table of descriptors has room for: at least so many. */
			int bits = 64;
			sigset_t empty;
			sigemptyset(&empty);
			FD_ZERO(&r);
			if (strcmp(kind, "none")) FD_SET(fd, &r);
			if (ready) feed();
			TRY("poll", 0, poll(filled(i, p, sizeof p), 2, 0));
			if (ready) feed();
			TRY("poll by number", 0, syscall(SYS_poll, filled(i, p, sizeof p), 2, 0));
			if (ready) feed();
			TRY("ppoll", 0, ppoll(filled(i, p, sizeof p), 2, &ts, 0));
			/* No time is without end. */
			int time = (ready && other >= 0) || i != 1;
			if (ready) feed();
			if (time) TRY("ppoll time", 0, syscall(SYS_ppoll, p, 2, filled(i, &ts, sizeof ts), 0, 8));
			if (ready) feed();
			TRY("ppoll mask", 0, syscall(SYS_ppoll, p, 2, &ts, filled(i, &empty, 8), 8));
			if (ready) feed();
			TRY("ppoll size", 0, syscall(SYS_ppoll, p, 2, &ts, &empty, 4));
			for (int which = 0; which < 3; which++) {
				void *s = filled(i, &r, bits / 8);
				if (ready) feed();
				TRY("select", 0, select(bits, which == 0 ? s : 0, which == 1 ? s : 0, which == 2 ? s : 0, &tv));
				FD_ZERO(&r);
				if (strcmp(kind, "none")) FD_SET(fd, &r);
				fd_set q = r;
				s = filled(i, &r, bits / 8);
				if (ready) feed();
				TRY("pselect", 0, pselect(bits, which == 0 ? s : &q, which == 1 ? s : 0, which == 2 ? s : 0, &ts, 0));
			}
			fd_set q = r;
			if (ready) feed();
			TRY("select by number", 0, syscall(SYS_select, bits, filled(i, &r, bits / 8), 0, 0, &tv));
			q = r;
			if (ready) feed();
			if (time) TRY("select time", 0, syscall(SYS_select, bits, &q, 0, 0, filled(i, &tv, sizeof tv)));
			q = r;
			if (ready) feed();
			if (time) TRY("pselect time", 0, syscall(SYS_pselect6, bits, &q, 0, 0, filled(i, &ts, sizeof ts), 0));
			q = r;
			if (ready) feed();
			TRY("pselect mask", 0, syscall(SYS_pselect6, bits, &q, 0, 0, &ts, filled(i, &mask, sizeof mask)));
			q = r;
			mask.set = bad(i, 8);
			if (ready) feed();
			TRY("pselect set", 0, syscall(SYS_pselect6, bits, &q, 0, 0, &ts, &mask));
			TRY("epoll_ctl add", 0, epoll_ctl(set, EPOLL_CTL_ADD, fd, filled(i, &ev, sizeof ev)));
			epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev);
			TRY("epoll_ctl mod", 0, epoll_ctl(set, EPOLL_CTL_MOD, fd, filled(i, &ev, sizeof ev)));
			if (ready) feed();
			TRY("epoll_wait", 0, epoll_wait(set, bad(i, sizeof ev), 1, 0));
			if (ready) feed();
			TRY("epoll_pwait mask", 0, syscall(SYS_epoll_pwait, set, out, 1, 0, filled(i, &empty, 8), 8));
			if (ready) feed();
			if (time) TRY("epoll_pwait2 time", 0, syscall(SYS_epoll_pwait2, set, out, 1, filled(i, &ts, sizeof ts), 0, 8));
			TRY("epoll_ctl del", 0, epoll_ctl(set, EPOLL_CTL_DEL, fd, bad(i, sizeof ev)));
		}
	}
	/* More than the limit; negative numbers. */
	int i = 0;
	struct pollfd p = { fd, POLLIN, 0 };
	struct timeval odd = { 0, -1 };
	struct timespec wrong = { 0, 1000000000 };
	TRY("poll many", 0, poll(&p, 1 << 30, 0));
	TRY("select negative", 0, select(-1, 0, 0, 0, 0));
	TRY("select odd time", 0, syscall(SYS_select, 1, 0, 0, 0, &odd));
	TRY("ppoll wrong time", 0, syscall(SYS_ppoll, &p, 1, &wrong, 0, 8));
	TRY("epoll_wait none", 0, epoll_wait(set, out, 0, 0));
	TRY("epoll_wait negative", 0, epoll_wait(set, out, -1, 0));
	TRY("epoll_wait many", 0, epoll_wait(set, out, INT_MAX, 0));
	TRY("epoll_wait no set", 0, epoll_wait(fd, out, 1, 0));
	close(set);
}

/* --- lengths and numbers of elements */

static void lengths(void)
{
	static char b[64];
	static struct iovec v[1025];
	static const size_t sizes[] = { 0, 1, 0x7fffefff, 0x7ffff000, 0x7ffff001, 0x80000000, 0xffffffff, 0x100000000, SSIZE_MAX, (size_t)SSIZE_MAX + 1, SIZE_MAX };
	for (int k = 0; k < 1025; k++) v[k] = (struct iovec){ b + k % 64, 1 };
	for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++) {
		size_t n = sizes[i];
		feed(); TRY("read of", 0, read(fd, edge - 64, n));
		feed(); TRY("recv of", 0, recv(fd, edge - 64, n, 0));
		struct iovec one = { edge - 64, n }, two[2] = { { b, 8 }, { edge - 64, n } }, three[3] = { { b, 8 }, { edge - 64, n }, { edge - 64, n } };
		feed(); TRY("readv of", 0, readv(fd, &one, 1));
		feed(); TRY("readv two of", 0, readv(fd, two, 2));
		feed(); TRY("readv three of", 0, readv(fd, three, 3));
		struct msghdr h = { .msg_iov = two, .msg_iovlen = 2 };
		feed(); TRY("recvmsg of", 0, recvmsg(fd, &h, 0));
		if (!tcp()) continue;
		/* All of it can be read, and what is sent fails at the edge. */
		TRY("write of", n == 1, n < 2 ? write(fd, edge - 64, n) : 0);
		TRY("send of", n == 1, n < 2 ? send(fd, edge - 64, n, 0) : 0);
		TRY("write beyond", 0, n > SSIZE_MAX ? write(fd, edge - 64, n) : 0);
		two[0].iov_len = 0;
		TRY("writev beyond", 0, n > SSIZE_MAX ? writev(fd, two, 2) : 0);
	}
	static const long counts[] = { -1, 0, 1, 64, 1023, 1024, 1025, INT_MAX, INT_MIN };
	for (int i = 0; i < (int)(sizeof counts / sizeof *counts); i++) {
		long n = counts[i];
		feed(); TRY("readv count", 0, readv(fd, v, n));
		if (n <= 1024) TRY("writev count", n > 0 && tcp() ? n : 0, tcp() ? writev(fd, v, n) : 0);
		struct msghdr h = { .msg_iov = v, .msg_iovlen = n };
		feed(); TRY("recvmsg count", 0, recvmsg(fd, &h, 0));
		if (n <= 1024) TRY("sendmsg count", n > 0 && tcp() ? n : 0, tcp() ? sendmsg(fd, &h, 0) : 0);
	}
	static const int name[] = { -1, INT_MIN, 0, 1, 128, 129, INT_MAX };
	for (int i = 0; i < 7; i++) {
		struct iovec one = { b, 16 };
		char a[256];
		socklen_t l = name[i];
		struct msghdr h = { .msg_iov = &one, .msg_iovlen = 1, .msg_name = a, .msg_namelen = name[i] };
		feed(); TRY("recvmsg name of", 0, recvmsg(fd, &h, 0));
		feed(); TRY("recvfrom name of", 0, recvfrom(fd, b, 16, 0, (void *)a, &l));
		if (tcp()) TRY("sendto name of", name[i] >= 0 && name[i] < 129 ? 16 : 0, sendto(fd, b, 16, 0, (void *)a, name[i]));
	}
	static const int rw[] = { 1, 2, 4, 8, 16, 32, 64, 128, 256, 1 << 30 };
	for (int i = 0; i < 10; i++) {
		struct iovec one = { b, 16 };
		feed(); TRY("preadv2 flag", 0, preadv2(fd, &one, 1, -1, rw[i]));
		feed(); TRY("preadv2 at", 0, preadv2(fd, &one, 1, i, rw[i]));
		if (tcp()) TRY("pwritev2 flag", -1, pwritev2(fd, &one, 1, -1, rw[i]));
	}
}

/* --- options */

/* Those whose value depends on more than what was set. */
static int varies(int level, int name)
{
	static const int sock[] = { SO_PEERSEC, SO_COOKIE, SO_INCOMING_CPU, SO_INCOMING_NAPI_ID, SO_MEMINFO, 71 /* SO_NETNS_COOKIE */, 77 /* SO_PEERPIDFD */, SO_PEERCRED, SO_PEERGROUPS, SO_PEERNAME };
	static const int own[] = { TCP_INFO, TCP_CC_INFO, TCP_SAVED_SYN, TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_REPAIR_OPTIONS, TCP_QUEUE_SEQ, TCP_REPAIR_WINDOW, TCP_ULP, TCP_FASTOPEN_KEY, TCP_QUICKACK, TCP_ZEROCOPY_RECEIVE, TCP_WINDOW_CLAMP, TCP_TIMESTAMP };
	if (level == SOL_SOCKET) { for (unsigned i = 0; i < sizeof sock / sizeof *sock; i++) if (sock[i] == name) return 1; }
	else for (unsigned i = 0; i < sizeof own / sizeof *own; i++) if (own[i] == name) return 1;
	return 0;
}

static void get(int level, int name)
{
	unsigned char v[32];
	int length = 16;
	memset(v, 0x55, sizeof v);
	errno = 0;
	int r = getsockopt(fd, level, name, v, (void *)&length);
	printf(" get %d %s", r, r < 0 ? strerrorname_np(errno) : "-");
	if (r == 0 && !varies(level, name)) {
		printf(" %d:", length);
		for (int k = 0; k < length && k < 16; k++) printf("%02x", v[k]);
	}
}

/* --- programs and new descriptors */

/* `r` of a call that makes descriptor `r`. */
static long closed(long r) { return r < 0 ? r : close(r); }

static void programs(void)
{
	/* It may be executed, and is no program: whatever is passed to it is read before that is found out. */
	char path[64];
	int made = memfd_create("no-program", MFD_CLOEXEC);
	if (write(made, pattern, 16) != 16) die("file");
	sprintf(path, "/proc/self/fd/%d", made);
	/* One that is open for writing is not executed. */
	int file = open(path, O_RDONLY | O_CLOEXEC);
	close(made);
	sprintf(path, "/proc/self/fd/%d", file);
	for (int i = 0; i < POINTERS; i++) {
		char *args[] = { "name", 0 }, *env[] = { "A=b", 0 }, *odd[] = { "A=b", filled(i, "C=d", 4), 0 };
		size_t size = strlen(path) + 1;
		TRY("execve path", 0, execve(filled(i, path, size), args, env));
		TRY("execve arguments", 0, execve(path, filled(i, args, sizeof args), env));
		TRY("execve argument", 0, execve(path, odd, env));
		TRY("execve environment", 0, execve(path, args, filled(i, env, sizeof env)));
		TRY("execve variable", 0, execve(path, args, odd));
		TRY("execv path", 0, execv(filled(i, path, size), args));
		TRY("execv arguments", 0, execv(path, filled(i, args, sizeof args)));
		TRY("fexecve environment", 0, fexecve(file, args, filled(i, env, sizeof env)));
		TRY("execveat path", 0, execveat(AT_FDCWD, filled(i, path, size), args, env, 0));
		TRY("execveat environment", 0, execveat(file, "", args, filled(i, env, sizeof env), AT_EMPTY_PATH));
		TRY("posix_spawn path", 0, posix_spawn(0, filled(i, path, size), 0, 0, args, env));
		TRY("posix_spawn environment", 0, posix_spawn(0, path, 0, 0, args, filled(i, env, sizeof env)));
		TRY("posix_spawn variable", 0, posix_spawn(0, path, 0, 0, args, odd));
		pid_t p = vfork();
		if (p == 0) {
			execve(path, args, filled(i, env, sizeof env));
			_exit(errno);
		}
		int status = 0;
		waitpid(p, &status, 0);
		TRY("execve environment in a child of vfork", 0, WEXITSTATUS(status));
		int *two = bad(i, 8);
		TRY("pipe", 0, pipe(two));
		if (i == 0) close(two[0]), close(two[1]);
		two = bad(i, 8);
		TRY("socketpair", 0, socketpair(AF_UNIX, SOCK_STREAM, 0, two));
		if (i == 0) close(two[0]), close(two[1]);
		TRY("socketpair of another kind", 0, socketpair(AF_INET, SOCK_STREAM, 0, bad(i, 8)));
		TRY("signalfd", 0, closed(signalfd(-1, bad(i, 8), 0)));
		TRY("open", 0, closed(open(filled(i, path, size), O_RDONLY)));
		TRY("openat", 0, closed(openat(AT_FDCWD, filled(i, path, size), O_RDONLY)));
	}
}

static void options(void)
{
	static const long long values[] = { INT_MIN, -1, 0, 1, 2, 100, 65536, INT_MAX };
	static const int level[] = { SOL_SOCKET, IPPROTO_TCP, IPPROTO_IP, 77 };
	for (int l = 0; l < 4; l++) {
		for (int name = 0; name < (l == 0 ? 96 : l == 1 ? 56 : 40); name++) {
			if (level[l] == IPPROTO_TCP && (name == TCP_REPAIR || name == TCP_ULP)) continue;
			for (int i = 0; i < 8; i++) {
				/* Rates of next to nothing, and delays: a test is not to wait for them. */
				if (level[l] == SOL_SOCKET && name == SO_MAX_PACING_RATE && i != 1 && i != 7) continue;
				if (level[l] == IPPROTO_TCP && name == 37 && (i < 2 || i > 5)) continue;
				/* Nor for packets that go elsewhere: one is enough. */
				if (level[l] == SOL_SOCKET && name == 62 /* SO_BINDTOIFINDEX */ && i > 4) continue;
				if (level[l] == IPPROTO_IP && name == 21 /* IP_MINTTL */ && i > 5) continue;
				/* The end of a connection is not tried here. */
				long long v[2] = { values[i] & 0xffffffff, 0 };
				char text[64];
				/* A low-water mark or a timeout of the last value is not the next one's. */
				sprintf(text, "option %d %d value", level[l], name);
				errno = 0;
				result(text, i, setsockopt(fd, level[l], name, v, i % 2 ? 4 : 16));
				get(level[l], name);
				if (tcp()) {
					char b[16];
					long sent = send(fd, pattern, 16, MSG_NOSIGNAL);
					struct pollfd p = { other, POLLIN, 0 };
					poll(&p, 1, 2000);
					printf(" sent %ld %ld", sent, (long)recv(other, b, 16, 0));
					sent = send(other, pattern, 16, MSG_NOSIGNAL);
					p = (struct pollfd){ fd, POLLIN, 0 };
					if (level[l] != SOL_SOCKET || (name != SO_RCVLOWAT && name != SO_PEEK_OFF)) poll(&p, 1, 2000);
					printf(" got %ld", (long)recv(fd, b, 16, 0));
				}
				printf("\n");
			}
			/* Lengths. */
			static const int lengths[] = { -1, 0, 1, 3, 4, 7, 8, 15, 16, 17, INT_MAX };
			for (int i = 0; i < 11; i++) {
				static char v[4096];
				socklen_t n = lengths[i];
				memset(v, 0, 64), v[0] = 1;
				char text[64];
				sprintf(text, "option %d %d length", level[l], name);
				if (level[l] == SOL_SOCKET && name == SO_MAX_PACING_RATE) memset(v, 0xff, 8);
				errno = 0;
				result(text, i, lengths[i] > 17 ? 0 : setsockopt(fd, level[l], name, v, n));
				errno = 0;
				long r = getsockopt(fd, level[l], name, v, &n);
				printf(" get %ld %s", r, r < 0 ? strerrorname_np(errno) : "-");
				if (!varies(level[l], name)) printf(" %d", n);
				printf("\n");
				fflush(stdout);
			}
			if (tcp()) unmake(), make();
		}
	}
}

/* --- TCP_INQ: a control message with each receive */

#ifndef TCP_INQ
#define TCP_INQ 36
#endif

static unsigned char room[256];

static void inq_receive(const char *name, int i, void *control, size_t size, int flags, size_t want)
{
	static char b[128];
	struct iovec v = { b, want };
	char a[32];
	struct mmsghdr m = { .msg_hdr = { .msg_iov = &v, .msg_iovlen = 1, .msg_name = a, .msg_namelen = sizeof a, .msg_control = control, .msg_controllen = size, .msg_flags = 77 } };
	memset(room, 0x55, sizeof room);
	errno = 0;
	result(name, i, recvmsg(fd, &m.msg_hdr, flags));
	printf(" flags %x used %zu name %u:", m.msg_hdr.msg_flags, m.msg_hdr.msg_controllen, m.msg_hdr.msg_namelen);
	if (control == room) for (int k = 0; k < 28; k++) printf("%02x", room[k]);
}

static void inq_all(const char *name, int flags)
{
	static const size_t rooms[] = { 0, 1, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 64, 256 };
	for (int i = 0; i < 14; i++) { feed(); inq_receive(name, i, room, rooms[i], flags, 40); after(0); }
}

static void inq(void)
{
	static const int with[] = { 0, MSG_PEEK, MSG_TRUNC, MSG_WAITALL, MSG_DONTWAIT, MSG_CMSG_CLOEXEC, MSG_PEEK | MSG_TRUNC, MSG_NOSIGNAL, MSG_CTRUNC };
	int on = 1, off = 0;
	for (unsigned i = 0; i < sizeof with / sizeof *with; i++) {
		inq_all("not set", with[i]);
		setsockopt(fd, IPPROTO_TCP, TCP_INQ, &on, sizeof on);
		inq_all("set", with[i]);
		inq_receive("nothing", i, room, 64, with[i], 40), after(0);
		setsockopt(fd, IPPROTO_TCP, TCP_INQ, &off, sizeof off);
		inq_all("no longer set", with[i]);
	}
	setsockopt(fd, IPPROTO_TCP, TCP_INQ, &on, sizeof on);
	static const size_t want[] = { 0, 1, 10, 63, 64, 65, 100 };
	for (int i = 0; i < 7; i++) {
		feed(); inq_receive("of 64", i, room, 64, 0, want[i]); after(0);
		feed(), feed(); inq_receive("of 128", i, room, 64, MSG_PEEK, want[i]); inq_receive("then", i, room, 64, 0, want[i]); after(0);
		feed(); inq_receive("all of 64", i, room, 64, MSG_WAITALL, want[i]); after(0);
		feed(); inq_receive("trunc", i, room, 64, MSG_TRUNC, want[i]); after(0);
	}
	/* Refused values, and lengths, leave it as it is. */
	static const int values[] = { -1, 2, INT_MAX, INT_MIN };
	for (int i = 0; i < 4; i++) {
		errno = 0;
		result("value", i, setsockopt(fd, IPPROTO_TCP, TCP_INQ, &values[i], 4)), get(IPPROTO_TCP, TCP_INQ);
		result("length", i, setsockopt(fd, IPPROTO_TCP, TCP_INQ, &off, i)), get(IPPROTO_TCP, TCP_INQ);
		feed(); inq_receive("still", i, room, 64, 0, 40); after(0);
	}
	for (int i = 0; i < POINTERS; i++) {
		feed(); inq_receive("pointer", i, bad(i, 64), 64, 0, 40); after(0);
		feed(); inq_receive("pointer", i, bad(i, 20), 20, 0, 40); after(0);
		feed(); inq_receive("pointer", i, bad(i, 24), 1 << 30, 0, 40); after(0);
	}
	/* Each message of several; through another number; by number of the call. */
	for (int k = 0; k < 3; k++) {
		char b[64], c[3][32];
		int use = k == 1 ? dup(fd) : fd;
		struct iovec v[3] = { { b, 20 }, { b + 20, 20 }, { b + 40, 20 } };
		struct mmsghdr m[3] = { 0 };
		for (int i = 0; i < 3; i++) m[i].msg_hdr = (struct msghdr){ .msg_iov = &v[i], .msg_iovlen = 1, .msg_control = c[i], .msg_controllen = i == 1 ? 18 : 32 };
		memset(c, 0x55, sizeof c);
		feed();
		errno = 0;
		result("several", k, k == 2 ? syscall(SYS_recvmmsg, use, m, 3, MSG_DONTWAIT, 0) : recvmmsg(use, m, 3, MSG_DONTWAIT, 0));
		for (int i = 0; i < 3; i++) {
			printf(" %u %x %zu:", m[i].msg_len, m[i].msg_hdr.msg_flags, m[i].msg_hdr.msg_controllen);
			for (int j = 0; j < 24; j++) printf("%02x", (unsigned char)c[i][j]);
		}
		after(0);
		if (k == 1) close(use);
	}
	/* Ends: how much is left, and that the end has come, counts as one. */
	for (int how = 0; how < 6; how++) {
		for (int data = 0; data < 3; data++) {
			unmake(), make();
			setsockopt(fd, IPPROTO_TCP, TCP_INQ, &on, sizeof on);
			for (int i = 0; i < data; i++) feed();
			if (how == 0 || how == 4) shutdown(other, SHUT_WR);
			if (how == 1) shutdown(other, SHUT_RDWR);
			if (how == 2) shutdown(fd, SHUT_RD);
			if (how == 3) close(other), other = -1;
			if (how == 4) shutdown(fd, SHUT_RDWR);
			if (how == 5) {
				struct linger now = { 1, 0 };
				setsockopt(other, SOL_SOCKET, SO_LINGER, &now, sizeof now), close(other), other = -1;
			}
			char name[32];
			sprintf(name, "end %d data %d", how, data);
			struct pollfd p = { fd, POLLRDHUP, 0 };
			poll(&p, 1, 2000);
			/* What was sent just before a reset may be there or not. */
			for (int i = 0; i < 5 && (how != 5 || data == 0); i++) { inq_receive(name, i, room, 64, i == 0 ? MSG_PEEK : 0, i == 0 ? 5 : 40); printf("\n"); }
		}
	}
	/* A connection has it of its listener. */
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t l = sizeof a;
	int s = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(s, IPPROTO_TCP, TCP_INQ, &on, sizeof on);
	pin(s);
	unmake();
	if (bind(s, (void *)&a, l) || listen(s, 1) || getsockname(s, (void *)&a, &l)) die("listen");
	other = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(other, (void *)&a, l) || (fd = accept(s, 0, 0)) < 0) die("connect");
	close(s);
	for (int i = 0; i < 40; i++) {
		get(IPPROTO_TCP, TCP_INQ);
		feed(); inq_receive("of the listener", i, room, 64, 0, 40); printf("\n");
		inq_receive("of the listener", i, room, 64, 0, 40); printf("\n");
		char b[4];
		if (send(fd, "pong", 4, 0) != 4 || recv(other, b, 4, 0) != 4) die("pong");
	}
}

/* --- an error behind messages that were received: recvmmsg keeps it for the next call */

static void kept_next(int next)
{
	char b[100] = { 0 };
	struct iovec v = { b, 16 };
	struct mmsghdr m = { .msg_hdr = { .msg_iov = &v, .msg_iovlen = 1 } };
	struct pollfd p = { fd, POLLIN | POLLOUT, 0 };
	struct epoll_event ev = { EPOLLIN, { .u64 = 1 } };
	int e = -1, file, set;
	socklen_t l = sizeof e;
	errno = 0;
	switch (next) {
	case 0: result("recv", next, recv(fd, b, 16, 0)); break;
	case 1: feed(); result("recv data", next, recv(fd, b, 16, 0)); break;
	case 2: result("peek", next, recv(fd, b, 16, MSG_PEEK)); break;
	case 3: result("recv none", next, recv(fd, b, 0, 0)); break;
	case 4: feed(); result("recvmmsg", next, recvmmsg(fd, &m, 1, 0, 0)); break;
	case 5: result("send", next, send(fd, pattern, 16, MSG_NOSIGNAL)); break;
	case 6: result("send none", next, send(fd, pattern, 0, MSG_NOSIGNAL)); break;
	case 7: result("writev", next, writev(fd, &v, 1)); break;
	case 8: file = memfd_create("file", 0), write(file, pattern, 64); off_t at = 0; errno = 0; result("sendfile", next, sendfile(fd, file, &at, 16)); close(file); break;
	case 9: result("poll", next, poll(&p, 1, 0)); printf(" %x", p.revents); break;
	case 10: set = epoll_create1(0), epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev); result("epoll", next, epoll_wait(set, &ev, 1, 0)); printf(" %x", ev.events); close(set); break;
	case 11: result("error", next, getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &l)); printf(" %s", e ? strerrorname_np(e) : "0"); break;
	case 12: shutdown(other, SHUT_WR); p.events = POLLRDHUP; poll(&p, 1, 2000); errno = 0; result("recv at the end", next, recv(fd, b, 16, 0)); break;
	case 13: shutdown(fd, SHUT_RD); errno = 0; result("recv shut", next, recv(fd, b, 16, 0)); break;
	case 14: feed(); result("recv all", next, recv(fd, b, 100, MSG_WAITALL)); break;
	case 15: fcntl(fd, F_SETFL, 0); result("blocking recv", next, recv(fd, b, 16, 0)); break;
	default: result("recvmsg", next, recvmsg(fd, &m.msg_hdr, 0)); break;
	}
	/* It is told once. */
	errno = 0;
	result(" then", next, recv(fd, b, 100, MSG_DONTWAIT));
	errno = 0;
	result(" then", next, recv(fd, b, 100, MSG_DONTWAIT));
	errno = 0;
	result(" then", next, send(fd, pattern, 16, MSG_NOSIGNAL));
	errno = 0;
	result(" then", next, send(fd, pattern, 16, MSG_NOSIGNAL));
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &l);
	printf(" error %d", e);
}

static void kept(void)
{
	for (int how = 0; how < 9; how++) {
		for (int next = 0; next < 17; next++) {
			/* It would wait for ever: that there is nothing is no error to keep. */
			if (how == 5 && next == 15) continue;
			char b[64];
			struct iovec v[2] = { { b, 20 }, { b + 20, 20 } };
			struct mmsghdr m[3] = { { .msg_hdr = { .msg_iov = v, .msg_iovlen = 1 } }, { .msg_hdr = { .msg_iov = v + 1, .msg_iovlen = 1 } } };
			struct mmsghdr *at = m;
			char name[40];
			unmake(), make();
			fcntl(fd, F_SETFL, O_NONBLOCK);
			feed();
			switch (how) {
			case 0: v[1].iov_base = none; break;
			case 1: m[1].msg_hdr.msg_iovlen = 1025; break;
			case 2: m[1].msg_hdr.msg_name = b, m[1].msg_hdr.msg_namelen = -1; break;
			case 3: m[1].msg_hdr.msg_iov = (void *)none; break;
			case 4: at = (void *)(edge - sizeof *m), memcpy(at, m, sizeof *m); break;
			/* Only the first message is there. */
			case 5: v[0].iov_len = 64; break;
			case 6: v[1].iov_base = (void *)0xffff888000000000; break;
			case 7: v[1].iov_len = (size_t)SSIZE_MAX + 1; break;
			default: m[1].msg_hdr.msg_name = (void *)none, m[1].msg_hdr.msg_namelen = 16; break;
			}
			errno = 0;
			sprintf(name, "kept %d", how);
			result(name, next, recvmmsg(fd, at, 2, 0, 0));
			/* What is left of the data would hide the error. */
			char rest[64];
			if (next % 2 == 0) printf(" rest %zd", recv(fd, rest, 64, how == 5 ? MSG_PEEK : 0));
			kept_next(next);
			printf("\n");
		}
	}
}

/* --- commands and requests of calls that are not about bytes, and numbers of messages */

static void commands(void)
{
	static const long values[] = { 0, 1, -1, 2, O_NONBLOCK, O_ASYNC, O_APPEND, O_RDWR, INT_MAX, INT_MIN, 0xffffffff };
	char name[64], b[64];
	int i = 0;
	for (int cmd = -1; cmd < 17; cmd++) {
		/* Those that make a descriptor, and those that take a pointer, come below. */
		if (cmd == F_DUPFD || cmd == F_GETLK || cmd == F_SETLK || cmd == F_SETLKW || cmd == 12 || cmd == 13 || cmd == 14) continue;
		for (i = 0; i < 11; i++) {
			/* A signal would end the test. */
			if (cmd == F_SETSIG || cmd == F_SETOWN || (cmd == F_SETFL && values[i] & O_ASYNC)) continue;
			sprintf(name, "fcntl %d", cmd);
			feed(); TRY(name, 0, fcntl(fd, cmd, values[i]));
		}
	}
	fcntl(fd, F_SETFL, O_NONBLOCK);
	/* Not F_SETPIPE_SZ: to it an address is a size, which is too large or not permitted as the kernel has laid out the memory. */
	static const int pointed[] = { F_GETLK, F_SETLK, F_GETOWN_EX, F_SETOWN_EX, F_GET_SEALS, F_ADD_SEALS, F_GETPIPE_SZ, F_GETLEASE, F_NOTIFY, F_OFD_GETLK };
	for (int k = 0; k < 11; k++)
		for (i = 1; i < POINTERS; i++) { sprintf(name, "fcntl pointer %d", pointed[k]); TRY(name, 0, fcntl(fd, pointed[k], bad(i, 32))); }
	static const unsigned long requests[] = { FIONREAD, TIOCOUTQ, 0x894b, SIOCATMARK, FIONBIO, FIOASYNC, FIOCLEX, FIONCLEX, 0x5460 /* FIOQSIZE */, 0x8903 /* FIOGETOWN */, 0x8904 /* SIOCGPGRP */, 0x8906 /* SIOCGSTAMP */, 0x8912 /* SIOCGIFCONF */, 0x5401 /* TCGETS */, 0x541f, 0, ~0ul };
	for (int k = 0; k < 17; k++)
		for (i = 0; i < POINTERS; i++) {
			int zero[16] = { 0 };
			if (requests[k] == FIOASYNC && i == 3) continue;
			sprintf(name, "ioctl %lx", requests[k]);
			feed(); TRY(name, 0, ioctl(fd, requests[k], filled(i, zero, sizeof zero)));
			fcntl(fd, F_SETFL, O_NONBLOCK);
		}
	static const int numbers[] = { -1, INT_MIN, INT_MAX, 1 << 20 };
	for (i = 0; i < 4; i++) {
		TRY("dup2 to", 0, dup2(fd, numbers[i]));
		TRY("dup2 of", 0, dup2(numbers[i], fd));
		TRY("dup3 to", 0, dup3(fd, numbers[i], O_CLOEXEC));
		TRY("dup of", 0, dup(numbers[i]));
		TRY("dupfd from", 0, i == 2 || i == 3 || i < 2 ? fcntl(fd, F_DUPFD, numbers[i]) : 0);
		TRY("close", 0, close(numbers[i]));
	}
	TRY("dup2 itself", 0, dup2(fd, fd) == fd ? 0 : -1);
	TRY("dup3 itself", 0, dup3(fd, fd, 0));
	for (i = 0; i < 32; i++) if (1u << i != O_CLOEXEC) TRY("dup3 flag", 0, dup3(fd, 450, 1u << i));
	/* Offsets and the like, which a socket has not. */
	feed();
	TRY("pread", 0, pread(fd, b, 16, 0));
	TRY("pwrite", 0, pwrite(fd, b, 16, 0));
	TRY("lseek", 0, lseek(fd, 0, SEEK_CUR));
	TRY("fsync", 0, fsync(fd));
	TRY("ftruncate", 0, ftruncate(fd, 1));
	struct iovec v[3] = { { b, 16 }, { b + 16, 16 }, { b + 32, 16 } };
	TRY("preadv", 0, preadv(fd, v, 1, 0));
	TRY("pwritev", 0, pwritev(fd, v, 1, 0));
	if (tcp() || !strcmp(kind, "udp")) {
		struct mmsghdr m[3] = { 0 };
		for (int k = 0; k < 3; k++) m[k].msg_hdr.msg_iov = v + k, m[k].msg_hdr.msg_iovlen = 1;
		static const unsigned counts[] = { 0, 1, 2, 3 };
		for (i = 0; i < 4; i++) {
			feed(); TRY("recvmmsg count", 0, recvmmsg(fd, m, counts[i], 0, 0));
			if (tcp()) TRY("sendmmsg count", 16 * counts[i], sendmmsg(fd, m, counts[i], MSG_NOSIGNAL));
		}
		/* Messages that are none, and flags that come before them. */
		static const int early[] = { 0, INT_MIN /* MSG_CMSG_COMPAT */, INT_MIN | MSG_DONTWAIT, MSG_WAITFORONE };
		for (i = 0; i < 16; i++) {
			int flags = early[i / 4] | MSG_NOSIGNAL;
			unsigned n = i % 4 < 2 ? 0 : 1025 * (i % 4 - 2) + 1;
			struct mmsghdr *at = i % 2 ? 0 : n > 1 ? 0 : m;
			struct timespec t = { 0, 0 };
			TRY("sendmmsg early", tcp() && n == 1 && at ? 16 : 0, tcp() || !n || !at ? sendmmsg(fd, at, n, flags) : 0);
			feed(); TRY("recvmmsg early", 0, recvmmsg(fd, at, n, flags, 0));
			feed(); TRY("recvmmsg early within", 0, recvmmsg(fd, at, n, flags, &t));
		}
		static const struct timespec times[] = { { 0, 0 }, { 0, 1 }, { -1, 0 }, { 0, -1 }, { 0, 1000000000 }, { 0, 999999999 }, { (time_t)1 << 62, 0 }, { INT64_MIN, 0 } };
		for (i = 0; i < 8; i++) {
			struct timespec t = times[i];
			feed(); TRY("recvmmsg within", 0, recvmmsg(fd, m, 1, 0, &t));
			if (times[i].tv_sec < 0 || times[i].tv_nsec < 0 || times[i].tv_nsec > 999999999) printf("left %ld %ld\n", (long)t.tv_sec, t.tv_nsec);
		}
		for (i = -1; i < 32; i++) {
			int flags = i < 0 ? 0 : 1u << i;
			/* The last message would be waited for. */
			if (flags == MSG_WAITALL || flags == MSG_OOB || flags == MSG_ERRQUEUE) continue;
			feed(); TRY("recvmmsg flag", 0, recvmmsg(fd, m, 3, flags, 0));
			printf("%u %u %u\n", m[0].msg_len, m[1].msg_len, m[2].msg_len);
		}
	}
	if (!tcp()) return;
	/* Addresses of a connection. */
	for (int size = 0; size < 20; size += 3) {
		socklen_t l = size;
		char a[32];
		i = size;
		memset(a, 0x55, sizeof a);
		TRY("getpeername into", 0, getpeername(fd, (void *)a, &l) || 0);
		printf("%u %x\n", l, size < 8 ? sum(a, size < 2 ? size : 2) : 0);
	}
	struct sockaddr_in self = { .sin_family = AF_INET }, peer;
	socklen_t l = sizeof peer;
	getpeername(fd, (void *)&peer, &l);
	i = 0;
	TRY("connect again", 0, connect(fd, (void *)&peer, l));
	TRY("bind again", 0, bind(fd, (void *)&self, sizeof self));
	TRY("listen", 0, listen(fd, 1));
	TRY("accept", 0, accept4(fd, 0, 0, 0));
	for (i = 0; i < 32; i++) TRY("accept4 flag", 0, accept4(fd, 0, 0, 1u << i));
	/* What splice and sendfile make of odd arguments. */
	int p[2], file = memfd_create("file", 0);
	if (pipe2(p, O_NONBLOCK) || write(file, pattern, 64) != 64 || write(p[1], pattern, 64) != 64) die("pipe");
	for (i = 0; i < 8; i++) {
		static const size_t sizes[] = { 0, 1, 63, 64, 65, INT_MAX, SSIZE_MAX, SIZE_MAX };
		off_t at = 0;
		size_t n = sizes[i];
		TRY("sendfile size", n > 64 ? 64 : n, sendfile(fd, file, &at, n));
		at = -1;
		TRY("sendfile before", 0, sendfile(fd, file, &at, n));
		at = 1000;
		TRY("sendfile behind", 0, sendfile(fd, file, &at, n));
		at = 0;
		TRY("sendfile of itself", 0, sendfile(fd, fd, 0, n));
		TRY("sendfile of none", 0, sendfile(fd, -1, &at, n));
		TRY("sendfile of a pipe", 0, sendfile(fd, p[0], &at, n));
		TRY("sendfile to a file", 0, sendfile(file, fd, 0, n));
	}
	unmake(), make();
	/* The end comes last: how each value of it leaves the connection. */
	for (i = -1; i < 5; i++) {
		for (int data = 0; data < 2; data++) {
			unmake(), make();
			if (data) feed();
			result("shutdown", i, shutdown(fd, i));
			result(" again", i, shutdown(fd, i));
			result(" send", i, send(fd, pattern, 16, MSG_NOSIGNAL));
			for (int k = 0; k < 3; k++) result(" recv", i, recv(fd, b, 40, MSG_DONTWAIT));
			result(" other", i, recv(other, b, 40, MSG_DONTWAIT | MSG_PEEK));
			printf("\n");
		}
	}
	close(p[0]), close(p[1]), close(file);
}

/* Every bit of what a wait can ask for, in each state of a connection; operations of epoll_ctl. */
static void events(void)
{
	for (int state = 0; state < 6; state++) {
		unmake(), make();
		if (state == 1 || state == 3) feed();
		if (state == 2 || state == 3) shutdown(other, SHUT_WR);
		if (state == 4) shutdown(fd, SHUT_WR);
		if (state == 5) { struct linger now = { 1, 0 }; setsockopt(other, SOL_SOCKET, SO_LINGER, &now, sizeof now), close(other), other = -1; }
		struct pollfd p = { fd, state >= 2 && state != 4 ? POLLRDHUP : 0, 0 };
		if (p.events) poll(&p, 1, 2000);
		for (int bit = -1; bit < 16; bit++) {
			p = (struct pollfd){ fd, bit < 0 ? 0 : 1 << bit, 0x5555 };
			int r = poll(&p, 1, 0);
			printf("state %d poll %x: %d %x\n", state, p.events & 0xffff, r, p.revents & 0xffff);
		}
		int set = epoll_create1(0);
		for (int bit = -1; bit < 32; bit++) {
			/* One that lets the machine sleep asks for a right. */
			if (bit == 29) continue;
			struct epoll_event ev = { bit < 0 ? 0 : 1u << bit, { .u64 = 7 } }, out = { 0 };
			for (int op = -1; op < 5; op++) {
				errno = 0;
				int r = epoll_ctl(set, op, fd, &ev), e = errno;
				printf("state %d bit %d op %d: %d %s", state, bit, op, r, r < 0 ? strerrorname_np(e) : "-");
				r = epoll_wait(set, &out, 1, 0);
				printf(" wait %d %x;", r, r > 0 ? out.events : 0);
			}
			ev.events |= EPOLLIN | EPOLLOUT | EPOLLRDHUP;
			errno = 0;
			int r = epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev);
			printf(" with others %d %s", r, r < 0 ? strerrorname_np(errno) : "-");
			for (int i = 0; i < 2; i++) { r = epoll_wait(set, &out, 1, 0); printf(" %d %x", r, r > 0 ? out.events : 0); }
			epoll_ctl(set, EPOLL_CTL_DEL, fd, 0);
			printf("\n");
		}
		fd_set in, of, ex;
		FD_ZERO(&in);
		FD_ZERO(&of);
		FD_ZERO(&ex);
		FD_SET(fd, &in), FD_SET(fd, &of), FD_SET(fd, &ex);
		struct timeval now = { 0, 0 };
		int r = select(fd + 1, &in, &of, &ex, &now);
		printf("state %d select %d %d %d %d\n", state, r, !!FD_ISSET(fd, &in), !!FD_ISSET(fd, &of), !!FD_ISSET(fd, &ex));
		close(set);
	}
}

static void handled(int signal) { (void)signal; }

/* A signal that comes while a call waits, and what the next call says. Once a message was received the call is over. */
static void interrupted(void)
{
	for (int mode = 0; mode < 4; mode++) {
		for (int call = 0; call < 3; call++) {
			unmake(), make();
			fcntl(fd, F_SETFL, 0);
			char b[64];
			struct iovec v[2] = { { b, 20 }, { b + 20, 50 } };
			struct mmsghdr m[2] = { { .msg_hdr = { .msg_iov = v, .msg_iovlen = 1 } }, { .msg_hdr = { .msg_iov = v + 1, .msg_iovlen = 1 } } };
			struct sigaction act = { .sa_handler = handled, .sa_flags = mode & 1 ? SA_RESTART : 0 };
			struct timeval wait = { 100, 0 };
			char name[40];
			if (mode & 2) setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
			sigaction(SIGALRM, &act, 0);
			if (write(other, pattern, 20) != 20) die("write");
			struct itimerval soon = { { 0, 0 }, { 0, 100000 } };
			setitimer(ITIMER_REAL, &soon, 0);
			errno = 0;
			sprintf(name, "interrupted %d", mode);
			result(name, call, recvmmsg(fd, m, 2, call == 2 ? MSG_WAITALL : 0, 0));
			for (int i = 0; i < 2; i++) {
				int e = errno = 0;
				socklen_t l = sizeof e;
				if (call == 0 || i > 0) { long r = recv(fd, b, 10, MSG_DONTWAIT); printf(" then %ld %d", r, errno); }
				else if (call == 1) getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &l), printf(" error %d", e);
				else { long r = send(fd, pattern, 16, 0); printf(" then send %ld %d", r, errno); }
			}
			printf("\n");
		}
	}
	signal(SIGALRM, SIG_DFL), alarm(200);
}

int main(int argc, char **argv)
{
	(void)argc;
	kind = argv[1];
	signal(SIGPIPE, SIG_IGN);
	alarm(200);
	none = mmap(0, 3 * 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	readonly = none, edge = none + 2 * 65536, none = edge;
	memset(readonly, 0, 65536);
	mprotect(none, 65536, PROT_NONE), mprotect(readonly, 65536, PROT_READ);
	if (strcmp(kind, "idle") && !tcp()) {
		/* There are descriptors of culvert's to be had. */
		int s = socket(AF_INET, SOCK_STREAM, 0);
		dup2(s, 400), close(s);
	}
	make();
	if (!strcmp(argv[2], "recv")) recv_flags();
	else if (!strcmp(argv[2], "send")) send_flags();
	else if (!strcmp(argv[2], "pointers")) pointers();
	else if (!strcmp(argv[2], "waits")) waits();
	else if (!strcmp(argv[2], "programs")) programs();
	else if (!strcmp(argv[2], "lengths")) lengths();
	else if (!strcmp(argv[2], "inq")) inq();
	else if (!strcmp(argv[2], "commands")) commands();
	else if (!strcmp(argv[2], "events")) events();
	else if (!strcmp(argv[2], "kept")) kept();
	else if (!strcmp(argv[2], "interrupted")) interrupted();
	else options();
	unmake();
	return 0;
}
