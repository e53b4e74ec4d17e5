/* Clients ask for more than a ring holds, look at the first byte, and are killed. How many channels does the server keep?
 *
 * usage: killed server         prints its port, and for each client that is gone how many channels it had with it and has
 *        killed client PORT    is killed by itself
 *        killed children PORT N   N connections, one after the other, each of which a child has that is killed; beside them one
 *                              connection that stays until the end */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static char big[300000];

static int channels(void) {
    DIR *d = opendir("/proc/self/fd");
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[300], to[300] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
        if (readlink(path, to, sizeof to - 1) > 0 && strstr(to, "culvert-channel")) n++;
    }
    closedir(d);
    return n;
}

static int connection(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int s = socket(AF_INET, SOCK_STREAM, 0);
    char b[32] = "ping";
    if (connect(s, (void *)&a, sizeof a)) exit(2);
    for (int i = 0; i < 60; i++)
        if (write(s, b, 32) != 32 || recv(s, b, 32, MSG_WAITALL) != 32) exit(2);
    return s;
}

static int children(int port, int n) {
    char b[32] = "stays";
    int stays = connection(port);
    for (int i = 0; i < n; i++) {
        int s = connection(port), said[2], status;
        if (pipe(said)) return 2;
        pid_t child = fork();
        if (!child) {
            if (write(s, b, 32) != 32 || recv(s, b, 32, MSG_WAITALL) != 32 || write(said[1], b, 1) != 1) return 2;
            for (;;) pause();
        }
        close(s);
        close(said[1]);
        if (read(said[0], b, 1) != 1) return 2;
        close(said[0]);
        kill(child, SIGKILL);
        if (waitpid(child, &status, 0) != child || !WIFSIGNALED(status)) return 2;
    }
    if (write(stays, b, 32) != 32 || recv(stays, b, 32, MSG_WAITALL) != 32) return 2;
    return 0;
}

static int client(int port) {
    int s = connection(port);
    char b[32];
    if (write(s, "BIG", 3) != 3 || recv(s, b, 1, MSG_PEEK) != 1) return 2;
    usleep(300000);
    return raise(SIGKILL);
}

int main(int argc, char **argv) {
    if (argc > 3) return children(atoi(argv[2]), atoi(argv[3]));
    if (argc > 2) return client(atoi(argv[2]));
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int ls = socket(AF_INET, SOCK_STREAM, 0), ep = epoll_create1(0), had = 0;
    if (bind(ls, (void *)&a, len) || listen(ls, 9) || getsockname(ls, (void *)&a, &len)) return 2;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = ls};
    epoll_ctl(ep, EPOLL_CTL_ADD, ls, &e);
    printf("%d\n", ntohs(a.sin_port));
    fflush(stdout);
    while (epoll_wait(ep, &e, 1, -1) == 1) {
        char b[4096];
        if (e.data.fd == ls) {
            struct epoll_event c = {.events = EPOLLIN, .data.fd = accept(ls, 0, 0)};
            epoll_ctl(ep, EPOLL_CTL_ADD, c.data.fd, &c);
            continue;
        }
        ssize_t n = recv(e.data.fd, b, sizeof b, MSG_DONTWAIT);
        if (n == 3) {
            had = channels();
            n = send(e.data.fd, big, sizeof big, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else if (n > 0) {
            n = send(e.data.fd, b, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
        if (n <= 0) {
            close(e.data.fd);
            printf("had %d has %d\n", had, channels());
            fflush(stdout);
        }
    }
}
