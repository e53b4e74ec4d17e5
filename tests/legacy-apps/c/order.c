/* The order of events. A client acts on several connections, one after another; a server with one epoll set notes what it
 * is told. What the client did first must be noted first.
 *
 * usage: order TRIGGER MAXEVENTS ROUNDS SEED
 *   TRIGGER: level | edge | oneshot, or poll | ppoll | select | pselect: then it is these that tell, of all at once, and
 *   MAXEVENTS does not count. Prints what was done, and each inversion; the last line has their number.
 *
 * Connections are old (on the ring, under culvert), young (few exchanges) or pinned (out-of-band data was sent). In each
 * round the client does some things to different ones: sends, opens, closes, shuts down, resets. In half of the rounds the
 * server is busy meanwhile, and finds all of it at once.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) do { if ((x) < 0) { perror(#x); exit(2); } } while (0)
enum { KINDS = 3, EACH = 4, CONNS = KINDS * EACH, PARTS = 8 };

/* ---- server ---- */
/* An entry of its log: what was told of which connection, by the client's port, and by which call, if that has no order of its own. */
struct seen { uint32_t at; uint16_t port; uint8_t what; };
static struct seen seen[4096];
static unsigned nseen;
static uint32_t told_at;
static int all_at_once;
static uint16_t ports[65536];
static uint32_t trigger;
static int ep;

static void note(uint16_t port, char what) {
    if (!all_at_once) told_at++;
    if (nseen < 4096) seen[nseen++] = (struct seen){told_at, port, (uint8_t)what};
}

/* Descriptors for poll and select. */
static struct pollfd polled[256];
static unsigned npolled;

static void watch(int op, int fd, uint32_t how) {
    if (all_at_once) {
        polled[npolled++] = (struct pollfd){fd, POLLIN | POLLRDHUP, 0};
        return;
    }
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | how, .data.fd = fd};
    CHECK(epoll_ctl(ep, op, fd, &e));
}

static void forget(int fd) {
    for (unsigned i = 0; i < npolled; i++)
        if (polled[i].fd == fd) polled[i] = polled[--npolled];
}

/* Waits with poll or select, and says what they said as epoll would. */
static int wait_for_all(const char *how, struct epoll_event *ev) {
    int n = 0, top = 0, r;
    struct timespec long_time = {1000, 0};
    told_at++;
    if (strstr(how, "poll")) {
        r = *how == 'p' && how[1] == 'p' ? ppoll(polled, npolled, &long_time, 0) : poll(polled, npolled, -1);
    } else {
        fd_set in;
        FD_ZERO(&in);
        for (unsigned i = 0; i < npolled; i++) {
            FD_SET(polled[i].fd, &in);
            if (polled[i].fd > top) top = polled[i].fd;
        }
        r = *how == 'p' ? pselect(top + 1, &in, 0, 0, &long_time, 0) : select(top + 1, &in, 0, 0, 0);
        for (unsigned i = 0; i < npolled; i++) polled[i].revents = r > 0 && FD_ISSET(polled[i].fd, &in) ? POLLIN : 0;
    }
    if (r < 0) return r;
    for (unsigned i = 0; i < npolled; i++)
        if (polled[i].revents) ev[n++].data.fd = polled[i].fd;
    return n;
}

static void serve(int ls, int ctl, const char *how, int max) {
    ep = epoll_create1(0);
    CHECK(ep);
    watch(EPOLL_CTL_ADD, ls, 0);
    watch(EPOLL_CTL_ADD, ctl, 0);
    for (;;) {
        struct epoll_event ev[256];
        int n = all_at_once ? wait_for_all(how, ev) : epoll_wait(ep, ev, max, -1);
        if (n < 0 && errno == EINTR) continue;
        CHECK(n);
        for (int i = 0; i < n; i++) {
            int fd = ev[i].data.fd;
            if (fd == ls) {
                struct sockaddr_in a;
                socklen_t l = sizeof a;
                int c = accept(ls, (void *)&a, &l), one = 1;
                CHECK(c);
                ports[c] = ntohs(a.sin_port);
                note(ports[c], 'o');
                setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                fcntl(c, F_SETFL, O_NONBLOCK);
                watch(EPOLL_CTL_ADD, c, trigger);
            } else if (fd == ctl) {
                char b;
                if (read(ctl, &b, 1) != 1) exit(0);
                if (b == 'b') { /* busy until further notice */
                    CHECK(write(ctl, "b", 1));
                    if (read(ctl, &b, 1) != 1) exit(0);
                } else { /* what was seen since the last question */
                    uint32_t bytes = nseen * sizeof *seen;
                    CHECK(write(ctl, &bytes, 4));
                    if (bytes) CHECK(write(ctl, seen, bytes));
                    nseen = 0;
                }
            } else {
                char b[512];
                ssize_t r;
                int gone = 0, told = 0;
                do {
                    r = read(fd, b, sizeof b);
                    if (r == 0 || (r < 0 && errno != EAGAIN)) gone = 1;
                    if (r > 0) {
                        if (!told++) note(ports[fd], 'd');
                        /* 'x' wants an answer */
                        for (ssize_t k = 0; k < r; k++) if (b[k] == 'x') CHECK(write(fd, "y", 1));
                    }
                } while (r > 0);
                if (gone) {
                    if (!told) note(ports[fd], 'e');
                    forget(fd);
                    close(fd);
                } else if (!told && r < 0) {
                    /* Out-of-band data is told with the rest. An event without anything would be wrong otherwise. */
                    note(ports[fd], '0');
                }
                if (!gone && trigger & EPOLLONESHOT) watch(EPOLL_CTL_MOD, fd, trigger);
            }
        }
    }
}

/* ---- client ---- */
static uint16_t port_of_server;
static struct conn { int fd; uint16_t port; int kind; } conns[CONNS];
static uint64_t state;

static unsigned pick(unsigned n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 20) % n;
}

static int open_one(uint16_t *port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port_of_server), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd);
    CHECK(connect(fd, (void *)&a, sizeof a));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    socklen_t l = sizeof a;
    CHECK(getsockname(fd, (void *)&a, &l));
    *port = ntohs(a.sin_port);
    return fd;
}

static void ask(int fd) {
    char b = 'x';
    CHECK(write(fd, &b, 1));
    if (read(fd, &b, 1) != 1) { fprintf(stderr, "no answer\n"); exit(2); }
}

/* Brings a fresh connection to what its kind is. */
static void settle(struct conn *c) {
    for (int i = 0; i < (c->kind == 0 ? 80 : 2); i++) ask(c->fd);
    if (c->kind == 2) {
        CHECK(send(c->fd, "u", 1, MSG_OOB));
        for (int i = 0; i < 40; i++) ask(c->fd);
    }
}

static void fresh(struct conn *c) {
    c->fd = open_one(&c->port);
    settle(c);
}

static unsigned ask_log(int ctl, struct seen *log, unsigned room) {
    uint32_t bytes, got = 0;
    CHECK(write(ctl, "l", 1));
    if (read(ctl, &bytes, 4) != 4 || bytes > room * sizeof *log) exit(2);
    while (got < bytes) {
        ssize_t r = read(ctl, (char *)log + got, bytes - got);
        if (r <= 0) exit(2);
        got += (uint32_t)r;
    }
    return bytes / sizeof *log;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    all_at_once = !!strstr(argv[1], "poll") || !!strstr(argv[1], "select");
    trigger = !strcmp(argv[1], "edge") ? EPOLLET : !strcmp(argv[1], "oneshot") ? EPOLLONESHOT : 0;
    int max = atoi(argv[2]), rounds = atoi(argv[3]), sv[2];
    state = strtoull(argv[4], 0, 0) * 2654435761u + 88172645463325252u;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sv));
    pid_t server = fork();
    CHECK(server);
    if (!server) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t l = sizeof a;
        close(sv[0]);
        int ls = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(ls);
        CHECK(bind(ls, (void *)&a, sizeof a));
        CHECK(listen(ls, 100));
        CHECK(getsockname(ls, (void *)&a, &l));
        CHECK(write(sv[1], &a.sin_port, 2));
        serve(ls, sv[1], argv[1], max);
    }
    close(sv[1]);
    int ctl = sv[0];
    if (read(ctl, &port_of_server, 2) != 2) return 2;
    port_of_server = ntohs(port_of_server);
    for (int i = 0; i < CONNS; i++) {
        conns[i].kind = i / EACH;
        fresh(&conns[i]);
    }
    static struct seen log[4096];
    unsigned wrong = 0, steps = 0, done[5] = {0};
    for (int r = 0; r < rounds; r++) {
        /* A young connection stays young by being replaced. */
        for (int i = EACH; i < 2 * EACH; i++)
            if (pick(3) == 0) {
                close(conns[i].fd);
                fresh(&conns[i]);
            }
        /* Twice: the first question makes the server look at all that it has had to report once more. */
        ask_log(ctl, log, 4096);
        ask_log(ctl, log, 4096);
        int busy = pick(2);
        char b;
        if (busy) {
            CHECK(write(ctl, "b", 1));
            if (read(ctl, &b, 1) != 1) return 2;
        }
        uint16_t order[PARTS];
        char acts[PARTS];
        unsigned n = 2 + pick(PARTS - 1), m = 0;
        int used[CONNS] = {0}, renew[PARTS], opened = 0, nrenew = 0;
        struct conn extra;
        for (unsigned k = 0; k < n; k++) {
            unsigned what = pick(12), i = pick(CONNS);
            if (what == 0 && !opened) {
                opened = 1;
                extra.fd = open_one(&extra.port);
                order[m] = extra.port;
                acts[m++] = 'o';
                done[1]++;
                continue;
            }
            if (used[i] == 2) continue;
            int end = 0;
            if (what == 1) { /* FIN */
                CHECK(shutdown(conns[i].fd, SHUT_WR));
                end = 1;
                done[2]++;
            } else if (what == 2) { /* FIN */
                close(conns[i].fd);
                conns[i].fd = -1;
                end = 1;
                done[3]++;
            } else if (what == 3) { /* RST */
                struct linger g = {1, 0};
                setsockopt(conns[i].fd, SOL_SOCKET, SO_LINGER, &g, sizeof g);
                close(conns[i].fd);
                conns[i].fd = -1;
                end = 1;
                done[4]++;
            } else {
                CHECK(write(conns[i].fd, "12345678", 1 + pick(8)));
                done[0]++;
            }
            if (!used[i]) {
                order[m] = conns[i].port;
                acts[m++] = end ? 'e' : 'd';
            }
            used[i] = end ? 2 : 1;
            if (end) renew[nrenew++] = (int)i;
        }
        if (busy) CHECK(write(ctl, "g", 1));
        /* Until all of it was seen. */
        unsigned got = 0;
        for (int tries = 0; tries < 20000; tries++) {
            got += ask_log(ctl, log + got, 4096 - got);
            unsigned there = 0;
            for (unsigned k = 0; k < m; k++)
                for (unsigned j = 0; j < got; j++)
                    if (log[j].port == order[k]) { there++; break; }
            if (there == m) break;
        }
        int last = -1, bad = 0;
        for (unsigned k = 0; k < m; k++) {
            int at = -1;
            for (unsigned j = 0; j < got; j++)
                if (log[j].port == order[k]) { at = (int)j; break; }
            if (at < 0 || (last >= 0 && log[at].at < log[last].at) || (log[at].what == '0')) bad = 1;
            last = at;
        }
        steps += m;
        if (bad) {
            wrong++;
            printf("round %d %s: did", r, busy ? "busy" : "live");
            for (unsigned k = 0; k < m; k++) {
                const char *kind = "new";
                for (int i = 0; i < CONNS; i++) if (conns[i].port == order[k]) kind = i < EACH ? "old" : i < 2 * EACH ? "young" : "pinned";
                printf(" %s:%u%c", kind, order[k], acts[k]);
            }
            printf("; seen");
            for (unsigned j = 0; j < got; j++) printf(" %u%c", log[j].port, log[j].what);
            printf("\n");
        }
        if (opened) close(extra.fd);
        for (int k = 0; k < nrenew; k++) {
            struct conn *c = &conns[renew[k]];
            if (c->fd >= 0) close(c->fd);
            fresh(c);
        }
    }
    fprintf(stderr, "steps %u: sent %u opened %u shut down %u closed %u reset %u\n", steps, done[0], done[1], done[2], done[3], done[4]);
    printf("inversions %u\n", wrong);
    close(ctl);
    waitpid(server, 0, 0);
    return 0;
}
