/* The time, for what is measured. */
#pragma once

#include <time.h>

/* Seconds since some moment in the past. */
static inline double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}
