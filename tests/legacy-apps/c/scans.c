/* What one call of poll tells of many connections. A client writes on the first of them and then on the last; a call that
 * tells of the last alone has looked at the first too early, and not again. The kernel's does that, too.
 *
 * usage: scans CONNECTIONS ROUNDS. The last line has the number of such calls.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) do { if ((x) < 0) { perror(#x); exit(2); } } while (0)
enum { MOST = 400, EXCHANGES = 80 };

static int fds[MOST];

static void read_one(int fd) {
    char b;
    if (read(fd, &b, 1) != 1) exit(3);
}

static void write_one(int fd) {
    if (write(fd, "x", 1) != 1) exit(4);
}

static void no_delay(int fd) {
    int one = 1;
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
}

static void serve(int ls, int n, int rounds) {
    static struct pollfd polled[MOST];
    int inversions = 0;
    for (int i = 0; i < n; i++) {
        CHECK(fds[i] = accept(ls, 0, 0));
        no_delay(fds[i]);
        polled[i] = (struct pollfd){fds[i], POLLIN, 0};
    }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < EXCHANGES; k++) read_one(fds[i]), write_one(fds[i]);
    for (int r = 0; r < rounds; r++) {
        for (int got = 0; got < 2;) {
            CHECK(poll(polled, (nfds_t)n, -1));
            inversions += got == 0 && !polled[0].revents;
            for (int i = 0; i < n; i++)
                if (polled[i].revents) read_one(fds[i]), got++;
        }
        write_one(fds[1]);
    }
    printf("inversions %d\n", inversions);
    exit(0);
}

int main(int argc, char **argv) {
    int n = argc > 2 ? atoi(argv[1]) : 0, rounds = argc > 2 ? atoi(argv[2]) : 0, status;
    if (n < 3 || n > MOST) return 2;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t l = sizeof a;
    int ls = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(ls);
    CHECK(bind(ls, (void *)&a, sizeof a));
    CHECK(listen(ls, MOST));
    CHECK(getsockname(ls, (void *)&a, &l));
    pid_t server = fork();
    CHECK(server);
    if (!server) serve(ls, n, rounds);
    for (int i = 0; i < n; i++) {
        CHECK(fds[i] = socket(AF_INET, SOCK_STREAM, 0));
        CHECK(connect(fds[i], (void *)&a, sizeof a));
        no_delay(fds[i]);
    }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < EXCHANGES; k++) write_one(fds[i]), read_one(fds[i]);
    for (int r = 0; r < rounds; r++) {
        write_one(fds[0]);
        write_one(fds[n - 1]);
        read_one(fds[1]);
    }
    CHECK(waitpid(server, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
