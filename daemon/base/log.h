/* Says what an administrator wants to know, on standard error: with the journal's priorities where that reads it, with
 * the level's name otherwise.
 *
 * Only the caller that gives up logs, once, with ids ("conn=12 model=llama"). errno is kept. Any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARNING,
    LOG_LEVEL_NOTICE,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
};

/* Finds out whether the journal reads standard error. Before the first line. */
void log_open(void);

/* Nothing above this level is said. The default is LOG_LEVEL_INFO. */
void log_set_level(enum log_level level);

/* "error", "warning", "notice", "info", "debug". Returns 0 or -EINVAL. */
int log_level_parse(const char *name, enum log_level *ret);

/* Control characters in the result become '?', so that no message can forge another line. */
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What one kind of line about clients may fill the log with, all clients together: so many lines, in so much time. A
 * client causes thousands in a second, by mistake or not. */
#define LOG_CLIENT_LINES 100u
#define LOG_CLIENT_NS    10000000000u

/* How much of that is spent. */
struct log_share {
    uint64_t began; /* when the time began */
    unsigned said;
    unsigned held; /* lines that were left out */
};

/* Whether a line may be said at `now`. *ret_held: how many were left out since the last that was; 0 unless that may be
 * said now. */
bool log_share_take(struct log_share *share, uint64_t now, unsigned *ret_held);

/* As log_write(), for lines that a client causes. Loop thread only. */
void log_write_client(struct log_share *share, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_client(level, ...)                                                                                         \
    do {                                                                                                               \
        static struct log_share share;                                                                                 \
        log_write_client(&share, level, __VA_ARGS__);                                                                  \
    } while (0)

#define log_error(...)   log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...)  log_write(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...)    log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)
