#include "daemon/options.h"

#include "daemon/device/devices.h"
#include "daemon/keep/keep.h"
#include "daemon/memory/spared.h"
#include "daemon/model/layout.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKERS_MAX        1024
#define GRACE_MAX          3600

#define DEVICE_TIMEOUT_MAX 3600

/* Prints the help: the defaults are those that hold. */
static void usage(void)
{
    printf("Usage: rocmforged [OPTION]...\n"
           "Keeps the weights of language models in memory and shares them with other processes.\n"
           "\n"
           "  --socket PATH       listen here; default: the socket that systemd hands over,\n"
           "                      else /run/rocmforge/io.rocmforge for root, else\n"
           "                      $XDG_RUNTIME_DIR/rocmforge/io.rocmforge\n"
           "  --device KIND       auto (a GPU if one answers, else the host)");
    for (size_t i = 0; device_kinds[i]; i++)
        printf(", %s", device_kinds[i]);
    printf("\n"
           "  --budget SIZE|PCT%%  memory of each device that models may take; default %d%%\n"
           "                      of the host's, %d%% of a GPU's\n",
           HOST_PERCENT_DEFAULT, GPU_PERCENT_DEFAULT);
    printf("  --workers N         threads that read and decode; default one for each processor,\n"
           "                      at most %d\n",
           WORKERS_DEFAULT_MAX);
    printf("  --staging SIZE      pinned memory for uploads, for each GPU; default at most\n"
           "                      %dMi, less where the processors' caches are small\n"
           "  --streams N         streams for each GPU, the first for copies; default %d\n"
           "  --export KIND       how clients get a GPU's memory: fd, ipc, or auto (fd where\n"
           "                      the GPU can, else ipc)\n",
           DEVICE_STAGING_DEFAULT_MIB, DEVICE_STREAMS_DEFAULT);
    printf("  --preload DIR       load and pin every model linked there; again on SIGHUP\n"
           "  --preload-layout LAYOUT\n"
           "                      in which they are in memory: vllm or hf; default: as in\n"
           "                      their files\n"
           "  --page-cache WAY    auto: what is not in the page cache is read past it (default);\n"
           "                      keep: it goes into the page cache; drop: as auto, and files of\n"
           "                      models that are resident are dropped from it\n"
           "  --grace SECONDS     how long models that outlived a restart are held for clients\n"
           "                      to come back; default %d\n"
           "  --device-timeout SECONDS\n"
           "                      how long a call of a GPU's driver may take before the GPU\n"
           "                      counts as failed; default %u\n"
           "  --host-cache SIZE   host memory that keeps models which a GPU has no room for\n"
           "  --host-cache-pinned take all of that memory at the start, and let GPUs copy to and\n"
           "                      from it by themselves\n"
           "  --keep-freed SECONDS\n"
           "                      how long a GPU's memory of unloaded models is kept for the\n"
           "                      next load before the driver gets it back; default %d\n"
           "  --lock-memory       host memory of models is never swapped out\n"
           "  --user-connections N, --user-loads N, --user-leases N, --user-models N,\n"
           "  --user-bytes SIZE   what one user may have at a time; default %d, %d, %d, %d,\n"
           "                      and as much as the budget; root and the daemon's own user\n"
           "                      are not bounded\n"
           "  --user-memory SIZE  what one user may have the daemon keep of requests, calls\n"
           "                      and replies; default %dMi\n",
           KEEP_GRACE_DEFAULT, DEVICE_TIMEOUT_DEFAULT, SPARED_SECONDS_DEFAULT, QUOTA_CONNECTIONS_DEFAULT,
           QUOTA_LOADS_DEFAULT, QUOTA_LEASES_DEFAULT, QUOTA_MODELS_DEFAULT, QUOTA_MEMORY_DEFAULT_MIB);
    printf("  --log-level LEVEL   error, warning, notice, info (default), debug\n"
           "  --help, --version\n"
           "\n"
           "SIZE is a number of bytes, or takes a unit: k, M, G, T are powers of 1000,\n"
           "Ki, Mi, Gi, Ti powers of 1024.\n");
}

/* The factor that a unit stands for, 1 for none; 0: it is no unit. */
static uint64_t unit_factor(const char *unit)
{
    static const char letters[] = "kMGT";
    const char *letter = *unit ? strchr(letters, *unit == 'K' ? 'k' : *unit) : NULL;
    uint64_t factor = 1;
    if (letter) {
        const bool binary = *++unit == 'i';
        for (ptrdiff_t i = 0; i <= letter - letters; i++)
            factor *= binary ? 1024 : 1000;
        unit += binary;
    }
    unit += *unit == 'B';
    return *unit ? 0 : factor;
}

int options_size_parse(const char *text, uint64_t *ret)
{
    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    uint64_t factor = errno ? 0 : unit_factor(end);
    if (factor == 0 || __builtin_mul_overflow(value, factor, &value))
        return -EINVAL;
    *ret = value;
    return 0;
}

int options_budget_parse(const char *text, struct budget *ret)
{
    size_t n = strlen(text);
    if (n > 1 && text[n - 1] == '%') {
        char *end;
        errno = 0;
        unsigned long percent = text[0] >= '0' && text[0] <= '9' ? strtoul(text, &end, 10) : 0;
        if (errno || percent < 1 || percent > 100 || end != text + n - 1)
            return -EINVAL;
        *ret = (struct budget){.set = true, .percent = (unsigned)percent};
        return 0;
    }
    uint64_t bytes;
    if (options_size_parse(text, &bytes) < 0 || bytes == 0)
        return -EINVAL;
    *ret = (struct budget){.set = true, .bytes = bytes};
    return 0;
}

static int number_parse(const char *text, unsigned max, unsigned *ret)
{
    uint64_t value;
    if (options_size_parse(text, &value) < 0 || value < 1 || value > max)
        return -EINVAL;
    *ret = (unsigned)value;
    return 0;
}

/* A number from 0 on. */
static int seconds_parse(const char *text, unsigned max, unsigned *ret)
{
    if (strcmp(text, "0") != 0)
        return number_parse(text, max, ret);
    *ret = 0;
    return 0;
}

/* As number_parse(), for the limits of a user. */
static int limit_parse(const char *text, uint64_t *ret)
{
    unsigned value;
    if (number_parse(text, UINT_MAX, &value) < 0)
        return -EINVAL;
    *ret = value;
    return 0;
}

static int export_parse(const char *text, enum export_wish *ret)
{
    if (strcmp(text, "auto") == 0)
        *ret = EXPORT_WISH_AUTO;
    else if (strcmp(text, "fd") == 0)
        *ret = EXPORT_WISH_FD;
    else if (strcmp(text, "ipc") == 0)
        *ret = EXPORT_WISH_IPC;
    else
        return -EINVAL;
    return 0;
}

static int page_cache_parse(const char *text, enum page_cache *ret)
{
    if (strcmp(text, "auto") == 0)
        *ret = PAGE_CACHE_AUTO;
    else if (strcmp(text, "keep") == 0)
        *ret = PAGE_CACHE_KEEP;
    else if (strcmp(text, "drop") == 0)
        *ret = PAGE_CACHE_DROP;
    else
        return -EINVAL;
    return 0;
}

static int one_of(const char *text, const char *const *choices)
{
    for (; *choices; choices++)
        if (strcmp(text, *choices) == 0)
            return 0;
    return -EINVAL;
}

enum {
    SOCKET = 256,
    DEVICE,
    BUDGET,
    WORKERS,
    STAGING,
    STREAMS,
    EXPORT,
    PRELOAD,
    PRELOAD_LAYOUT,
    PAGE_CACHE,
    GRACE,
    DEVICE_TIMEOUT,
    HOST_CACHE,
    HOST_CACHE_PINNED,
    KEEP_FREED,
    LOCK_MEMORY,
    USER_CONNECTIONS,
    USER_LOADS,
    USER_LEASES,
    USER_MODELS,
    USER_BYTES,
    USER_MEMORY,
    LOG_LEVEL,
    HELP,
    VERSION
};

static const struct option known[] = {
    {"socket", required_argument, NULL, SOCKET},
    {"device", required_argument, NULL, DEVICE},
    {"budget", required_argument, NULL, BUDGET},
    {"workers", required_argument, NULL, WORKERS},
    {"staging", required_argument, NULL, STAGING},
    {"streams", required_argument, NULL, STREAMS},
    {"export", required_argument, NULL, EXPORT},
    {"preload", required_argument, NULL, PRELOAD},
    {"preload-layout", required_argument, NULL, PRELOAD_LAYOUT},
    {"page-cache", required_argument, NULL, PAGE_CACHE},
    {"grace", required_argument, NULL, GRACE},
    {"device-timeout", required_argument, NULL, DEVICE_TIMEOUT},
    {"host-cache", required_argument, NULL, HOST_CACHE},
    {"host-cache-pinned", no_argument, NULL, HOST_CACHE_PINNED},
    {"keep-freed", required_argument, NULL, KEEP_FREED},
    {"lock-memory", no_argument, NULL, LOCK_MEMORY},
    {"user-connections", required_argument, NULL, USER_CONNECTIONS},
    {"user-loads", required_argument, NULL, USER_LOADS},
    {"user-leases", required_argument, NULL, USER_LEASES},
    {"user-models", required_argument, NULL, USER_MODELS},
    {"user-bytes", required_argument, NULL, USER_BYTES},
    {"user-memory", required_argument, NULL, USER_MEMORY},
    {"log-level", required_argument, NULL, LOG_LEVEL},
    {"help", no_argument, NULL, HELP},
    {"version", no_argument, NULL, VERSION},
    {0},
};

/* Applies an option. value: NULL if it takes none. -EINVAL. */
static int apply(int option, const char *value, struct options *options)
{
    switch (option) {
    case SOCKET:
        options->socket = value;
        return value[0] ? 0 : -EINVAL;
    case DEVICE:
        options->device = value;
        return strcmp(value, "auto") == 0 ? 0 : one_of(value, device_kinds);
    case BUDGET:
        return options_budget_parse(value, &options->budget);
    case WORKERS:
        return number_parse(value, WORKERS_MAX, &options->workers);
    case STAGING:
        return options_size_parse(value, &options->staging);
    case STREAMS:
        return number_parse(value, DEVICE_STREAMS_MAX, &options->streams);
    case EXPORT:
        return export_parse(value, &options->export_wish);
    case PRELOAD:
        options->preload = value;
        return 0;
    case PRELOAD_LAYOUT:
        options->preload_layout = value;
        return one_of(value, layout_names);
    case PAGE_CACHE:
        return page_cache_parse(value, &options->page_cache);
    case GRACE:
        return number_parse(value, GRACE_MAX, &options->grace);
    case DEVICE_TIMEOUT:
        return number_parse(value, DEVICE_TIMEOUT_MAX, &options->device_timeout);
    case HOST_CACHE:
        return options_size_parse(value, &options->host_cache);
    case HOST_CACHE_PINNED:
        options->host_cache_pinned = true;
        return 0;
    case KEEP_FREED:
        return seconds_parse(value, SPARED_SECONDS_MAX, &options->keep_freed);
    case LOCK_MEMORY:
        options->lock_memory = true;
        return 0;
    case USER_CONNECTIONS:
        return limit_parse(value, &options->limits.most[QUOTA_CONNECTIONS]);
    case USER_LOADS:
        return limit_parse(value, &options->limits.most[QUOTA_LOADS]);
    case USER_LEASES:
        return limit_parse(value, &options->limits.most[QUOTA_LEASES]);
    case USER_MODELS:
        return limit_parse(value, &options->limits.most[QUOTA_MODELS]);
    case USER_BYTES:
        return options_size_parse(value, &options->limits.most[QUOTA_BYTES]);
    case USER_MEMORY:
        return options_size_parse(value, &options->limits.most[QUOTA_MEMORY]);
    case LOG_LEVEL:
        return log_level_parse(value, &options->log_level);
    default:
        return -EINVAL;
    }
}

int options_parse(int argc, char **argv, struct options *ret)
{
    struct options result = {.device = "auto",
                             .grace = KEEP_GRACE_DEFAULT,
                             .keep_freed = SPARED_SECONDS_DEFAULT,
                             .log_level = LOG_LEVEL_INFO,
                             .limits = QUOTA_DEFAULTS};
    int option, index = 0;
    while ((option = getopt_long(argc, argv, "h", known, &index)) >= 0) {
        if (option == 'h' || option == HELP) {
            usage();
            return 0;
        }
        if (option == VERSION) {
            puts("rocmforged " ROCMFORGE_VERSION);
            return 0;
        }
        if (option == '?') {
            fputs("Try 'rocmforged --help'.\n", stderr);
            return -EINVAL;
        }
        if (apply(option, optarg, &result) < 0) {
            fprintf(stderr, "rocmforged: --%s: '%s' is not valid\nTry 'rocmforged --help'.\n", known[index].name,
                    optarg);
            return -EINVAL;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "rocmforged: '%s': no argument is taken\nTry 'rocmforged --help'.\n", argv[optind]);
        return -EINVAL;
    }
    *ret = result;
    return 1;
}
