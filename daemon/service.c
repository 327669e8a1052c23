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

int service_socket(void)
{
    int n = sd_listen_fds(1);
    if (n == 0)
        return -ENOENT;
    if (n < 0)
        return n;
    if (n > 1 || sd_is_socket_unix(SD_LISTEN_FDS_START, SOCK_STREAM, 1, NULL, 0) <= 0)
        return -EINVAL;
    return SD_LISTEN_FDS_START;
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
