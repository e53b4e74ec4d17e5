/*
 * Calls the shared object as packetdrill does when it runs with --so_filename: in C, by the table that the object fills, from two
 * threads. `cc -o driver driver.c -lpthread -ldl && ./driver libzstack_packetdrill.so` loads the object with dlopen(3) and ends with 0,
 * or says what differs. A program that holds the object already calls `drive` with the function that fills the table.
 *
 * The table is declared here from what packetdrill passes and expects: thirty-three pointers, of which the first is the object's own.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

struct table {
    void *own;
    void (*free)(void *);
    int (*socket)(void *, int, int, int);
    int (*bind)(void *, int, const struct sockaddr *, socklen_t);
    int (*listen)(void *, int, int);
    int (*accept)(void *, int, struct sockaddr *, socklen_t *);
    int (*connect)(void *, int, const struct sockaddr *, socklen_t);
    ssize_t (*read)(void *, int, void *, size_t);
    ssize_t (*readv)(void *, int, const struct iovec *, int);
    ssize_t (*recv)(void *, int, void *, size_t, int);
    ssize_t (*recvfrom)(void *, int, void *, size_t, int, struct sockaddr *, socklen_t *);
    ssize_t (*recvmsg)(void *, int, struct msghdr *, int);
    ssize_t (*write)(void *, int, const void *, size_t);
    ssize_t (*writev)(void *, int, const struct iovec *, int);
    ssize_t (*send)(void *, int, const void *, size_t, int);
    ssize_t (*sendto)(void *, int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    ssize_t (*sendmsg)(void *, int, const struct msghdr *, int);
    int (*fcntl)(void *, int, int, ...);
    int (*ioctl)(void *, int, unsigned long, ...);
    int (*close)(void *, int);
    int (*shutdown)(void *, int, int);
    int (*getsockopt)(void *, int, int, int, void *, socklen_t *);
    int (*setsockopt)(void *, int, int, int, const void *, socklen_t);
    int (*poll)(void *, struct pollfd *, nfds_t, int);
    int (*inject)(void *, const void *, size_t);
    int (*sniff)(void *, void *, size_t *, long long *);
    int (*usleep)(void *, useconds_t);
    int (*gettimeofday)(void *, struct timeval *, void *);
    int (*epoll_create)(void *, int);
    int (*epoll_ctl)(void *, int, int, int, struct epoll_event *);
    int (*epoll_wait)(void *, int, struct epoll_event *, int, int);
    int (*pipe)(void *, int[2]);
    int (*splice)(void *, int, loff_t *, int, loff_t *, size_t, unsigned int);
};

typedef void fill(const char *, struct table *);

static struct table t;
static char wrong[200];

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            snprintf(wrong, sizeof wrong, "line %d: %s (errno %d)", __LINE__, #what, errno);                           \
            return wrong;                                                                                              \
        }                                                                                                              \
    } while (0)

enum { FIN = 1, SYN = 2, ACK = 16 };

/* A packet of 192.0.2.1, port 40000, to 192.168.0.1, port 8080. */
static uint8_t packet[65600];
static const uint8_t ends[8] = {192, 0, 2, 1, 192, 168, 0, 1};

static uint32_t sum(const uint8_t *bytes, size_t count) {
    uint32_t all = 0;
    for (size_t i = 0; i < count; i++)
        all += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
    return all;
}

static void store(uint8_t *to, uint32_t all) {
    while (all >> 16)
        all = (all & 0xffff) + (all >> 16);
    to[0] = (uint8_t)(~all >> 8), to[1] = (uint8_t)~all;
}

static void number(uint8_t *to, uint32_t value) {
    value = htonl(value);
    memcpy(to, &value, 4);
}

static int inject(uint32_t seq, uint32_t ack, int bits, const char *payload) {
    uint8_t *ip = packet, *tcp = packet + 20;
    size_t len = strlen(payload), all = 40 + len;
    memset(packet, 0, all);
    ip[0] = 0x45, ip[2] = (uint8_t)(all >> 8), ip[3] = (uint8_t)all, ip[8] = 255, ip[9] = IPPROTO_TCP;
    memcpy(ip + 12, ends, 8);
    store(ip + 10, sum(ip, 20));
    tcp[0] = 40000 >> 8, tcp[1] = 40000 & 255, tcp[2] = 8080 >> 8, tcp[3] = 8080 & 255;
    number(tcp + 4, seq);
    number(tcp + 8, ack);
    tcp[12] = 0x50, tcp[13] = (uint8_t)bits, tcp[14] = 0x40;
    memcpy(tcp + 20, payload, len);
    store(tcp + 16, sum(ends, 8) + IPPROTO_TCP + (uint32_t)(20 + len) + sum(tcp, 20 + len));
    return t.inject(t.own, packet, all);
}

/* What was sniffed. */
static uint32_t seq, ack;
static int bits;
static size_t payload;
static long long at;

static const char *sniff(void) {
    size_t count = sizeof packet;
    CHECK(t.sniff(t.own, packet, &count, &at) == 0 && count >= 40 && packet[0] == 0x45);
    const uint8_t *tcp = packet + 20;
    memcpy(&seq, tcp + 4, 4), memcpy(&ack, tcp + 8, 4);
    seq = ntohl(seq), ack = ntohl(ack), bits = tcp[13] & 0x3f;
    payload = count - 20 - (size_t)(tcp[12] >> 4) * 4;
    return NULL;
}

/* The thread that makes the calls which wait. */
static void *calls(void *nothing) {
    (void)nothing;
    struct sockaddr_in peer = {0};
    socklen_t len = sizeof peer;
    char first[3], second[8];
    int fd = t.accept(t.own, 3, (struct sockaddr *)&peer, &len);
    if (fd != 4 || len != sizeof peer || peer.sin_port != htons(40000) || memcmp(&peer.sin_addr, ends, 4))
        return "accept";
    struct iovec two[2] = {{first, 3}, {second, 8}};
    if (t.readv(t.own, fd, two, 2) != 5 || memcmp(first, "hel", 3) || memcmp(second, "lo", 2))
        return "readv";
    return NULL;
}

const char *drive(fill *init) {
    init("tso=0,local=192.168.0.1", &t);
    CHECK(t.own && t.free && t.socket && t.sniff && t.gettimeofday && !t.splice && !t.epoll_create);

    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(8080)};
    memcpy(&here.sin_addr, ends + 4, 4);
    int one = 1, value = 0;
    socklen_t len = sizeof value;
    CHECK(t.socket(t.own, AF_INET, SOCK_STREAM, IPPROTO_TCP) == 3);
    CHECK(t.setsockopt(t.own, 3, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    CHECK(t.getsockopt(t.own, 3, SOL_SOCKET, SO_REUSEADDR, &value, &len) == 0 && value == 1 && len == sizeof value);
    CHECK(t.bind(t.own, 3, (struct sockaddr *)&here, sizeof here) == 0);
    CHECK(t.listen(t.own, 3, 1) == 0);

    pthread_t thread;
    void *said = NULL;
    const char *bad;
    CHECK(pthread_create(&thread, NULL, calls, NULL) == 0);
    CHECK(inject(0, 0, SYN, "") == 0);
    if ((bad = sniff()))
        return bad;
    CHECK(bits == (SYN | ACK) && ack == 1 && payload == 0);
    uint32_t ours = seq + 1;
    CHECK(inject(1, ours, ACK, "") == 0);
    CHECK(inject(1, ours, ACK, "hello") == 0);
    CHECK(pthread_join(thread, &said) == 0);
    if (said)
        return said;
    if ((bad = sniff()))
        return bad;
    CHECK(bits == ACK && ack == 6);

    /* Arguments behind the dots. */
    CHECK(t.fcntl(t.own, 4, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
    CHECK(t.fcntl(t.own, 4, F_GETFL) == (O_RDWR | O_NONBLOCK));
    CHECK(inject(6, ours, ACK, "queued") == 0);
    CHECK(t.ioctl(t.own, 4, FIONREAD, &value) == 0 && value == 6);

    char into[16];
    struct iovec vector = {into, sizeof into};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    CHECK(t.recvmsg(t.own, 4, &message, 0) == 6 && memcmp(into, "queued", 6) == 0);
    errno = 0;
    CHECK(t.recv(t.own, 4, into, sizeof into, 0) == -1 && errno == EAGAIN);
    CHECK(t.read(t.own, 4, NULL, 5) == -1 && errno == EFAULT);
    CHECK(t.write(t.own, 4, NULL, 5) == -1 && errno == EFAULT);
    CHECK(t.recvfrom(t.own, 77, into, 1, 0, NULL, NULL) == -1 && errno == EBADF);
    struct pollfd ready = {.fd = 4, .events = POLLIN | POLLOUT};
    CHECK(t.poll(t.own, &ready, 1, 0) == 1 && ready.revents == POLLOUT);

    struct tcp_info info = {0};
    len = sizeof info;
    CHECK(t.getsockopt(t.own, 4, IPPROTO_TCP, TCP_INFO, &info, &len) == 0);
    CHECK(info.tcpi_state == TCP_ESTABLISHED && info.tcpi_snd_mss == 536 && info.tcpi_snd_cwnd == 10);

    /* Time is one: that of packets is between two questions for it. */
    struct timeval before, after;
    CHECK(t.gettimeofday(t.own, &before, NULL) == 0);
    CHECK(t.usleep(t.own, 2000) == 0);
    vector = (struct iovec){"four", 4};
    CHECK(t.sendmsg(t.own, 4, &message, 0) == 4);
    do {
        if ((bad = sniff()))
            return bad;
    } while (payload == 0);
    CHECK(payload == 4 && memcmp(packet + 40, "four", 4) == 0 && seq == ours && ack == 12);
    CHECK(t.gettimeofday(t.own, &after, NULL) == 0);
    CHECK(at >= before.tv_sec * 1000000LL + before.tv_usec + 2000);
    CHECK(at <= after.tv_sec * 1000000LL + after.tv_usec);
    CHECK(inject(12, ours + 4, ACK, "") == 0);
    CHECK(t.send(t.own, 4, "56", 2, 0) == 2);
    if ((bad = sniff()))
        return bad;
    CHECK(payload == 2 && seq == ours + 4);

    CHECK(t.shutdown(t.own, 4, SHUT_WR) == 0);
    if ((bad = sniff()))
        return bad;
    CHECK((bits & FIN) && seq == ours + 6);
    CHECK(t.sendto(t.own, 4, "x", 1, 0, NULL, 0) == -1 && errno == EPIPE);
    CHECK(t.close(t.own, 4) == 0 && t.close(t.own, 3) == 0 && t.close(t.own, 4) == -1 && errno == EBADF);

    /* The other way round. */
    here.sin_port = htons(40001);
    memcpy(&here.sin_addr, ends, 4);
    CHECK(t.socket(t.own, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0) >= 3);
    CHECK(t.connect(t.own, 3, (struct sockaddr *)&here, sizeof here) == -1 && errno == EINPROGRESS);
    if ((bad = sniff()))
        return bad;
    CHECK(bits == SYN);
    t.free(t.own);
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "driver OBJECT: calls the shared object as packetdrill does\n");
        return 2;
    }
    void *object = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE | RTLD_DEEPBIND);
    void *init = object ? dlsym(object, "packetdrill_interface_init") : NULL;
    if (!init) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    const char *bad = drive((fill *)init);
    if (bad)
        fprintf(stderr, "%s\n", bad);
    return bad != NULL;
}
