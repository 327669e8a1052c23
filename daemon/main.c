/* rocmforged: puts the parts together, runs the loop, and takes everything down again. */
#include "daemon/api/changes.h"
#include "daemon/api/preload.h"
#include "daemon/base/last_words.h"
#include "daemon/base/lock_limit.h"
#include "daemon/base/log.h"
#include "daemon/base/processors.h"
#include "daemon/gguf/gguf.h"
#include "daemon/keep/keep.h"
#include "daemon/modules.h"
#include "daemon/opening.h"
#include "daemon/options.h"
#include "daemon/server.h"
#include "daemon/service.h"
#include "daemon/wire/conn.h"
#include "daemon/wire/listener.h"
#include "proto/bytes.h"
#include "proto/descriptors.h"
#include "proto/streams.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

struct daemon {
    uv_loop_t loop;
    struct server server;
    struct listener *listener;
    struct service *service;
    struct service_handed handed;
    struct keep *keep;
    uv_signal_t terminate;
    uv_signal_t interrupt;
    uv_signal_t hangup;
    struct changes *changes;
    struct preload *preload; /* NULL: nothing is preloaded */
    const struct options *options;
    struct work first_work;
    bool ready;
    bool look_later; /* SIGHUP came before all devices were there */
    char status[64]; /* what systemd was told last */
};

static struct daemon *daemon_of(struct server *server)
{
    return (struct daemon *)((char *)server - offsetof(struct daemon, server));
}

static void daemon_stopped(struct server *server)
{
    struct daemon *daemon = daemon_of(server);
    uv_close((uv_handle_t *)&daemon->terminate, NULL);
    uv_close((uv_handle_t *)&daemon->interrupt, NULL);
    uv_close((uv_handle_t *)&daemon->hangup, NULL);
    preload_free(daemon->preload);
    changes_free(daemon->changes);
    service_close(daemon->service);
    keep_close(daemon->keep);
}

static void daemon_stop(struct daemon *daemon)
{
    service_stopping(daemon->service);
    keep_stop(daemon->keep);
    listener_close(daemon->listener);
    daemon->listener = NULL;
    server_stop(&daemon->server, daemon_stopped);
}

static void signalled(uv_signal_t *handle, int number)
{
    struct daemon *daemon = handle->data;
    if (daemon->server.core.stopping) {
        log_notice("%s again: not waiting for what is under way", strsignal(number));
        _exit(EXIT_FAILURE);
    }
    log_write_fields(LOG_LEVEL_NOTICE, &(const struct log_fields){.id = MESSAGE_DAEMON_STOPPING}, "%s: stopping",
                     strsignal(number));
    daemon_stop(daemon);
}

/* SIGHUP: look whether files or their modes have changed, and again at what is to be preloaded. */
static void hung_up(uv_signal_t *handle, int number)
{
    (void)number;
    struct daemon *daemon = handle->data;
    if (daemon->server.core.stopping)
        return;
    daemon->look_later = daemon->server.api.awaits;
    if (daemon->look_later)
        return;
    rechecks_look(&daemon->server.rechecks);
    changes_look(daemon->changes);
    if (daemon->preload)
        preload_look(daemon->preload);
}

/* Makes the line that `systemctl status` shows. False if it has not changed. */
static bool status_new(struct daemon *daemon)
{
    char status[sizeof(daemon->status)], bytes[BYTES_TEXT_SIZE];
    size_t resident = 0;
    uint64_t sum = 0;
    const struct model *model;
    TAILQ_FOREACH(model, &daemon->server.registry.models, link)
    {
        if (model->state != MODEL_RESIDENT)
            continue;
        resident++;
        sum += model->plan->arena_bytes;
    }
    const unsigned failed = preload_failed(daemon->preload);
    int n = snprintf(status, sizeof(status), "%zu model%s resident", resident, resident == 1 ? "" : "s");
    if (resident > 0)
        n += snprintf(status + n, sizeof(status) - (size_t)n, " (%s)", bytes_text(bytes, (double)sum, ""));
    n += snprintf(status + n, sizeof(status) - (size_t)n, ", %zu loading", daemon->server.loads.n);
    if (failed > 0)
        snprintf(status + n, sizeof(status) - (size_t)n, ", %u preload%s failed", failed, failed == 1 ? "" : "s");
    if (strcmp(status, daemon->status) == 0)
        return false;
    strcpy(daemon->status, status);
    return true;
}

static void tell_status(struct core *core)
{
    struct daemon *daemon = daemon_of((struct server *)((char *)core - offsetof(struct server, core)));
    if (daemon->ready && !core->stopping && status_new(daemon))
        service_status(daemon->status);
}

static int signals_begin(struct daemon *daemon)
{
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* an arena in host memory is a file: a load that exceeds `ulimit -f` shall fail, and not
                                 end the daemon */
    int r = uv_signal_init(&daemon->loop, &daemon->terminate);
    if (r == 0)
        r = uv_signal_init(&daemon->loop, &daemon->interrupt);
    if (r == 0)
        r = uv_signal_init(&daemon->loop, &daemon->hangup);
    daemon->terminate.data = daemon->interrupt.data = daemon->hangup.data = daemon;
    if (r == 0)
        r = uv_signal_start(&daemon->hangup, hung_up, SIGHUP);
    if (r == 0)
        r = uv_signal_start(&daemon->terminate, signalled, SIGTERM);
    if (r == 0)
        r = uv_signal_start(&daemon->interrupt, signalled, SIGINT);
    return r;
}

/* The default path of the socket. The caller frees *ret. */
static int default_socket(char **ret)
{
    const char *folder = getenv("RUNTIME_DIRECTORY"); /* set by systemd for RuntimeDirectory= */
    int r;
    if (folder)
        r = asprintf(ret, "%s/io.rocmforge", folder);
    else if (geteuid() == 0)
        r = asprintf(ret, "/run/rocmforge/io.rocmforge");
    else if ((folder = getenv("XDG_RUNTIME_DIR")))
        r = asprintf(ret, "%s/rocmforge/io.rocmforge", folder);
    else
        return -ENXIO;
    return r < 0 ? -ENOMEM : 0;
}

static int listen_begin(struct daemon *daemon, const struct options *options)
{
    const int fd = options->socket ? -ENOENT : daemon->handed.socket;
    if (fd >= 0) {
        int r = listener_new_fd(&daemon->loop, daemon->server.conns, fd, &daemon->listener);
        if (r < 0)
            log_error("systemd's socket cannot be used: %s", strerror(-r));
        return r;
    }
    if (fd != -ENOENT) {
        log_error("systemd handed over something else than one listening Unix socket");
        return fd;
    }
    char *path = NULL;
    int r = options->socket ? 0 : default_socket(&path);
    if (r < 0) {
        log_error("no --socket, and no XDG_RUNTIME_DIR to put one in");
        return r;
    }
    const char *where = options->socket ? options->socket : path;
    r = listener_new(&daemon->loop, daemon->server.conns, where, &daemon->listener);
    if (r == -EADDRINUSE)
        log_error("%s: another daemon listens there", where);
    else if (r == -ENOTSOCK)
        log_error("%s: what is there is not a socket", where);
    else if (r < 0)
        log_error("%s: %s", where, strerror(-r));
    else
        log_info("listening at %s", where);
    free(path);
    return r;
}

static unsigned default_workers(void)
{
    unsigned n = processors_usable("/proc/self/cgroup", "/sys/fs/cgroup");
    return n < WORKERS_DEFAULT_MAX ? n : WORKERS_DEFAULT_MAX;
}

/* Models and clients take descriptors. Half of them are for what clients send, the others for connections and models.
 */
static void share_descriptors(struct quota_limits *limits)
{
    const uint64_t limit = descriptors_raise_limit();
    if (limit > 0)
        limits->all[QUOTA_DESCRIPTORS] = limit / 2;
}

static void first_work(struct work *work)
{
    (void)work;
    gguf_prepare();
}

static void first_worked(struct work *work)
{
    (void)work;
}

/* A thread that waits until all are there. */
static void *waits(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* libuv aborts if it cannot start its threads. So as many threads are started here first, with the same default size of
 * a stack. If processes or address space are missing, the daemon can say so. Returns 0 or a negative errno.
 */
static int workers_try(unsigned n)
{
    pthread_t *threads = calloc(n, sizeof(*threads));
    if (!threads)
        return -ENOMEM;
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    unsigned begun = 0;
    int error = 0;
    pthread_mutex_lock(&gate);
    while (begun < n && (error = pthread_create(&threads[begun], NULL, waits, &gate)) == 0)
        begun++;
    pthread_mutex_unlock(&gate);
    for (unsigned i = 0; i < begun; i++)
        pthread_join(threads[i], NULL);
    free(threads);
    if (error)
        log_error(
            "cannot start: only %u of %u workers could be started: %s; see --workers, ulimit -u and -v, TasksMax=",
            begun, n, strerror(error));
    return -error;
}

/* Starts the threads of the work queue, and allocates the buffer for headers, so that the first load need not wait. */
static int daemon_workers(struct daemon *daemon)
{
    char threads[16];
    snprintf(threads, sizeof(threads), "%u", daemon->server.core.workers);
    setenv("UV_THREADPOOL_SIZE", threads, 1);
    int r = workers_try(daemon->server.core.workers);
    if (r < 0)
        return r;
    struct core *core = &daemon->server.core;
    r = workers_begin(core->queue, core->workers);
    if (r == 0)
        worker_queue(core->queue, &daemon->first_work, NULL, first_work, first_worked);
    return r;
}

static bool daemon_hangs(void *context, uint64_t since_before)
{
    const struct daemon *daemon = context;
    const struct devices *devices = &daemon->server.devices;
    for (size_t i = 0; i < devices->n; i++)
        if (!atomic_load(&devices->devices[i]->hung) &&
            loads_hang(&daemon->server.loads, devices->devices[i], since_before))
            return true;
    return survey_hangs(daemon->server.survey, since_before);
}

static uint64_t daemon_steps(void *context)
{
    const struct daemon *daemon = context;
    return daemon->server.core.steps;
}

/* Whether all host memory that models may take may be locked. 0 or -EPERM. */
static int lock_check(const struct daemon *daemon, const struct options *options)
{
    const uint64_t budget = devices_host(&daemon->server.devices)->budget, limit = lock_limit_raise();
    char needed[BYTES_TEXT_SIZE], most[BYTES_TEXT_SIZE];
    if (limit >= budget && limit - budget >= options->host_cache)
        return 0;
    log_error("cannot start: --lock-memory: models may take %s of host memory, of which %s may be locked; "
              "see LimitMEMLOCK=, ulimit -l, --budget and --host-cache",
              bytes_text(needed, (double)budget + (double)options->host_cache, ""),
              bytes_text(most, (double)limit, ""));
    return -EPERM;
}

/* All devices are there. */
static int daemon_complete(struct daemon *daemon)
{
    const struct options *options = daemon->options;
    if (options->host_cache_pinned && options->host_cache > 0)
        host_cache_pin(&daemon->server.residency.cache);
    int r = 0;
    if (options->preload)
        r = preload_new(&daemon->server.loads, options->preload, options->preload_layout, &daemon->preload);
    if (r < 0)
        return r;
    if (daemon->preload)
        preload_look(daemon->preload);
    log_write_fields(LOG_LEVEL_NOTICE, &(const struct log_fields){.id = MESSAGE_DAEMON_READY},
                     "rocmforged " ROCMFORGE_VERSION " ready, %u workers", daemon->server.core.workers);
    daemon->ready = true;
    (void)status_new(daemon);
    service_ready(daemon->status);
    return 0;
}

/* The GPUs are there that models of before the restart may be on. */
static void gpus_opened(void *context, int status)
{
    struct daemon *daemon = context;
    if (daemon->server.core.stopping)
        return;
    if (status == 0) {
        keep_settle(daemon->keep);
        status = daemon_complete(daemon);
    }
    if (status < 0)
        _exit(EXIT_FAILURE); /* it is logged why. The store has the models still, and who is attached reads on */
    daemon->server.api.awaits = false;
    conns_release(daemon->server.conns);
    if (daemon->look_later)
        hung_up(&daemon->hangup, SIGHUP);
}

/* The devices, and what the store had. If it had something, models on GPUs can be attached to before the drivers of
 * these have started. */
static int daemon_resume(struct daemon *daemon)
{
    const struct options *options = daemon->options;
    struct server *server = &daemon->server;
    const unsigned workers = server->core.workers;
    const bool awaits =
        daemon->handed.n_kept > 0 && modules_want_gpus(options) && options->export_wish != EXPORT_WISH_IPC;
    int r = awaits ? 0 : modules_open_gpus(&server->devices, options, workers);
    if (r == 0)
        r = modules_open_host(&server->devices, options, workers);
    if (r == 0 && options->lock_memory)
        r = lock_check(daemon, options);
    if (r == 0)
        r = keep_new(&server->residency, options->grace, &daemon->keep);
    if (r < 0)
        return r;
    keep_resume(daemon->keep, daemon->handed.kept, daemon->handed.n_kept, awaits);
    free(daemon->handed.kept);
    server->api.awaits = awaits;
    return 0;
}

static int daemon_begin(struct daemon *daemon, const struct options *options)
{
    daemon->options = options;
    const unsigned workers = options->workers ? options->workers : default_workers();
    const struct server_config config = {
        .limits = options->limits,
        .host_cache = options->host_cache,
        .keep_freed = options->keep_freed,
        .page_cache = options->page_cache,
        .lock_memory = options->lock_memory,
        .workers = workers,
        .device_timeout = options->device_timeout,
        .has_processor = workers < uv_available_parallelism(),
    };
    const struct service_owner owner = {.hangs = daemon_hangs, .steps = daemon_steps, .context = daemon};
    int r = server_init(&daemon->server, &daemon->loop, &config);
    if (r == 0)
        r = signals_begin(daemon);
    if (r == 0)
        r = service_new(&daemon->loop, &owner, &daemon->service);
    if (r < 0) {
        log_error("cannot start: %s", uv_strerror(r));
        return r;
    }
    daemon->server.core.changed = tell_status;
    r = daemon_workers(daemon);
    if (r == 0)
        r = daemon_resume(daemon);
    if (r == 0)
        r = listen_begin(daemon, options);
    if (r == 0)
        r = changes_new(&daemon->server.loads, &daemon->server.verifies, &daemon->changes);
    if (r < 0)
        return r;
    if (!daemon->server.api.awaits)
        return daemon_complete(daemon);
    return opening_begin(&daemon->server.core, &daemon->server.devices, options, gpus_opened, daemon);
}

int main(int argc, char **argv)
{
    if (streams_open() < 0)
        return EXIT_FAILURE; /* there is no standard error to write to */
    log_open();
    last_words_begin();
    struct options options;
    int r = options_parse(argc, argv, &options);
    if (r <= 0)
        return r < 0 ? 2 : EXIT_SUCCESS;
    log_set_level(options.log_level);
    modules_prepare();
    share_descriptors(&options.limits);

    static struct daemon daemon;
    r = service_take(&daemon.handed);
    if (r < 0) {
        log_error("cannot start: what the service manager handed over: %s", strerror(-r));
        return EXIT_FAILURE;
    }
    r = uv_loop_init(&daemon.loop);
    if (r < 0) {
        log_error("cannot start: %s", uv_strerror(r));
        return EXIT_FAILURE;
    }
    if (daemon_begin(&daemon, &options) < 0)
        _exit(EXIT_FAILURE); /* no client was accepted yet; the kernel ends the workers and frees everything */
    uv_run(&daemon.loop, UV_RUN_DEFAULT);
    r = uv_loop_close(&daemon.loop);
    assert(r == 0); /* every handle was closed */
    if (daemon.server.threads_hang)
        _exit(EXIT_SUCCESS);
    return EXIT_SUCCESS;
}
