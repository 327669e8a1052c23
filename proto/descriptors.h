/* How many files this process may have open. */
#pragma once

#include <stdint.h>
#include <sys/resource.h>

/* Raises the soft limit to the hard one: it is low only for programs that use select(). Returns the limit; 0: it is not
 * known. Main thread, at the start. */
static inline uint64_t descriptors_raise_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 0;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}
