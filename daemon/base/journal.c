#include "daemon/base/journal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Where the journal takes datagrams of fields: systemd's "Native Journal Protocol". */
#define JOURNAL_SOCKET "/run/systemd/journal/socket"

/* Bytes of the fields beside the text. */
#define FIELDS_MAX 1024

static int journal_socket = -1;

int journal_open(void)
{
    const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = JOURNAL_SOCKET};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        int r = -errno;
        close(fd);
        return r;
    }
    journal_socket = fd;
    return 0;
}

struct text {
    char bytes[FIELDS_MAX];
    size_t size;
};

/* Adds a field, unless it does not fit or its value could be taken for the next field. */
__attribute__((format(printf, 2, 3))) static void add(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const size_t room = sizeof(text->bytes) - text->size;
    int n = vsnprintf(text->bytes + text->size, room, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n + 1 >= room || memchr(text->bytes + text->size, '\n', (size_t)n))
        return;
    text->size += (size_t)n;
    text->bytes[text->size++] = '\n';
}

bool journal_send(int priority, const char *line, size_t size, const struct log_fields *fields)
{
    if (journal_socket < 0)
        return false;
    struct text text = {.size = 0};
    add(&text, "PRIORITY=%d", priority);
    add(&text, "SYSLOG_IDENTIFIER=rocmforged");
    if (fields && fields->id)
        add(&text, "MESSAGE_ID=%s", fields->id);
    if (fields && fields->model)
        add(&text, "MODEL=%s", fields->model);
    if (fields && fields->device)
        add(&text, "DEVICE=%s", fields->device);
    if (fields && fields->has_bytes)
        add(&text, "BYTES=%llu", (unsigned long long)fields->bytes);
    if (fields && fields->has_duration)
        add(&text, "DURATION_USEC=%llu", (unsigned long long)fields->duration_ns / 1000);
    if (fields && fields->has_uid)
        add(&text, "CLIENT_UID=%u", (unsigned)fields->uid);
    if (fields && fields->pid > 0)
        add(&text, "CLIENT_PID=%d", (int)fields->pid);
    struct iovec parts[] = {
        {.iov_base = text.bytes, .iov_len = text.size},
        {.iov_base = (char *)"MESSAGE=", .iov_len = 8},
        {.iov_base = (char *)(uintptr_t)line, .iov_len = size},
        {.iov_base = (char *)"\n", .iov_len = 1},
    };
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = sizeof(parts) / sizeof(parts[0])};
    return sendmsg(journal_socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}
