/*
 * A server that answers each message with the message, and a client that checks it.
 *
 *     rpc_echo server            prints its port, serves one client after another
 *     rpc_echo client PORT COUNT SIZE
 *
 * A message is its length, 4 bytes, most significant first, and as many bytes: 65,536 at most, since this client sends all of a
 * message before it reads. The server copies each byte once, from where the
 * client has written it to where the client will read it. What it prints at a client's end says how many were copied more often.
 */
#include <arpa/inet.h>
#include <culvert.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* The first n bytes of two pieces, from `skip` on. */
static void copy_out(void *to, const struct iovec *from, size_t skip, size_t n) {
    char *at = to;
    for (int i = 0; i < 2 && n > 0; i++) {
        if (skip >= from[i].iov_len) {
            skip -= from[i].iov_len;
            continue;
        }
        size_t here = from[i].iov_len - skip < n ? from[i].iov_len - skip : n;
        memcpy(at, (const char *)from[i].iov_base + skip, here);
        at += here;
        n -= here;
        skip = 0;
    }
}

/* From two pieces, behind their first `skip` bytes, into two others: n bytes, for which there is room. */
static void copy_across(const struct iovec *to, const struct iovec *from, size_t skip, size_t n) {
    for (int i = 0; i < 2 && n > 0; i++) {
        size_t here = to[i].iov_len < n ? to[i].iov_len : n;
        copy_out(to[i].iov_base, from, skip, here);
        skip += here;
        n -= here;
    }
}

/* Sends a length, and bytes that depend on their place in a stream of messages. */
static void send_message(int fd, uint32_t size, uint32_t seed) {
    size_t total = 4 + (size_t)size, done = 0;
    uint32_t length = htonl(size);
    while (done < total) {
        struct culvert_room room;
        if (culvert_reserve(fd, total - done, MSG_NOSIGNAL, &room) < 0) die("reserve");
        size_t n = room.len, at = done;
        for (int i = 0; i < 2; i++) {
            unsigned char *p = room.span[i].iov_base;
            for (size_t k = 0; k < room.span[i].iov_len; k++, at++)
                p[k] = at < 4 ? ((unsigned char *)&length)[at] : (unsigned char)(seed + at);
        }
        /* All of it, since this descriptor waits. */
        if (culvert_commit(fd, &room, n, MSG_NOSIGNAL) != (ssize_t)n) die("commit");
        done += n;
    }
}

/* Checks the answer where it lies. */
static void check_answer(int fd, uint32_t size, uint32_t seed) {
    size_t total = 4 + (size_t)size, done = 0;
    uint32_t length = htonl(size);
    while (done < total) {
        struct culvert_view view;
        ssize_t r = culvert_look(fd, 1, 0, &view);
        if (r < 0) die("look");
        if (r == 0) {
            fprintf(stderr, "the server has closed the connection\n");
            exit(1);
        }
        size_t n = view.len < total - done ? view.len : total - done, at = done;
        for (int i = 0; i < 2; i++) {
            const unsigned char *p = view.span[i].iov_base;
            for (size_t k = 0; k < view.span[i].iov_len && at < done + n; k++, at++) {
                unsigned char is = at < 4 ? ((unsigned char *)&length)[at] : (unsigned char)(seed + at);
                if (p[k] != is) {
                    fprintf(stderr, "byte %zu of a message is wrong\n", at);
                    exit(1);
                }
            }
        }
        if (culvert_release(fd, &view, n) != 0) die("release");
        done += n;
    }
}

/* Answers until the client has closed the connection. */
static void serve(int fd) {
    for (;;) {
        struct culvert_view view;
        ssize_t r = culvert_look(fd, 4, 0, &view);
        if (r < 0) die("look");
        if (r == 0) return;
        if (r < 4) {
            fprintf(stderr, "half a header\n");
            exit(1);
        }
        /* Read once: the client could write it a second time. */
        uint32_t length;
        copy_out(&length, view.span, 0, 4);
        size_t left = 4 + (size_t)ntohl(length);
        for (;;) {
            size_t here = view.len < left ? view.len : left, done = 0;
            while (done < here) {
                struct culvert_room room;
                if (culvert_reserve(fd, here - done, MSG_NOSIGNAL, &room) < 0) die("reserve");
                size_t n = room.len;
                copy_across(room.span, view.span, done, n);
                if (culvert_commit(fd, &room, n, MSG_NOSIGNAL) != (ssize_t)n) die("commit");
                done += n;
            }
            if (culvert_release(fd, &view, here) != 0) die("release");
            left -= here;
            if (left == 0) break;
            r = culvert_look(fd, 1, 0, &view);
            if (r < 0) die("look");
            if (r == 0) {
                fprintf(stderr, "half a message\n");
                exit(1);
            }
        }
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) die("socket");
    if (argc == 2 && strcmp(argv[1], "server") == 0) {
        if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 16) != 0) die("listen");
        if (getsockname(fd, (struct sockaddr *)&a, &len) != 0) die("getsockname");
        printf("%d\n", ntohs(a.sin_port));
        fflush(stdout);
        for (;;) {
            int client = accept(fd, NULL, NULL);
            if (client < 0) die("accept");
            serve(client);
            struct culvert_counts c;
            culvert_counts(&c, sizeof c);
            printf("%llu of %llu bytes received and %llu of %llu sent in place\n",
                   (unsigned long long)(c.released - c.released_copied), (unsigned long long)c.released,
                   (unsigned long long)(c.committed - c.committed_copied), (unsigned long long)c.committed);
            fflush(stdout);
            close(client);
        }
    }
    if (argc != 5 || strcmp(argv[1], "client") != 0) {
        fprintf(stderr, "usage: %s server | client PORT COUNT SIZE\n", argv[0]);
        return 2;
    }
    a.sin_port = htons((uint16_t)atoi(argv[2]));
    if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0) die("connect");
    int count = atoi(argv[3]);
    for (int i = 0; i < count; i++) {
        send_message(fd, (uint32_t)atoi(argv[4]), (uint32_t)i);
        check_answer(fd, (uint32_t)atoi(argv[4]), (uint32_t)i);
    }
    printf("%d messages; path %u\n", count, culvert_path(fd));
    return 0;
}
