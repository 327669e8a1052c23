/* One request of HTTP on standard input, and its answer on standard output: what a systemd socket with Accept=yes
 * needs. Only GET and HEAD of one path are served, and the connection ends after the answer. */
#pragma once

#include <stddef.h>

enum http_method {
    HTTP_NONE, /* there is no request to answer: it was answered already, or the client has gone */
    HTTP_GET,
    HTTP_HEAD,
};

/* Reads a request, for at most some seconds. One for anything else than `path` is answered here. */
enum http_method http_request(const char *path);

/* Answers the request. status: "200 OK" */
void http_answer(enum http_method method, const char *status, const char *type, const char *body, size_t size);
