#include "proto/errors.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

static const struct {
    const char *name;
    const char *sentence;
    int errno_;
} errors[WIRE_ERROR_COUNT] = {
#define X(identifier, errno_, sentence) [WIRE_##identifier] = {"io.rocmforge." #identifier, sentence, errno_},
    WIRE_ERRORS(X)
#undef X
#define X(identifier, errno_, sentence) [WIRE_##identifier] = {"org.varlink.service." #identifier, sentence, errno_},
        VARLINK_ERRORS(X)
#undef X
};

static int is_error(enum wire_error error)
{
    return error > WIRE_OK && error < WIRE_ERROR_COUNT;
}

const char *wire_error_name(enum wire_error error)
{
    return is_error(error) ? errors[error].name : NULL;
}

const char *wire_error_sentence(enum wire_error error)
{
    return is_error(error) ? errors[error].sentence : NULL;
}

int wire_error_errno(enum wire_error error)
{
    if (error == WIRE_OK)
        return 0;
    return is_error(error) ? -errors[error].errno_ : -EPROTO;
}

enum wire_error wire_error_find(const char *name)
{
    for (enum wire_error error = WIRE_OK + 1; error < WIRE_ERROR_COUNT; error++)
        if (strcmp(errors[error].name, name) == 0)
            return error;
    return WIRE_ERROR_COUNT;
}
