#include "client/rfctl/http.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The longest request, and for how many seconds a client may take to send it, or to read the answer. */
#define REQUEST_MAX     8192
#define REQUEST_SECONDS 10

static time_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

/* Waits for an event of the descriptor until `end`. False: it did not come. */
static bool wait_for(int fd, short events, time_t end)
{
    struct pollfd pollfd = {.fd = fd, .events = events};
    int r;
    do {
        const time_t left = end - now();
        r = left > 0 ? poll(&pollfd, 1, (int)left * 1000) : 0;
    } while (r < 0 && errno == EINTR);
    return r > 0;
}

/* The request up to the empty line that ends its head. False if there is none; *ret_size is what there is. */
static bool read_head(char text[REQUEST_MAX + 1], size_t *ret_size)
{
    const time_t end = now() + REQUEST_SECONDS;
    size_t size = 0;
    bool whole = false;
    while (!whole && size < REQUEST_MAX && wait_for(STDIN_FILENO, POLLIN, end)) {
        ssize_t n = read(STDIN_FILENO, text + size, REQUEST_MAX - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        size += (size_t)n;
        text[size] = '\0';
        whole = memmem(text, size, "\r\n\r\n", 4) || memmem(text, size, "\n\n", 2);
    }
    *ret_size = size;
    return whole;
}

static bool write_all(const char *text, size_t size)
{
    const time_t end = now() + REQUEST_SECONDS;
    while (size > 0) {
        if (!wait_for(STDOUT_FILENO, POLLOUT, end))
            return false;
        ssize_t n = write(STDOUT_FILENO, text, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        text += n;
        size -= (size_t)n;
    }
    return true;
}

void http_answer(enum http_method method, const char *status, const char *type, const char *body, size_t size)
{
    char head[512];
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
                     "Connection: close\r\n\r\n",
                     status, type, size);
    if (write_all(head, (size_t)n) && method != HTTP_HEAD)
        (void)write_all(body, size);
}

static void refuse(enum http_method method, const char *status, const char *text)
{
    http_answer(method, status, "text/plain; charset=utf-8", text, strlen(text));
}

/* Cuts the first line into its words. False: it is no such line. */
static bool parse(char *text, char **ret_method, char **ret_target)
{
    char *rest = text;
    text[strcspn(text, "\r\n")] = '\0';
    *ret_method = strsep(&rest, " ");
    *ret_target = strsep(&rest, " ");
    return *ret_target && rest && (strcmp(rest, "HTTP/1.0") == 0 || strcmp(rest, "HTTP/1.1") == 0);
}

enum http_method http_request(const char *path)
{
    char text[REQUEST_MAX + 1] = "", *method, *target;
    size_t size;
    if (!read_head(text, &size)) {
        if (size == REQUEST_MAX)
            refuse(HTTP_GET, "431 Request Header Fields Too Large", "The request is too long.\n");
        else if (size > 0)
            refuse(HTTP_GET, "408 Request Timeout", "The request is not complete.\n");
        return HTTP_NONE;
    }
    if (!parse(text, &method, &target)) {
        refuse(HTTP_GET, "400 Bad Request", "This is no request of HTTP.\n");
        return HTTP_NONE;
    }
    const enum http_method known = strcmp(method, "GET") == 0    ? HTTP_GET
                                   : strcmp(method, "HEAD") == 0 ? HTTP_HEAD
                                                                 : HTTP_NONE;
    target[strcspn(target, "?")] = '\0';
    if (known == HTTP_NONE)
        refuse(HTTP_GET, "405 Method Not Allowed\r\nAllow: GET, HEAD", "Only GET and HEAD are served.\n");
    else if (strcmp(target, path) != 0)
        refuse(known, "404 Not Found", "The metrics are at /metrics.\n");
    else
        return known;
    return HTTP_NONE;
}
