/* Times that clients give, in seconds, as uv_hrtime() counts. */
#pragma once

#include <stdint.h>

/* Longer than any daemon runs. */
#define SECONDS_MAX 1e9

/* Nanoseconds, of at most SECONDS_MAX. seconds: not negative. */
static inline uint64_t seconds_to_ns(double seconds)
{
    return (uint64_t)((seconds < SECONDS_MAX ? seconds : SECONDS_MAX) * 1e9);
}
