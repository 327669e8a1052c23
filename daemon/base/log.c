#include "daemon/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Bytes of the longest line. Longer ones are cut. */
#define LOG_LINE_MAX 1024

static enum log_level max_level = LOG_LEVEL_INFO;
static bool journal; /* standard error is the journal: lines begin with their level, as "<6>" */

static const struct {
    const char *name;
    int priority; /* as syslog(3) counts */
} levels[] = {
    [LOG_LEVEL_ERROR] = {"error", 3}, [LOG_LEVEL_WARNING] = {"warning", 4}, [LOG_LEVEL_NOTICE] = {"notice", 5},
    [LOG_LEVEL_INFO] = {"info", 6},   [LOG_LEVEL_DEBUG] = {"debug", 7},
};

void log_set_level(enum log_level level)
{
    __atomic_store_n(&max_level, level, __ATOMIC_RELAXED);
}

static int output = STDERR_FILENO;
static bool output_is_socket;
static bool output_may_wait; /* look before each line */
static unsigned dropped;     /* lines since the last one that was written */

/* Writing to a file does not block; writing to a pipe or a terminal may. O_NONBLOCK is shared by all processes that
 * have the same standard error. So a pipe or a terminal is opened once more, for this process alone. */
static void output_open(const struct stat *st)
{
    output_is_socket = S_ISSOCK(st->st_mode);
    if (!S_ISFIFO(st->st_mode) && !S_ISCHR(st->st_mode))
        return;
    int fd = open("/proc/self/fd/2", O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0)
        output = fd;
    else
        output_may_wait = true;
}

/* One call for the line, so that lines of several threads do not mix. False: it was not accepted. */
static bool output_write(const char *line, size_t size)
{
    if (output_is_socket)
        return send(output, line, size, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
    if (output_may_wait) {
        struct pollfd pollfd = {.fd = output, .events = POLLOUT};
        if (poll(&pollfd, 1, 0) != 1)
            return false;
    }
    return write(output, line, size) >= 0;
}

/* JOURNAL_STREAM is DEVICE:INODE of the journal's stream. Programs inherit the variable, so it is compared with what
 * standard error really is. */
void log_open(void)
{
    const char *text = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;
    if (fstat(STDERR_FILENO, &st) < 0)
        return;
    journal = text && sscanf(text, "%llu:%llu", &device, &inode) == 2 && st.st_dev == device && st.st_ino == inode;
    output_open(&st);
    /* Where the journal's stream is a file, as in a test, there is no journal. */
    if (journal && output_is_socket)
        (void)journal_open();
}

int log_level_parse(const char *name, enum log_level *ret)
{
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
        if (strcmp(name, levels[i].name) == 0) {
            *ret = (enum log_level)i;
            return 0;
        }
    return -EINVAL;
}

static bool log_wanted(enum log_level level)
{
    return level <= __atomic_load_n(&max_level, __ATOMIC_RELAXED);
}

/* The beginning of a line, of `size` bytes. Returns its length. */
static size_t log_prefix(enum log_level level, char *line, size_t size)
{
    if (journal)
        return (size_t)snprintf(line, size, "<%d>", levels[level].priority);
    return (size_t)snprintf(line, size, "rocmforged: %s: ", levels[level].name);
}

/* Sends a line to the journal, or else writes it. It has a prefix of `prefix` bytes, and a newline at its end, which
 * are not part of what the journal gets. */
static bool line_write(enum log_level level, const struct log_fields *fields, const char *line, size_t prefix,
                       size_t size)
{
    return journal_send(levels[level].priority, line + prefix, size - prefix - 1, fields) || output_write(line, size);
}

/* Writes a line, behind one about those that were dropped before. */
static void log_put(enum log_level level, const struct log_fields *fields, const char *line, size_t prefix, size_t size)
{
    const unsigned n = __atomic_exchange_n(&dropped, 0, __ATOMIC_RELAXED);
    bool accepted = true;
    if (n > 0) {
        char text[LOG_LINE_MAX];
        const size_t begin = log_prefix(LOG_LEVEL_WARNING, text, sizeof(text));
        size_t length = begin;
        length += (size_t)snprintf(text + length, sizeof(text) - length,
                                   "%u lines were dropped: standard error did not accept them\n", n);
        accepted = line_write(LOG_LEVEL_WARNING, NULL, text, begin, length);
        if (!accepted)
            __atomic_fetch_add(&dropped, n, __ATOMIC_RELAXED);
    }
    if (!accepted || !line_write(level, fields, line, prefix, size))
        __atomic_fetch_add(&dropped, 1, __ATOMIC_RELAXED);
}

__attribute__((format(printf, 3, 0))) static void log_write_list(enum log_level level, const struct log_fields *fields,
                                                                 const char *format, va_list arguments)
{
    int saved_errno = errno;
    char line[LOG_LINE_MAX];
    const size_t prefix = log_prefix(level, line, sizeof(line));
    int n = vsnprintf(line + prefix, sizeof(line) - prefix - 1, format, arguments);
    size_t size = prefix;
    if (n > 0)
        size += (size_t)n < sizeof(line) - prefix - 1 ? (size_t)n : sizeof(line) - prefix - 2;
    for (size_t i = prefix; i < size; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[size++] = '\n';
    log_put(level, fields, line, prefix, size);
    errno = saved_errno;
}

void log_write(enum log_level level, const char *format, ...)
{
    if (!log_wanted(level))
        return;
    va_list arguments;
    va_start(arguments, format);
    log_write_list(level, NULL, format, arguments);
    va_end(arguments);
}

void log_write_fields(enum log_level level, const struct log_fields *fields, const char *format, ...)
{
    if (!log_wanted(level))
        return;
    va_list arguments;
    va_start(arguments, format);
    log_write_list(level, fields, format, arguments);
    va_end(arguments);
}

bool log_share_take(struct log_share *share, uint64_t now, unsigned *ret_held)
{
    if (share->said == 0 || now - share->began >= LOG_CLIENT_NS) {
        *ret_held = share->held;
        *share = (struct log_share){.began = now};
    } else
        *ret_held = 0;
    if (share->said == LOG_CLIENT_LINES) {
        share->held++;
        return false;
    }
    share->said++;
    return true;
}

void log_write_client(struct log_share *share, enum log_level level, const struct log_fields *fields,
                      const char *format, ...)
{
    unsigned held;
    struct timespec now;
    if (!log_wanted(level))
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!log_share_take(share, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec, &held))
        return;
    if (held > 0)
        log_write(level, "%u lines like the next were left out", held);
    va_list arguments;
    va_start(arguments, format);
    log_write_list(level, fields, format, arguments);
    va_end(arguments);
}
