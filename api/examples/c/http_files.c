/*
 * An HTTP server that answers from mapped files: each byte goes once, from the page cache to where the client reads it.
 *
 *     http_files DIRECTORY       prints its port; GET and HEAD, with connections that are kept
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <culvert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int directory;

/* Sends n bytes. 0, or -1. */
static int send_all(int fd, const char *bytes, size_t n) {
    while (n > 0) {
        struct culvert_room room;
        if (culvert_reserve(fd, n, MSG_NOSIGNAL, &room) < 0) return -1;
        size_t len = room.len, first = room.span[0].iov_len;
        memcpy(room.span[0].iov_base, bytes, first);
        if (len > first) memcpy(room.span[1].iov_base, bytes + first, len - first);
        if (culvert_commit(fd, &room, len, MSG_NOSIGNAL) != (ssize_t)len) {
            culvert_commit(fd, &room, 0, 0);
            return -1;
        }
        bytes += len;
        n -= len;
    }
    return 0;
}

static int answer(int fd, const char *status, size_t length) {
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n", status, length);
    return send_all(fd, head, (size_t)n);
}

/* Answers one request, whose head is a string. 0: the connection is kept. */
static int answer_request(int fd, char *head) {
    char method[8], path[1024];
    if (sscanf(head, "%7s /%1023s HTTP/1.", method, path) != 2 || strstr(path, "..") != NULL || path[0] == '/')
        return answer(fd, "400 Bad Request", 0), -1;
    int with_body = strcmp(method, "GET") == 0;
    if (!with_body && strcmp(method, "HEAD") != 0) return answer(fd, "501 Not Implemented", 0), -1;
    int file = openat(directory, path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (file < 0 || fstat(file, &st) != 0 || !S_ISREG(st.st_mode)) {
        if (file >= 0) close(file);
        return answer(fd, "404 Not Found", 0);
    }
    size_t size = (size_t)st.st_size;
    void *map = size > 0 ? mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0) : NULL;
    close(file);
    if (map == MAP_FAILED) return answer(fd, "500 Internal Server Error", 0), -1;
    int r = answer(fd, "200 OK", size);
    if (r == 0 && with_body) r = send_all(fd, map, size);
    if (map != NULL) munmap(map, size);
    return r;
}

static void *serve(void *arg) {
    int fd = (int)(intptr_t)arg;
    size_t min = 1;
    for (;;) {
        struct culvert_view view;
        ssize_t r = culvert_look(fd, min, 0, &view);
        if (r <= 0) break;
        /* The head is copied before it is looked at: the client could change it meanwhile. */
        char head[8192];
        size_t n = view.len < sizeof head - 1 ? view.len : sizeof head - 1;
        size_t first = view.span[0].iov_len < n ? view.span[0].iov_len : n;
        memcpy(head, view.span[0].iov_base, first);
        memcpy(head + first, view.span[1].iov_base == NULL ? head : view.span[1].iov_base, n - first);
        head[n] = 0;
        char *end = strstr(head, "\r\n\r\n");
        /* No end of a head, and no more to come, or too much of it. */
        int over = end == NULL && ((size_t)r < min || n == sizeof head - 1);
        if (culvert_release(fd, &view, end == NULL ? 0 : (size_t)(end - head) + 4) != 0 || over) break;
        min = end == NULL ? (size_t)r + 1 : 1;
        if (end == NULL) continue;
        end[0] = 0;
        if (answer_request(fd, head) != 0) break;
    }
    close(fd);
    return NULL;
}

int main(int argc, char **argv) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (argc != 2 || (directory = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) {
        fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
        return 2;
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 64) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &len) != 0) {
        perror("listen");
        return 1;
    }
    printf("%d\n", ntohs(a.sin_port));
    fflush(stdout);
    for (;;) {
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0 && errno == EINTR) continue;
        if (client < 0) {
            perror("accept");
            return 1;
        }
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)client) != 0) {
            close(client);
            continue;
        }
        pthread_detach(thread);
    }
}
