/* Reads a call's parameters into a struct, by a table. A parameter that is unknown, missing or of the wrong type fails
 * the call with its name.
 *
 *     struct parameters { const char *name; bool force; } p = {0};
 *     static const struct param table[] = {
 *         {"name", PARAM_STRING, true, offsetof(struct parameters, name)},
 *         {"force", PARAM_BOOL, false, offsetof(struct parameters, force)},
 *         {0},
 *     };
 *     if (!params_read(call, table, &p))
 *         return;
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/conn.h"

#include <stdbool.h>
#include <stddef.h>

enum param_type {
    PARAM_STRING,  /* const char *; borrowed until the call ends */
    PARAM_BOOL,    /* bool */
    PARAM_SECONDS, /* double, not negative */
    PARAM_INT,     /* int64_t */
    PARAM_INTS,    /* const cJSON *; an array of integers; borrowed until the call ends */
    PARAM_ARRAY,   /* the same, of anything */
    PARAM_OBJECT,  /* the same, an object */
};

struct param {
    const char *name; /* NULL ends the table */
    enum param_type type;
    bool required;
    size_t offset; /* in the struct; the field keeps its value if the parameter is missing or null */
};

/* Returns true, or false after the call was failed with InvalidParameter. */
bool params_read(struct call *call, const struct param *table, void *ret);
