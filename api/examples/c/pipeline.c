/*
 * Three processes, one behind the other. The source writes messages into chunks of a pool; the filter looks at each where the source
 * has written it, and sends on those that are wanted; the sink reads them there. No byte is copied on the way, nor when a message
 * is not wanted.
 *
 *     pipeline sink                  prints its port
 *     pipeline filter PORT           prints its port; sends on to the sink at PORT
 *     pipeline source PORT COUNT     sends COUNT messages to the filter at PORT
 *
 * A message is 64 KiB: its number, the sum of its words, and words that depend on their place. Each third one is not wanted.
 */
#include <arpa/inet.h>
#include <culvert.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 65536, WORDS = SIZE / 8 - 2, POOL = 8 };

struct message {
    uint64_t number, sum, words[WORDS];
};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int is_wanted(uint64_t number) {
    return number % 3 != 2;
}

static uint64_t sum_of(const struct message *m) {
    uint64_t sum = m->number;
    for (int i = 0; i < WORDS; i++) sum = sum * 31 + m->words[i];
    return sum;
}

static int connect_to(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) != 0) die("connect");
    return fd;
}

/* Prints its port, and accepts one connection. */
static int accept_one(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&a, sizeof a) != 0 || listen(listener, 1) != 0) die("listen");
    if (getsockname(listener, (struct sockaddr *)&a, &len) != 0) die("getsockname");
    printf("%d\n", ntohs(a.sin_port));
    fflush(stdout);
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) die("accept");
    close(listener);
    return fd;
}

/* All of a chunk, since the descriptor waits: by reference it goes as a whole, and by a copy in parts at most. */
static void send_chunk(int fd, struct culvert_chunk *chunk, size_t n) {
    while (n > 0) {
        ssize_t sent = culvert_chunk_send(fd, chunk, n, MSG_NOSIGNAL);
        if (sent < 0) die("send");
        n -= (size_t)sent;
    }
}

/*
 * The next message: where its sender has written it, to be dropped or sent on, or else (chunk->len is 0) received into `copy`, as by any
 * program. NULL at the end of the stream.
 */
static const struct message *next(int fd, struct culvert_chunk *chunk) {
    static struct message copy;
    struct culvert_view view;
    ssize_t n = culvert_look(fd, 1, 0, &view);
    if (n < 0) die("look");
    if (n == 0) return NULL;
    memset(chunk, 0, sizeof *chunk);
    if (CULVERT_VIEW_IS_CHUNK(&view) && view.len == SIZE) {
        if (culvert_chunk_keep(fd, &view, chunk) < 0) die("keep");
        return chunk->at;
    }
    if (culvert_release(fd, &view, 0) != 0) die("release");
    for (size_t done = 0; done < SIZE; done += (size_t)n) {
        n = recv(fd, (char *)&copy + done, SIZE - done, MSG_WAITALL);
        if (n < 0) die("recv");
        if (n == 0) {
            fprintf(stderr, "half a message\n");
            exit(1);
        }
    }
    return &copy;
}

static void report(void) {
    struct culvert_counts c;
    culvert_counts(&c, sizeof c);
    printf("%llu of %llu bytes sent by reference\n", (unsigned long long)(c.referred - c.referred_copied),
           (unsigned long long)c.referred);
}

static void run_source(int out, uint64_t count) {
    int pool = culvert_pool_make(SIZE, POOL, POOL);
    if (pool < 0) die("pool");
    for (uint64_t number = 0; number < count; number++) {
        struct culvert_chunk chunk;
        if (culvert_chunk_take(pool, 0, &chunk) != 0) die("take");
        struct message *m = chunk.at;
        m->number = number;
        for (int i = 0; i < WORDS; i++) m->words[i] = number ^ (uint64_t)i;
        m->sum = sum_of(m);
        send_chunk(out, &chunk, SIZE);
    }
    /* The receivers have what was sent, also when this process ends now. */
    close(out);
    report();
}

static void run_filter(int in, int out) {
    struct culvert_chunk chunk;
    const struct message *m;
    uint64_t wanted = 0;
    while ((m = next(in, &chunk)) != NULL) {
        /* Read once: the source could write it a second time. */
        int is_good = is_wanted(m->number);
        if (is_good) wanted++;
        if (is_good && chunk.len > 0) {
            send_chunk(out, &chunk, SIZE);
        } else if (is_good) {
            ssize_t n;
            for (size_t done = 0; done < SIZE; done += (size_t)n)
                if ((n = send(out, (const char *)m + done, SIZE - done, MSG_NOSIGNAL)) < 0) die("send");
        } else if (chunk.len > 0) {
            culvert_chunk_drop(&chunk);
        }
    }
    close(out);
    printf("%llu messages wanted; ", (unsigned long long)wanted);
    report();
}

static void run_sink(int in) {
    struct culvert_chunk chunk;
    const struct message *m;
    uint64_t count = 0, in_place = 0, expected = 0;
    while ((m = next(in, &chunk)) != NULL) {
        while (!is_wanted(expected)) expected++;
        if (m->number != expected || m->sum != sum_of(m)) {
            fprintf(stderr, "message %llu is wrong\n", (unsigned long long)expected);
            exit(1);
        }
        expected++;
        count++;
        if (chunk.len > 0) {
            in_place++;
            culvert_chunk_drop(&chunk);
        }
    }
    printf("%llu messages, %llu of them where the source has written them\n", (unsigned long long)count,
           (unsigned long long)in_place);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "sink") == 0) {
        run_sink(accept_one());
    } else if (argc == 3 && strcmp(argv[1], "filter") == 0) {
        int out = connect_to(atoi(argv[2]));
        run_filter(accept_one(), out);
    } else if (argc == 4 && strcmp(argv[1], "source") == 0) {
        run_source(connect_to(atoi(argv[2])), strtoull(argv[3], NULL, 10));
    } else {
        fprintf(stderr, "usage: %s sink | filter PORT | source PORT COUNT\n", argv[0]);
        return 2;
    }
    return 0;
}
