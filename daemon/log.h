/* Says what an administrator wants to know, on standard error: with the journal's priorities where that reads it, with
 * the level's name otherwise.
 *
 * Only the caller that gives up logs, once, with ids ("conn=12 model=llama"). errno is kept. Any thread. */
#pragma once

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

#define log_error(...)   log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...)  log_write(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...)    log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)
