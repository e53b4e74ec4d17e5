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
_Static_assert(sizeof(struct culvert_counts) == 32, "counts");

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
    char rest[20];
    if (read(pair[1], rest, sizeof rest) != 13 || memcmp(rest, "a Unix socket", 13) != 0) failed = 1;
    if (culvert_counts(&counts, sizeof counts) != 0 || counts.committed != 18 || counts.committed_copied != 18 ||
        counts.released != 5 || counts.released_copied != 5)
        failed = 1;
    close(pair[0]);
    if (culvert_look(pair[1], 1, 0, &view) != 0 || culvert_path(pair[1]) != 0) failed = 1;
    EXPECT(culvert_reserve(pair[1], 1, 0, &room) < 0 ? -1 : culvert_commit(pair[1], &room, 1, MSG_NOSIGNAL), EPIPE);
    culvert_commit(pair[1], &room, 0, 0);
    puts(failed ? "failed" : "ok");
    return failed;
}
