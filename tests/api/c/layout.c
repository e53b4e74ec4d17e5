/* What the library takes a structure of culvert.h for, held against the header; and calls that fail. */
#include <culvert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

_Static_assert(sizeof(struct culvert_room) == 88 && sizeof(struct culvert_view) == 88, "size");
_Static_assert(offsetof(struct culvert_room, len) == 32 && offsetof(struct culvert_view, len) == 32, "len");
_Static_assert(offsetof(struct culvert_room, kind_) == 40 && offsetof(struct culvert_view, kind_) == 40, "kind_");
_Static_assert(offsetof(struct culvert_room, memory_) == 80 && offsetof(struct culvert_view, memory_) == 80, "memory_");
_Static_assert(sizeof(struct culvert_counts) == 48, "counts");
_Static_assert(sizeof(struct culvert_chunk) == 56, "chunk");
_Static_assert(offsetof(struct culvert_chunk, kind_) == 16 && offsetof(struct culvert_chunk, memory_) == 48, "chunk");
_Static_assert(sizeof(struct culvert_kept) == 96 && offsetof(struct culvert_kept, all) == 48, "kept");
_Static_assert(offsetof(struct culvert_kept, anew) == 52 && offsetof(struct culvert_kept, own64_) == 72, "kept");

static int failed;

#define EXPECT(call, error)                                                                        \
    do {                                                                                           \
        errno = 0;                                                                                 \
        long r_ = (long)(call);                                                                    \
        if (r_ != -1 || errno != (error)) {                                                        \
            printf("%s: %ld, %s instead of %s\n", #call, r_, strerror(errno), strerror(error));    \
            failed = 1;                                                                            \
        }                                                                                          \
    } while (0)

int main(void) {
    struct culvert_room room;
    struct culvert_view view;
    struct culvert_counts counts = {0};
    int pipes[2], pair[2], datagrams[2];
    if (pipe(pipes) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0 || socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams) != 0)
        return 2;
    memset(&room, 0, sizeof room);
    memset(&view, 0, sizeof view);
    EXPECT(culvert_reserve(-1, 1, 0, &room), EBADF);
    EXPECT(culvert_reserve(pipes[1], 1, 0, &room), ENOTSOCK);
    EXPECT(culvert_reserve(datagrams[0], 1, 0, &room), EOPNOTSUPP);
    EXPECT(culvert_reserve(pair[0], 0, 0, &room), EINVAL);
    EXPECT(culvert_reserve(pair[0], 1, MSG_OOB, &room), EINVAL);
    EXPECT(culvert_reserve(pair[0], 1, MSG_MORE, &room), EINVAL);
    EXPECT(culvert_reserve(pair[0], 1, 0, NULL), EFAULT);
    EXPECT(culvert_commit(pair[0], &room, 0, 0), EINVAL);
    EXPECT(culvert_look(-1, 1, 0, &view), EBADF);
    EXPECT(culvert_look(pipes[0], 1, 0, &view), ENOTSOCK);
    EXPECT(culvert_look(datagrams[0], 1, 0, &view), EOPNOTSUPP);
    EXPECT(culvert_look(pair[1], 1, MSG_DONTWAIT, &view), EAGAIN);
    EXPECT(culvert_look(pair[1], CULVERT_LOOK_MOST + 1, 0, &view), EMSGSIZE);
    EXPECT(culvert_look(pair[1], 1, MSG_PEEK, &view), EINVAL);
    EXPECT(culvert_release(pair[1], &view, 0), EINVAL);

    /* Any stream socket will do. */
    if (culvert_reserve(pair[0], 100, 0, &room) != 100 || !CULVERT_ROOM_COPIES(&room) || room.span[1].iov_len != 0) failed = 1;
    memcpy(room.span[0].iov_base, "over a Unix socket", 18);
    EXPECT(culvert_commit(pair[0], &room, 101, 0), EINVAL);
    if (culvert_commit(pair[0], &room, 18, 0) != 18) failed = 1;
    if (culvert_look(pair[1], 18, 0, &view) != 18 || !CULVERT_VIEW_COPIES(&view)) failed = 1;
    EXPECT(culvert_release(pair[1], &view, 19), EINVAL);
    if (memcmp(view.span[0].iov_base, "over a Unix socket", 18) != 0 || culvert_release(pair[1], &view, 5) != 0) failed = 1;
    struct culvert_kept kept = {0};
    if (culvert_keep(pair[1], 1, 99, &kept) != 0 || culvert_keep(-1, 1, 99, &kept) != 0 || culvert_give_back(pair[1], &kept, 1) != 0) failed = 1;
    char rest[20];
    if (read(pair[1], rest, sizeof rest) != 13 || memcmp(rest, "a Unix socket", 13) != 0) failed = 1;
    if (culvert_counts(&counts, sizeof counts) != 0 || counts.committed != 18 || counts.committed_copied != 18 ||
        counts.released != 5 || counts.released_copied != 5)
        failed = 1;

    /* Chunks, on a socket that cannot take them by reference. */
    struct culvert_chunk chunk, other;
    EXPECT(culvert_pool_make(0, 1, 0), EINVAL);
    EXPECT(culvert_pool_make(100, 0, 0), EINVAL);
    EXPECT(culvert_pool_make(100, 4097, 0), EINVAL);
    EXPECT(culvert_pool_make(SIZE_MAX, 2, 0), EINVAL);
    EXPECT(culvert_pool_make(100, 2, 3), EINVAL);
    EXPECT(culvert_pool_end(0), EINVAL);
    EXPECT(culvert_chunk_take(0, 0, &chunk), EINVAL);
    EXPECT(culvert_chunk_drop(&chunk), EINVAL);
    int pool = culvert_pool_make(5000, 2, 0);
    if (pool < 0 || culvert_chunk_take(pool, 0, &chunk) != 0 || culvert_chunk_take(pool, MSG_DONTWAIT, &other) != 0) failed = 1;
    EXPECT(culvert_chunk_take(pool, MSG_DONTWAIT, &(struct culvert_chunk){0}), EAGAIN);
    EXPECT(culvert_chunk_take(pool, MSG_PEEK, &(struct culvert_chunk){0}), EINVAL);
    EXPECT(culvert_pool_end(pool), EBUSY);
    if (chunk.len != 5000 || culvert_chunk_drop(&other) != 0) failed = 1;
    EXPECT(culvert_chunk_drop(&other), EINVAL);
    memset(chunk.at, 'x', 5000);
    EXPECT(culvert_chunk_send(pair[0], &chunk, 0, 0), EINVAL);
    EXPECT(culvert_chunk_send(pair[0], &chunk, 5001, 0), EINVAL);
    EXPECT(culvert_chunk_send(pair[0], &chunk, 1, MSG_OOB), EINVAL);
    EXPECT(culvert_chunk_send(pipes[1], &chunk, 1, 0), ENOTSOCK);
    EXPECT(culvert_chunk_send(-1, &chunk, 1, 0), EBADF);
    if (culvert_chunk_send(pair[0], &chunk, 4500, 0) != 4500) failed = 1;
    EXPECT(culvert_chunk_send(pair[0], &chunk, 1, 0), EINVAL);
    EXPECT(culvert_chunk_keep(pair[1], &view, &chunk), EINVAL);
    if (culvert_look(pair[1], 4500, 0, &view) != 4500 || CULVERT_VIEW_IS_CHUNK(&view)) failed = 1;
    if (culvert_chunk_keep(pair[1], &view, &chunk) != 4500 || !CULVERT_CHUNK_COPIES(&chunk)) failed = 1;
    EXPECT(culvert_release(pair[1], &view, 0), EINVAL);
    EXPECT(culvert_look(pair[1], 1, MSG_DONTWAIT, &view), EAGAIN);
    if (chunk.len != 4500 || ((char *)chunk.at)[0] != 'x' || ((char *)chunk.at)[4499] != 'x') failed = 1;
    /* On to somebody else. */
    if (culvert_chunk_send(pair[1], &chunk, 4500, 0) != 4500 || culvert_pool_end(pool) != 0) failed = 1;
    EXPECT(culvert_pool_end(pool), EINVAL);
    if (culvert_counts(&counts, sizeof counts) != 0 || counts.referred != 9000 || counts.referred_copied != 9000) failed = 1;
    static char message[4500];
    if (recv(pair[0], message, sizeof message, MSG_WAITALL) != 4500 || message[4499] != 'x') failed = 1;
    close(pair[0]);
    if (culvert_look(pair[1], 1, 0, &view) != 0 || culvert_path(pair[1]) != 0) failed = 1;
    EXPECT(culvert_reserve(pair[1], 1, 0, &room) < 0 ? -1 : culvert_commit(pair[1], &room, 1, MSG_NOSIGNAL), EPIPE);
    culvert_commit(pair[1], &room, 0, 0);
    puts(failed ? "failed" : "ok");
    return failed;
}
