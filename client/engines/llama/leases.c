#include "client/engines/llama/leases.h"

#include "client/engines/llama/say.h"
#include "proto/clock.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

/* For so long after a connection has ended the next daemon is waited for; and the pauses between two tries. */
#define PATIENCE_MS    300000
#define FIRST_PAUSE_MS 10
#define LAST_PAUSE_MS  1000

/* How long the next daemon may take to answer. leases_end() may have to wait for that. */
#define ANSWER_SECONDS 5

struct leases {
    rf_client *client;
    pthread_mutex_t lock; /* of the client */
    pthread_t thread;
    pid_t process;
    int wake; /* an eventfd: the thread is to end */
};

/* Returns true when the connection has ended, false when the thread is to end. */
static bool wait_for_end(struct leases *leases)
{
    struct pollfd fds[2] = {{.fd = leases->wake, .events = POLLIN},
                            {.fd = rf_client_fd(leases->client), .events = POLLRDHUP}};
    while (poll(fds, 2, -1) < 0 || (!fds[0].revents && !fds[1].revents))
        ;
    return !fds[0].revents;
}

/* One try. Returns true if there is nothing more to try. */
static bool reconnect(struct leases *leases)
{
    pthread_mutex_lock(&leases->lock);
    const struct timeval patience = {.tv_sec = ANSWER_SECONDS};
    (void)setsockopt(rf_client_fd(leases->client), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    const int r = rf_reconnect(leases->client, 0);
    if (r == -ESTALE)
        say("the daemon was started anew: %s; the engine computes on", rf_error_message(leases->client));
    pthread_mutex_unlock(&leases->lock);
    return r == 0 || r == -ESTALE;
}

/* Waits for the next daemon. Returns false when the thread is to end, or none has come for a long time. */
static bool find_next(struct leases *leases)
{
    struct pollfd wake = {.fd = leases->wake, .events = POLLIN};
    const int64_t end = clock_ms() + PATIENCE_MS;
    for (int pause = FIRST_PAUSE_MS; !reconnect(leases); pause = pause < LAST_PAUSE_MS / 2 ? 2 * pause : LAST_PAUSE_MS)
        if (poll(&wake, 1, pause) > 0 || clock_ms() > end)
            return false;
    return true;
}

static void *run(void *context)
{
    struct leases *leases = context;
    while (wait_for_end(leases) && find_next(leases))
        ;
    return NULL;
}

/* The engine's signals are for its own threads. */
static int thread_begin(struct leases *leases)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&leases->thread, NULL, run, leases);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

int leases_keep(rf_client *client, struct leases **ret)
{
    struct leases *leases = calloc(1, sizeof(*leases));
    if (!leases)
        return -ENOMEM;
    *leases = (struct leases){.client = client, .process = getpid(), .wake = eventfd(0, EFD_CLOEXEC)};
    pthread_mutex_init(&leases->lock, NULL);
    const int r = leases->wake < 0 ? -errno : thread_begin(leases);
    if (r < 0) {
        if (leases->wake >= 0)
            close(leases->wake);
        free(leases);
        return r;
    }
    *ret = leases;
    return 0;
}

void leases_lock(struct leases *leases)
{
    if (leases)
        pthread_mutex_lock(&leases->lock);
}

void leases_unlock(struct leases *leases)
{
    if (leases)
        pthread_mutex_unlock(&leases->lock);
}

void leases_end(struct leases *leases)
{
    if (!leases || leases->process != getpid())
        return;
    const uint64_t one = 1;
    (void)!write(leases->wake, &one, sizeof(one));
    pthread_join(leases->thread, NULL);
    pthread_mutex_destroy(&leases->lock);
    close(leases->wake);
    free(leases);
}
