#include "daemon/options.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKERS_MAX 1024

static const char usage[] = "Usage: rocmforged [OPTION]...\n"
                            "Keeps the weights of language models in memory and shares them with other processes.\n"
                            "\n"
                            "  --socket PATH       listen here; default: the socket that systemd hands over,\n"
                            "                      else /run/rocmforge/io.rocmforge for root, else\n"
                            "                      $XDG_RUNTIME_DIR/rocmforge/io.rocmforge\n"
                            "  --device KIND       auto (a GPU if one answers, else the host), host, hip, cuda\n"
                            "  --budget SIZE|PCT%  memory of each device that models may take; default 80%\n"
                            "                      of the host's, 95% of a GPU's\n"
                            "  --workers N         threads that read and decode; default one for each processor,\n"
                            "                      at most 14\n"
                            "  --staging SIZE      pinned memory for uploads, for each GPU\n"
                            "  --streams N         streams for each GPU, the first for copies; default 2\n"
                            "  --preload DIR       load and pin every model linked there; again on SIGHUP\n"
                            "  --host-cache SIZE   host memory that keeps models which a GPU has no room for\n"
                            "  --user-connections N, --user-loads N, --user-leases N, --user-bytes SIZE\n"
                            "                      what one user may have at a time; default 256, 16, 4096,\n"
                            "                      and as much as the budget; root and the daemon's own user\n"
                            "                      are not bounded\n"
                            "  --log-level LEVEL   error, warning, notice, info (default), debug\n"
                            "  --help, --version\n"
                            "\n"
                            "SIZE takes K, M, G and T for powers of 1024.\n";

int options_size_parse(const char *text, uint64_t *ret)
{
    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno)
        return -EINVAL;
    static const char units[] = "KMGT";
    if (*end) {
        const char *unit = strchr(units, *end);
        if (!unit || end[1] || value > (ULLONG_MAX >> (10 * (unit - units + 1))))
            return -EINVAL;
        value <<= 10 * (unit - units + 1);
    }
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

static int one_of(const char *text, const char *const *choices)
{
    for (; *choices; choices++)
        if (strcmp(text, *choices) == 0)
            return 0;
    return -EINVAL;
}

int options_parse(int argc, char **argv, struct options *ret)
{
    enum {
        SOCKET = 256,
        DEVICE,
        BUDGET,
        WORKERS,
        STAGING,
        STREAMS,

        PRELOAD,
        HOST_CACHE,
        USER_CONNECTIONS_,
        USER_LOADS_,
        USER_LEASES_,
        USER_BYTES_,
        LOG_LEVEL,
        HELP,
        VERSION
    };
    static const struct option options[] = {
        {"socket", required_argument, NULL, SOCKET},
        {"device", required_argument, NULL, DEVICE},
        {"budget", required_argument, NULL, BUDGET},
        {"workers", required_argument, NULL, WORKERS},
        {"staging", required_argument, NULL, STAGING},
        {"streams", required_argument, NULL, STREAMS},
        {"preload", required_argument, NULL, PRELOAD},
        {"host-cache", required_argument, NULL, HOST_CACHE},
        {"user-connections", required_argument, NULL, USER_CONNECTIONS_},
        {"user-loads", required_argument, NULL, USER_LOADS_},
        {"user-leases", required_argument, NULL, USER_LEASES_},
        {"user-bytes", required_argument, NULL, USER_BYTES_},
        {"log-level", required_argument, NULL, LOG_LEVEL},
        {"help", no_argument, NULL, HELP},
        {"version", no_argument, NULL, VERSION},
        {0},
    };
    static const char *const devices[] = {"auto", "host", "hip", "cuda", NULL};
    struct options result = {.device = "auto",
                             .log_level = LOG_LEVEL_INFO,
                             .limits = {USER_CONNECTIONS, USER_LOADS, USER_LEASES, USER_BYTES}};
    for (;;) {
        int index = 0;
        int option = getopt_long(argc, argv, "h", options, &index);
        if (option < 0)
            break;
        int r = 0;
        unsigned streams;
        switch (option) {
        case SOCKET:
            result.socket = optarg;
            break;
        case DEVICE:
            result.device = optarg;
            r = one_of(optarg, devices);
            break;
        case BUDGET:
            r = options_budget_parse(optarg, &result.budget);
            break;
        case WORKERS:
            r = number_parse(optarg, WORKERS_MAX, &result.workers);
            break;
        case STAGING:
            r = options_size_parse(optarg, &result.staging);
            break;
        case STREAMS:
            result.streams = optarg;
            r = number_parse(optarg, 64, &streams);
            break;
        case PRELOAD:
            result.preload = optarg;
            break;
        case HOST_CACHE:
            r = options_size_parse(optarg, &result.host_cache);
            break;
        case USER_CONNECTIONS_:
            r = number_parse(optarg, UINT_MAX, &result.limits.connections);
            break;
        case USER_LOADS_:
            r = number_parse(optarg, UINT_MAX, &result.limits.loads);
            break;
        case USER_LEASES_:
            r = number_parse(optarg, UINT_MAX, &result.limits.leases);
            break;
        case USER_BYTES_:
            r = options_size_parse(optarg, &result.limits.bytes);
            break;
        case LOG_LEVEL:
            r = log_level_parse(optarg, &result.log_level);
            break;
        case 'h':
        case HELP:
            fputs(usage, stdout);
            return 0;
        case VERSION:
            puts("rocmforged " ROCMFORGE_VERSION);
            return 0;
        default:
            fputs("Try 'rocmforged --help'.\n", stderr);
            return -EINVAL;
        }
        if (r < 0) {
            fprintf(stderr, "rocmforged: --%s: '%s' is not valid\nTry 'rocmforged --help'.\n", options[index].name,
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
