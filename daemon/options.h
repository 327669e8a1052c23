/* The daemon's command line. */
#pragma once

#include "daemon/base/log.h"
#include "daemon/base/quota.h"
#include "daemon/device/device.h"
#include "daemon/load/cold.h"

#include <stdbool.h>
#include <stdint.h>

/* The default number of workers is at most this: twelve that read, and one for a load's other steps. More were no
 * faster on a machine of 16 processors, see docs/performance.md. */
#define WORKERS_DEFAULT_MAX 13

/* The default budget, in percent of a device's memory. The rest is for other programs, and for what the driver takes
 * beside the arenas. */
#define HOST_PERCENT_DEFAULT 80
#define GPU_PERCENT_DEFAULT  95

/* Bytes, or a percentage of a device's memory. */
struct budget {
    bool set;
    uint64_t bytes;   /* 0: `percent` applies */
    unsigned percent; /* 1 to 100 */
};

/* Seconds. Less than the unit's WatchdogSec=: a GPU that hangs is lost before systemd restarts the daemon. */
#define DEVICE_TIMEOUT_DEFAULT 20u

struct options {
    const char *socket; /* NULL: systemd's, or the default */
    const char *device; /* "auto", or one of device_kinds */
    struct budget budget;
    unsigned workers; /* 0: one for each processor that it may use, at most WORKERS_DEFAULT_MAX */
    uint64_t staging; /* bytes; 0: by the processors' caches */
    unsigned streams; /* 0: the device's choice */
    enum export_wish export_wish;
    const char *preload;        /* a folder, or NULL */
    const char *preload_layout; /* one of layout_names, or NULL */
    enum page_cache page_cache;
    unsigned grace;          /* seconds; see keep.h */
    unsigned device_timeout; /* seconds; 0: DEVICE_TIMEOUT_DEFAULT */
    uint64_t host_cache;     /* bytes; 0: none */
    bool host_cache_pinned;
    unsigned keep_freed; /* seconds; see spared.h */
    bool lock_memory;
    struct quota_limits limits;
    enum log_level log_level;
};

/* Returns 1 with *ret set; 0 after --help or --version were answered: the program ends with status 0; -EINVAL after the
 * error was written to standard error. Strings are borrowed from argv. */
int options_parse(int argc, char **argv, struct options *ret);

/* A size in bytes: "4096", "512k", "600M" or "600MB" in powers of 1000, "512Ki", "2Mi" or "2MiB" in powers of 1024.
 * Returns 0 or -EINVAL. */
int options_size_parse(const char *text, uint64_t *ret);

/* A size, or a share: "80%". Returns 0 or -EINVAL. */
int options_budget_parse(const char *text, struct budget *ret);
