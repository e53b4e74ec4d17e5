/* A thread that waits for a chunk is cancelled, and nothing is lost. */
#include <culvert.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static int pool;

static void note(void *noted) { *(int *)noted = 1; }

static void *wait_for_one(void *noted) {
    struct culvert_chunk chunk;
    pthread_cleanup_push(note, noted);
    culvert_chunk_take(pool, 0, &chunk);
    pthread_cleanup_pop(0);
    return NULL;
}

int main(void) {
    struct culvert_chunk chunk;
    pthread_t thread;
    void *result = NULL;
    int noted = 0;
    /* One that is not cancelled waits for ever. */
    alarm(60);
    pool = culvert_pool_make(4096, 1, 0);
    if (pool < 0 || culvert_chunk_take(pool, 0, &chunk) != 0) return 1;
    if (pthread_create(&thread, NULL, wait_for_one, &noted) != 0 || pthread_cancel(thread) != 0) return 2;
    if (pthread_join(thread, &result) != 0 || result != PTHREAD_CANCELED || !noted) return 3;
    if (culvert_chunk_drop(&chunk) != 0 || culvert_chunk_take(pool, MSG_DONTWAIT, &chunk) != 0) return 4;
    if (culvert_chunk_drop(&chunk) != 0 || culvert_pool_end(pool) != 0) return 5;
    puts("cancelled");
    return 0;
}
