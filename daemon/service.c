#include "daemon/service.h"

#include "daemon/base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

/* How often systemd is asked to wait longer, and how much longer that is: as long as TimeoutStopSec= of the unit. */
#define EXTEND_EVERY_MS 1000u
#define EXTEND_USEC     "30000000"

struct service {
    uv_timer_t watchdog;
    uv_timer_t extend; /* while the daemon ends */
    unsigned open;     /* timers that are not closed yet */
    struct service_owner owner;
    uint64_t patience; /* nanoseconds for which something may hang */
    bool hangs;        /* the watchdog was not fed the last time */
    uint64_t steps;    /* when systemd was last asked to wait longer */
};

static void watchdog_feed(uv_timer_t *timer)
{
    struct service *service = timer->data;
    const uint64_t now = uv_hrtime();
    const bool hung = service->hangs;
    service->hangs = now > service->patience && service->owner.hangs(service->owner.context, now - service->patience);
    if (!service->hangs)
        sd_notify(0, "WATCHDOG=1");
    else if (!hung)
        log_write_fields(LOG_LEVEL_ERROR, &(const struct log_fields){.id = MESSAGE_DRIVER_HANGS},
                         "a device's driver has not answered for %.0f s: the watchdog is not fed any more",
                         (double)service->patience / 1e9);
}

static void extend(uv_timer_t *timer)
{
    struct service *service = timer->data;
    const uint64_t steps = service->owner.steps(service->owner.context);
    if (steps != service->steps)
        sd_notify(0, "EXTEND_TIMEOUT_USEC=" EXTEND_USEC);
    service->steps = steps;
}

int service_new(uv_loop_t *loop, const struct service_owner *owner, struct service **ret)
{
    struct service *service = calloc(1, sizeof(*service));
    if (!service)
        return -ENOMEM;
    int r = uv_timer_init(loop, &service->watchdog);
    if (r == 0)
        r = uv_timer_init(loop, &service->extend);
    if (r < 0) {
        free(service);
        return r;
    }
    service->open = 2;
    service->owner = *owner;
    service->watchdog.data = service->extend.data = service;
    uint64_t microseconds;
    if (sd_watchdog_enabled(0, &microseconds) > 0) {
        service->patience = microseconds * 1000;
        uint64_t interval = microseconds / 2000; /* half the time, in milliseconds */
        uv_timer_start(&service->watchdog, watchdog_feed, 0, interval ? interval : 1);
    }
    *ret = service;
    return 0;
}

static void service_closed(uv_handle_t *handle)
{
    struct service *service = handle->data;
    if (--service->open == 0)
        free(service);
}

void service_close(struct service *service)
{
    if (!service)
        return;
    uv_close((uv_handle_t *)&service->watchdog, service_closed);
    uv_close((uv_handle_t *)&service->extend, service_closed);
}

static void free_names(char **names)
{
    for (size_t i = 0; names && names[i]; i++)
        free(names[i]);
    free(names);
}

/* Takes one more socket that was handed over. Only one is wanted. */
static void take_socket(struct service_handed *handed, int fd)
{
    const bool good = handed->socket == -ENOENT && sd_is_socket_unix(fd, SOCK_STREAM, 1, NULL, 0) > 0;
    handed->socket = good ? fd : -EINVAL;
}

int service_take(struct service_handed *ret)
{
    char **names = NULL;
    const int n = sd_listen_fds_with_names(1, &names);
    *ret = (struct service_handed){.socket = -ENOENT};
    if (n < 0)
        return n;
    ret->kept = calloc(n ? (size_t)n : 1, sizeof(*ret->kept));
    for (int i = 0; i < n && ret->kept; i++) {
        const int fd = SD_LISTEN_FDS_START + i;
        struct store_entry *entry = &ret->kept[ret->n_kept];
        if (names && store_name_parse(names[i], &entry->name)) {
            entry->fd = fd;
            ret->n_kept++;
        } else
            take_socket(ret, fd);
    }
    free_names(names);
    return ret->kept ? 0 : -ENOMEM;
}

void service_ready(const char *status)
{
    sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

void service_stopping(struct service *service)
{
    service->steps = service->owner.steps(service->owner.context);
    uv_timer_start(&service->extend, extend, EXTEND_EVERY_MS, EXTEND_EVERY_MS);
    sd_notify(0, "STOPPING=1\nSTATUS=Stopping");
}

void service_status(const char *status)
{
    sd_notifyf(0, "STATUS=%s", status);
}
