/* dump: writes the bytes of a tensor, as they are in memory, to standard output. */
#include "client/rfctl/headers.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"
#include "client/rfctl/rfctl.h"
#include "proto/write_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE (1u << 20) /* bytes that are copied at once */

static int dump(struct rfctl *ctl, const rf_model *model, const rf_tensor *tensor, const char *what)
{
    char *piece = need_memory(PIECE);
    int status = STATUS_DONE;
    for (uint64_t at = 0; at < tensor->bytes && status == STATUS_DONE;) {
        size_t size = tensor->bytes - at < PIECE ? (size_t)(tensor->bytes - at) : PIECE;
        int r = rf_model_read(model, tensor->offset + at, piece, size);
        if (r < 0) {
            status = ctl_fail(ctl, r, what);
            break;
        }
        r = write_all(STDOUT_FILENO, piece, size);
        if (r < 0) {
            status = STATUS_REFUSED;
            if (r != -EPIPE) /* the reader closed the pipe: no message */
                err_line("cannot write: %s", strerror(-r));
        }
        at += size;
    }
    free(piece);
    return status;
}

/* The name of a model never contains a slash, so a word with a slash is a path. */
static bool is_file(const char *name)
{
    return strchr(name, '/');
}

/* A file without the tensor is not worth loading. True also if its header cannot be read: the load says why. */
static bool may_have(char *path, const char *tensor_name)
{
    struct headers headers;
    struct header_fault unused;
    char *unread;
    if (headers_read(&path, 1, &headers, &unused, &unread) < 0) {
        free(unread);
        return true;
    }
    bool has = !headers.whole || model_header_tensor(headers.file, tensor_name);
    headers_clear(&headers);
    return has;
}

int command_dump(struct rfctl *ctl)
{
    const char *name = ctl->arguments[0], *tensor_name = ctl->arguments[1];
    if (isatty(STDOUT_FILENO)) {
        err_line("a tensor's bytes are not for a terminal: send them to a file or a program");
        return STATUS_USAGE;
    }
    ctl->options.json = false; /* standard output gets the bytes and nothing else */
    if (is_file(name) && !may_have(ctl->arguments[0], tensor_name)) {
        err_line("cannot dump %s of %s: there is no such tensor; 'rfctl inspect %s' lists them", tensor_name, name,
                 name);
        return STATUS_REFUSED;
    }
    int status = ctl_connect(ctl);
    if (status != STATUS_DONE)
        return status;
    rf_model *model = NULL;
    rf_tensor tensor;
    char *what = need_text("dump %s of %s", tensor_name, name);
    int r = is_file(name) ? rf_load_attach(ctl->client, name, NULL, &model) : rf_attach(ctl->client, name, &model);
    if (r < 0)
        status = ctl_fail(ctl, r, what);
    else if (rf_model_find(model, tensor_name, &tensor) < 0) {
        err_line("cannot %s: there is no such tensor; 'rfctl show %s' lists them", what, rf_model_name(model));
        status = STATUS_REFUSED;
    } else
        status = dump(ctl, model, &tensor, what);
    /* Detach here: if only the end of the connection did it, our caller might still see the lease after we ended. */
    (void)rf_detach(model);
    free(what);
    return status;
}
