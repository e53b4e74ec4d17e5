/*
 * culvert.h: send what you write where the peer will read it, and read what you receive where the peer has written it.
 *
 * On any connected stream socket, beside send(), recv() and their kin, at any byte, by any thread. If the connection is
 * accelerated (both ends are under culvert on this host), the memory is the ring between the two processes, and nothing is
 * copied. Everywhere else, and whenever that cannot be had, each call works by memory of its own and a copy: the same calls, the
 * same results, more time. CULVERT_ROOM_COPIES and CULVERT_VIEW_COPIES tell the two apart.
 *
 *     struct culvert_room room;
 *     if (culvert_reserve(fd, sizeof reply, 0, &room) > 0) {       // may be less than was asked for
 *         size_t n = fill(room.span, room.len);                    // one piece, or two
 *         culvert_commit(fd, &room, n, MSG_NOSIGNAL);              // n bytes are sent; the rest is given back
 *     }
 *
 *     struct culvert_view view;
 *     if (culvert_look(fd, 1, 0, &view) > 0) {                     // 0: the stream has ended
 *         size_t n = parse(view.span, view.len);
 *         culvert_release(fd, &view, n);                           // n bytes are read; the rest comes again
 *     }
 *
 * Bytes can also travel by reference: a *chunk* of a pool is written once, sent, looked at where it was written, kept beyond the
 * stream that brought it, and sent on to a third process, without a copy anywhere.
 *
 *     int pool = culvert_pool_make(65536, 16, 0);                  // once
 *     struct culvert_chunk chunk;
 *     if (culvert_chunk_take(pool, 0, &chunk) == 0) {              // chunk.at, chunk.len bytes
 *         size_t n = fill(chunk.at, chunk.len);
 *         culvert_chunk_send(fd, &chunk, n, MSG_NOSIGNAL);         // the receiver's; free again when that is done with it
 *     }
 *
 *     if (culvert_look(in, 65536, 0, &view) > 0 &&
 *         culvert_chunk_keep(in, &view, &chunk) > 0)               // its bytes are read, and stay here
 *         culvert_chunk_send(out, &chunk, chunk.len, MSG_NOSIGNAL);
 *
 * A receiver that makes POSIX calls gets the bytes like any others.
 *
 * A program links the library (-lculvert, pkg-config culvert) or is run with it (`culvert run`, LD_PRELOAD). If it is linked, it
 * needs to come before libc: which is so unless -lc is named before it.
 *
 * Of every call:
 *
 * Structures. Each lies where a variable of its type may lie, in memory that can be written; else the call fails with EFAULT, and has done
 * nothing.
 *
 * Ownership. A room's memory is the program's from culvert_reserve until it has committed all that it commits, or has given the
 * room back (culvert_commit with n = 0). A view's memory may be read until culvert_release. Each must be ended by exactly one of
 * these, also after an error. The structures are the program's own; it may copy and move them, but the fields whose
 * names end in `_` are the library's. At the descriptor's last close in this process its rooms and views are over, and their memory
 * must not be touched any more. Each structure must still be given to culvert_commit or culvert_release with n = 0, whatever that
 * returns, since it may hold memory of its own. The descriptor to name is then -1: the number may be another file's by now, and not
 * every file can be told from the one that was closed. A
 * process that gives up its user for good (setuid) must hold neither, since it leaves rings that it shares; nor a chunk, and it ends its
 * pools before.
 *
 * A chunk's memory is the program's from culvert_chunk_take or culvert_chunk_keep until it is sent or dropped: a taken one to write, a
 * kept one to read, since it may be another process's, and writing there ends in SIGSEGV. Every chunk must be sent or dropped, also
 * after an error. A kept chunk does not depend on the stream that brought it: that may be closed. The memory of one that was sent
 * must not be touched any more. When all that got a chunk, one after the other, are done with it or have ended, it is free again.
 * `at` and `len` are read by the program and changed by the library alone. A structure may be copied; of its copies one is used.
 *
 * Limits of chunks. A process has 16 pools, and takes chunks of 64 of other processes; a pool has 64 receivers at a time, each of
 * which is one channel: what two processes have between them, for 64 connections. A channel knows 8 pools of each side at a time. Beyond
 * any of these, and until the place of one that has ended is free again, bytes are copied. A receiver has a pool mapped, to read, until its
 * last connection in the channel is closed, or, after the pool has ended, until it looks again. A pool has two
 * of the library's descriptors, and a pool of another process one: a program that closes descriptors by a system call of its own
 * (close_range by syscall(2)) while it keeps a chunk may find other bytes there. In a child of vfork none of the calls about pools and
 * chunks may be made.
 *
 * The peer can write the memory of a view at any time, if it wants to: what is checked must be copied first, or read once. It
 * can read a room before it is committed.
 *
 * Blocking. As the descriptor says (O_NONBLOCK), MSG_DONTWAIT, SO_RCVTIMEO and SO_SNDTIMEO, for each call as for send() and
 * recv(). A reservation waits for room on a ring; elsewhere it is had at once, and the commit waits. Readiness is that of poll,
 * select and epoll, as ever: POLLIN before a look, POLLOUT before a reservation. A program that must not wait handles EAGAIN, and
 * commits of fewer bytes than it asked for, from both.
 *
 * Signals. EINTR as for send() and recv(), with SA_RESTART as they have it. SIGPIPE unless MSG_NOSIGNAL. None of these calls may
 * be made in a signal handler: they allocate.
 *
 * Threads. Any thread may make any call, and hold any number of rooms and views; a structure is one thread's at a time. What is
 * committed comes into the stream at its commit, whatever was sent since the reservation. One room of a connection at a time is on
 * its ring; others are of memory of their own. A POSIX call that sends while other threads have a room on the ring waits for their
 * commits, for 10 ms in all at most; after that, and at once in the thread that reserved it, the sending direction goes to the kernel for good, and
 * the room's bytes follow by a copy (`culvert stat`: reserved). A view on the ring sees what others receive meanwhile, too, and a
 * release reads none of those bytes twice. A view by a copy is like MSG_PEEK: its release reads the next n bytes, so whoever else
 * receives meanwhile must be agreed with. While a view is held its peer has so much less room to send.
 *
 * Fork, exec. Pools and chunks are the process's that made or kept them: in a forked child they are invalid (EINVAL), except chunks
 * that were copies; and from then on the connections that were there at the fork carry chunks by copies. A process that becomes another
 * program, or ends, gives back what it has kept; what it has sent reaches its receiver. In a forked child, rooms that were reserved on a ring, and views on a ring, are invalid (EINVAL). Those that were copies
 * from the beginning are ordinary heap memory, and the child's copy works. The parent goes on with all of them. An exec ends them:
 * what was not committed was not sent, and what was not released is read by the next image. Passing the descriptor to another
 * process, posix_spawn and whatever else takes a connection back to the kernel does no harm to either.
 */
#ifndef CULVERT_H
#define CULVERT_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header's calls is in the names that they have in the library. */
#define CULVERT_VERSION 1
#define CULVERT_NAME(name) __asm__("culvert_1_" name)

/* Most bytes that culvert_look can be asked to wait for. */
#define CULVERT_LOOK_MOST 65536

/* Room to write to: span[0], then span[1], whose length may be 0. `len` bytes in both. */
struct culvert_room {
    struct iovec span[2];
    size_t len;
    /* The library's. */
    uint32_t kind_;
    uint32_t own_[3];
    uint64_t own64_[3];
    void *memory_;
};

/* Bytes to read: the same. */
struct culvert_view {
    struct iovec span[2];
    size_t len;
    uint32_t kind_;
    uint32_t own_[3];
    uint64_t own64_[3];
    void *memory_;
};

/* Whether what is written to a room, or was read for a view, is copied once more. */
#define CULVERT_ROOM_COPIES(room) ((room)->kind_ != 0x63756c01u)
#define CULVERT_VIEW_COPIES(view) ((view)->kind_ != 0x63756c03u)

/*
 * Reserves room for up to n bytes behind what was sent. Returns how many, at least one, or -1.
 *
 * flags: MSG_DONTWAIT, MSG_NOSIGNAL. A message that is larger than what there is room for goes in parts, as with send(). Errors:
 * those of send(), for a connection that cannot send any more; EAGAIN, EINTR; EINVAL (n = 0, other flags, also MSG_MORE); ENOMEM; EBADF,
 * ENOTSOCK; EOPNOTSUPP (no stream socket). After an error there is no room.
 */
ssize_t culvert_reserve(int fd, size_t n, int flags, struct culvert_room *room) CULVERT_NAME("reserve");

/*
 * Sends the first n bytes of the room, on the socket that it was reserved on. Returns how many were sent, or -1.
 *
 * All n: the room is given back. Fewer, which only a descriptor that does not wait, a timeout or a signal bring about, and only if
 * `CULVERT_ROOM_COPIES`: the rest is the room's now, to be committed later. An error: the room is as it was, to be tried again or
 * given back. n = 0 gives it back, and does nothing else.
 *
 * flags: MSG_DONTWAIT, MSG_NOSIGNAL, MSG_MORE. Errors: those of send(); EBADF: the socket that it was reserved on was closed,
 * or fd is another. EINVAL: `room` holds no room; n is more than `room->len`; the room was reserved on a ring by the parent of this
 * forked process; other flags.
 */
ssize_t culvert_commit(int fd, struct culvert_room *room, size_t n, int flags) CULVERT_NAME("commit");

/*
 * Looks at what was received and not read: waits until min bytes are there (0 is 1), and shows all that are there. Returns how
 * many; 0 at the end of the stream, when there is no view to release; or -1.
 *
 * Fewer than min come if the stream ends behind them, if the descriptor does not wait, or the wait is over by a timeout or a signal,
 * as with MSG_PEEK | MSG_WAITALL. Who asks for more than the buffers of the connection hold waits for ever; they hold
 * CULVERT_LOOK_MOST bytes unless SO_SNDBUF, SO_RCVBUF or TCP_NOTSENT_LOWAT say less. On the kernel, bytes that stay unread while more
 * is waited for can keep the room of a whole segment from the sender, which then sends at its timer: there it is faster to read
 * what has come of a message, and to keep it.
 *
 * flags: MSG_DONTWAIT. Errors: those of recv(); EINVAL (other flags); EMSGSIZE (min > CULVERT_LOOK_MOST); ENOMEM; ENOTSOCK,
 * EOPNOTSUPP as above. Without a view `view->len` is 0: after an error, at the end, and also where a signal handler leaves this call by
 * siglongjmp(); if `view->len` is not 0 then, there is a view, to be released.
 */
ssize_t culvert_look(int fd, size_t min, int flags, struct culvert_view *view) CULVERT_NAME("look");

/*
 * Ends a view, and reads its first n bytes: the next recv() or look begins behind them. Returns 0, or -1.
 *
 * Waits only where another process that has the same connection is about to receive on it, and then as recv() would: EAGAIN,
 * EINTR, with the view as it was. Other errors: EINVAL, with the view as it was: `view` holds no view; n is more than
 * `view->len`; the view is on a ring, and the parent's of this forked process. EBADF, and the view is over: the socket that was
 * looked at was closed, or fd is another.
 */
int culvert_release(int fd, struct culvert_view *view, size_t n) CULVERT_NAME("release");

/* Memory to write and send, or to read, keep and send on: `len` bytes at `at`. */
struct culvert_chunk {
    void *at;
    size_t len;
    /* The library's. */
    uint32_t kind_;
    uint32_t own_[7];
    void *memory_;
};

/* Whether a view is of a chunk, which culvert_chunk_keep keeps without a copy; and whether a chunk that was kept is a copy. */
#define CULVERT_VIEW_IS_CHUNK(view) ((view)->kind_ == 0x63756c03u && (view)->own_[2] > 1)
#define CULVERT_CHUNK_COPIES(chunk) ((chunk)->kind_ == 0x63756c13u)

/*
 * Makes a pool of `count` chunks of `len` bytes each, of which all that goes to one receiver may have `quota` at a time (0: all but one);
 * a process with which this one has several channels (more than 64 connections) is several receivers.
 * Returns its number, or -1: EINVAL (no chunks, no bytes, more than 4096 chunks or 2^30 bytes in all, a quota that is larger than
 * count), ENOMEM, EMFILE (more than 16 pools, or no descriptors for one). Never waits. Any thread may use a pool.
 *
 * A receiver that has its quota, and gives nothing back, is sent copies; the pool's other receivers have their own.
 */
int culvert_pool_make(size_t len, size_t count, size_t quota) CULVERT_NAME("pool_make");

/*
 * Takes a pool away, with its memory in this process. Returns 0, or -1: EBUSY (a chunk is taken, or a receiver has one still; or the process
 * is under a system-call filter), EINVAL (no pool of this process).
 */
int culvert_pool_end(int pool) CULVERT_NAME("pool_end");

/*
 * Takes a free chunk, whose bytes are what they were; waits for one, unless flags say MSG_DONTWAIT. Returns 0, or -1: EAGAIN (none is free),
 * EINTR (a signal handler without SA_RESTART), EINVAL (no pool of this process; other flags), EFAULT (`chunk` cannot be written).
 *
 * Nothing tells a program that a chunk has come back: who waits in poll has to come again, and who waits here looks again and again, some
 * 20000 times a second. Meanwhile it does nothing for the process's connections, which another thread's calls must: a peer that leaves a ring
 * waits for one to have what it did not read. It is a cancellation point where it waits. Under a system-call filter it does not wait (EAGAIN), and
 * what a receiver had that has ended does not come back, since whether it has cannot be asked.
 */
int culvert_chunk_take(int pool, int flags, struct culvert_chunk *chunk) CULVERT_NAME("chunk_take");

/*
 * Sends the first n bytes of a chunk, on any connected stream socket. Returns how many were sent, or -1.
 *
 * All n: the chunk is no longer the program's, also what is behind them. So it is whenever it goes by reference, which never waits. It
 * does between two processes of one user on a ring, neither of which is under a system-call filter, if 4096 bytes or more are sent, and the
 * receiver looks (culvert_look): it has met the pool once it has looked since the first chunk was sent to it, the pool's owner has then taken or
 * sent a chunk of it, and it has looked once more. (The owner: not one that sends a chunk on.) Not while 64 chunks lie unread on the connection, or less room is
 * left than bytes are sent. Else the bytes are copied, as by send(), and wait as send() does: fewer than n may
 * be sent by a descriptor that does not wait, at a timeout or a signal; the rest is the chunk's then, to be sent later. After an error the
 * chunk is as it was.
 *
 * flags: MSG_DONTWAIT, MSG_NOSIGNAL, MSG_MORE. Errors: those of send(); EINVAL: no chunk of this process, or one that was sent or
 * dropped, by whatever copy of the structure; n is 0, or more than
 * `chunk->len`; other flags.
 */
ssize_t culvert_chunk_send(int fd, struct culvert_chunk *chunk, size_t n, int flags) CULVERT_NAME("chunk_send");

/*
 * Ends a view and reads all of its bytes from the stream, as culvert_release with all of them; they stay the program's, as a chunk. Returns
 * how many, or -1, as culvert_release has it (and ENOMEM, with the view as it was): then there is no chunk.
 *
 * Without a copy if `CULVERT_VIEW_IS_CHUNK(view)`. A look shows a chunk as one piece, all that is unread of it and nothing else, if that
 * is as much as it was asked for; so who asks for whole messages, and sends each as a chunk, gets each as a chunk. It is no cancellation
 * point.
 */
ssize_t culvert_chunk_keep(int fd, struct culvert_view *view, struct culvert_chunk *chunk) CULVERT_NAME("chunk_keep");

/* Drops a chunk. Returns 0, or -1 (EINVAL: no chunk of this process). Never waits. */
int culvert_chunk_drop(struct culvert_chunk *chunk) CULVERT_NAME("chunk_drop");
/*
 * For a program that hands on what it receives by reference, to a device for instance: bytes that were read, and stay where they are.
 * One structure for each connection, which begins as zeros, and which one thread uses at a time.
 */
struct culvert_kept {
    /* What the last culvert_keep has read: span[0], then span[1], whose length may be 0. `len` bytes in both. */
    struct iovec span[2];
    size_t len;
    /* Bytes that the sender may have there, read or not, before it has to wait. */
    size_t limit;
    /* Not 0: there was nothing behind them, and what comes next is news to poll and epoll. */
    uint32_t all;
    /* Not 0: nothing that was read before is kept, whoever has ended that: what is given back counts from these bytes on. */
    uint32_t anew;
    /* The library's. */
    uint32_t own_[3];
    uint64_t own64_[3];
};

/*
 * Reads up to most bytes, if at least `least` lie on a ring and come next, without a copy: the stream goes on behind them, and they stay
 * where they are. Returns how many; 0: receive them by another call. Never waits, and never fails. `kept` is not checked.
 *
 * What is received behind them, by whatever call, gives no room back to the sender either. So a sender that wants to send finds no room
 * for what was not given back.
 */
size_t culvert_keep(int fd, size_t least, size_t most, struct culvert_kept *kept) CULVERT_NAME("keep");

/*
 * The next n bytes of those that were kept, or received behind them, are the sender's room again, and must not be looked at any more;
 * SIZE_MAX: all that were received. Returns 1 if something is kept still, else 0: then nothing has to be given back. All of it is
 * given back when this process closes the connection, or ends.
 */
int culvert_give_back(int fd, struct culvert_kept *kept, size_t n) CULVERT_NAME("give_back");

/*
 * Wakes whom this thread has sent something on a ring, if it puts that off. A process that stands in for other hosts, as zstackd, does from a thread's
 * first such call on, until the next one or until that thread waits for the events of an epoll set: so a program is woken once for all that has come
 * for it in a turn. In other processes the call does nothing. Never waits, and never fails.
 */
void culvert_settle(void) CULVERT_NAME("settle");

/* Bytes that this process has moved by these calls, and those among them that were copied once more. */
struct culvert_counts {
    uint64_t committed;
    uint64_t committed_copied;
    uint64_t released;
    uint64_t released_copied;
    /* Of chunks that were sent. */
    uint64_t referred;
    uint64_t referred_copied;
};

/* `size`: sizeof *counts. Returns 0, or -1 (EFAULT). May be called in a signal handler. */
int culvert_counts(struct culvert_counts *counts, size_t size) CULVERT_NAME("counts");

/*
 * Which directions of a connection are on a ring now: 1 sending, 2 receiving. Changes at any time. Fails never: 0.
 *
 * Of what a process receives that stands in for other hosts, also: 4, a small segment is to wait while another one is not acknowledged
 * (the sender has not set TCP_NODELAY); 8, the last bytes were sent with MSG_MORE; 16, segments that are not full are to wait (TCP_CORK). When a
 * cork is taken out, an epoll set says once that there is something to read.
 */
unsigned culvert_path(int fd) CULVERT_NAME("path");

/*
 * For a middlebox: the address that the client of an accepted TCP connection has asked for, where the connection was brought to it: by
 * `culvert steer` ([[redirect]], where the middlebox's control group is named), by netfilter's REDIRECT or DNAT, or by TPROXY or an sk_lookup program, which
 * leave the address as it is. Where nobody has brought it, that is the socket's own address: a middlebox that connects to what it is told must
 * not do so then. An IPv4 address is a sockaddr_in, also of an IPv6 socket; any other family's is what getsockname says. Never waits. Returns 0, or -1 as
 * getsockname does. It takes this header alone, no library. May be called in a signal handler.
 */
static inline int culvert_asked(int fd, struct sockaddr_storage *address)
{
    enum { CULVERT_ORIGINAL_DST = 80 }; /* SO_ORIGINAL_DST of linux/netfilter_ipv4.h, and of IPv6 */
    socklen_t len = sizeof *address;
    struct sockaddr_storage told;
    struct sockaddr_in6 six;
    struct sockaddr_in four;

    if (getsockname(fd, (struct sockaddr *)address, &len) < 0)
        return -1;
    if (address->ss_family == AF_INET6) {
        memcpy(&six, address, sizeof six);
        if (IN6_IS_ADDR_V4MAPPED(&six.sin6_addr)) {
            memset(&four, 0, sizeof four);
            four.sin_family = AF_INET;
            four.sin_port = six.sin6_port;
            memcpy(&four.sin_addr, &six.sin6_addr.s6_addr[12], 4);
            memset(address, 0, sizeof *address);
            memcpy(address, &four, sizeof four);
        }
    }
    len = sizeof told;
    if (address->ss_family == AF_INET || address->ss_family == AF_INET6) {
        int level = address->ss_family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;

        memset(&told, 0, sizeof told);
        if (getsockopt(fd, level, CULVERT_ORIGINAL_DST, &told, &len) == 0)
            memcpy(address, &told, sizeof told);
    }
    return 0;
}

#ifdef __cplusplus
}
#endif

#endif
