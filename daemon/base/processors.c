#include "daemon/base/processors.h"

#include "daemon/base/cgroup_walk.h"
#include "proto/min.h"

#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_SIZE 256
/* Caches of one processor: index0 and so on. */
#define INDEX_MAX 10u

/* The first line of a file, without its end. */
static bool read_line(char ret[TEXT_SIZE], const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool read_line(char ret[TEXT_SIZE], const char *format, ...)
{
    char path[PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(path, sizeof(path), format, arguments);
    va_end(arguments);
    FILE *file = n > 0 && n < (int)sizeof(path) ? fopen(path, "re") : NULL;
    if (!file)
        return false;
    const bool there = fgets(ret, TEXT_SIZE, file) != NULL;
    fclose(file);
    if (there)
        ret[strcspn(ret, "\n")] = '\0';
    return there;
}

/* --- how many --- */

/* context: the fewest processors so far, an unsigned. A group's quota is worth so many, rounded up. */
static void visit_quota(void *context, const char *folder, bool unified)
{
    unsigned *fewest = context;
    char line[TEXT_SIZE];
    uint64_t quota, period;
    (void)unified;
    if (!read_line(line, "%s/cpu.max", folder) || sscanf(line, "%" SCNu64 " %" SCNu64, &quota, &period) != 2 ||
        period == 0)
        return;
    const uint64_t n = quota / period + (quota % period != 0);
    *fewest = (unsigned)min_u64(n, *fewest);
}

unsigned processors_usable(const char *groups, const char *root)
{
    cpu_set_t set;
    unsigned n = sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
    cgroup_walk(groups, root, NULL, visit_quota, &n);
    return n > 0 ? n : 1;
}

/* --- their caches --- */

/* "491520K" */
static uint64_t size_parse(const char *text)
{
    char *end;
    const uint64_t n = strtoull(text, &end, 10);
    return *end == 'K' ? n << 10 : *end == 'M' ? n << 20 : n;
}

/* The processor's cache of the highest level for data, if this processor is the first of `set` that shares it. */
static uint64_t cache_of(const char *root, unsigned cpu, const cpu_set_t *set)
{
    char line[TEXT_SIZE];
    unsigned long best = 0;
    unsigned best_index = 0;
    for (unsigned index = 0; index < INDEX_MAX; index++) {
        if (!read_line(line, "%s/cpu%u/cache/index%u/type", root, cpu, index) || strcmp(line, "Instruction") == 0)
            continue;
        if (!read_line(line, "%s/cpu%u/cache/index%u/level", root, cpu, index) || strtoul(line, NULL, 10) <= best)
            continue;
        best = strtoul(line, NULL, 10);
        best_index = index;
    }
    if (best == 0 || !read_line(line, "%s/cpu%u/cache/index%u/shared_cpu_list", root, cpu, best_index))
        return 0;
    char *at = line;
    while (*at >= '0' && *at <= '9') {
        const unsigned long first = strtoul(at, &at, 10);
        const unsigned long last = *at == '-' ? strtoul(at + 1, &at, 10) : first;
        for (unsigned long other = first; other <= last && other < cpu; other++)
            if (other < CPU_SETSIZE && CPU_ISSET(other, set))
                return 0; /* it counts there */
        at += *at == ',';
    }
    return read_line(line, "%s/cpu%u/cache/index%u/size", root, cpu, best_index) ? size_parse(line) : 0;
}

uint64_t processors_cache(const char *root, const cpu_set_t *processors)
{
    cpu_set_t own;
    if (!processors && sched_getaffinity(0, sizeof(own), &own) < 0)
        return 0;
    const cpu_set_t *set = processors ? processors : &own;
    uint64_t bytes = 0;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, set))
            bytes += cache_of(root, cpu, set);
    return bytes;
}
