/* Writes what an administrator needs to know to standard error. Lines begin with the journal's priority if the journal
 * reads them, else with the level's name. If the journal reads standard error, they are sent to it with their fields
 * instead, where it takes that.
 *
 * Only the caller that gives up logs, once, with ids ("conn=12 model=llama"). errno is kept. Any thread. */
#pragma once

#include "daemon/base/journal.h"
#include "daemon/base/messages.h"

#include <stdbool.h>
#include <stdint.h>

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARNING,
    LOG_LEVEL_NOTICE,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
};

/* Finds out what standard error is, and whether the journal reads it. Before the first line.
 *
 * Writing never waits: a line that a full pipe, a stopped terminal or a busy journal does not accept at once is
 * dropped. The next line that is accepted comes behind one that says how many were dropped. */
void log_open(void);

/* Lines of higher levels are not written. The default is LOG_LEVEL_INFO. */
void log_set_level(enum log_level level);

/* "error", "warning", "notice", "info", "debug". Returns 0 or -EINVAL. */
int log_level_parse(const char *name, enum log_level *ret);

/* Control characters in the result become '?', so that no message can forge another line. */
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same, with fields for the journal; NULL: none. */
void log_write_fields(enum log_level level, const struct log_fields *fields, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* How many lines of one kind all clients together may cause in this time. A client could cause thousands in a second,
 * by mistake or not. */
#define LOG_CLIENT_LINES 100u
#define LOG_CLIENT_NS    10000000000u

/* How much of that one kind of line has used. */
struct log_share {
    uint64_t began; /* of the present period; nanoseconds on CLOCK_MONOTONIC */
    unsigned said;
    unsigned held; /* lines that were left out */
};

/* Whether a line may be written at `now`. *ret_held is how many lines were left out before this one, at the beginning
 * of a new period; else 0. */
bool log_share_take(struct log_share *share, uint64_t now, unsigned *ret_held);

/* As log_write(), for lines that a client causes. Loop thread only. */
void log_write_client(struct log_share *share, enum log_level level, const struct log_fields *fields,
                      const char *format, ...) __attribute__((format(printf, 4, 5)));

#define log_client(level, ...) log_client_fields(level, NULL, __VA_ARGS__)

/* fields: &(const struct log_fields){...}, in parentheses; NULL: none. */
#define log_client_fields(level, fields, ...)                                                                          \
    do {                                                                                                               \
        static struct log_share share;                                                                                 \
        log_write_client(&share, level, fields, __VA_ARGS__);                                                          \
    } while (0)

#define log_error(...)   log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...)  log_write(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...)    log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)
