#include "daemon/service.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

struct service {
    uv_timer_t watchdog;
};

static void watchdog_feed(uv_timer_t *timer)
{
    (void)timer;
    sd_notify(0, "WATCHDOG=1");
}

int service_new(uv_loop_t *loop, struct service **ret)
{
    struct service *service = calloc(1, sizeof(*service));
    if (!service)
        return -ENOMEM;
    int r = uv_timer_init(loop, &service->watchdog);
    if (r < 0) {
        free(service);
        return r;
    }
    service->watchdog.data = service;
    uint64_t microseconds;
    if (sd_watchdog_enabled(0, &microseconds) > 0) {
        uint64_t interval = microseconds / 2000; /* half the time, in milliseconds */
        uv_timer_start(&service->watchdog, watchdog_feed, 0, interval ? interval : 1);
    }
    *ret = service;
    return 0;
}

static void service_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void service_close(struct service *service)
{
    if (service)
        uv_close((uv_handle_t *)&service->watchdog, service_closed);
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

void service_stopping(void)
{
    sd_notify(0, "STOPPING=1\nSTATUS=Stopping");
}

void service_status(const char *status)
{
    sd_notifyf(0, "STATUS=%s", status);
}
