/* Which of several devices a model goes to.
 *
 * Loop thread only. */
#pragma once

#include "daemon/model/plan.h"

#include <stdbool.h>
#include <stddef.h>

struct server;

/* The devices that a request leaves the choice among. */
struct choice {
    struct device *devices[DEVICES_MAX];
    size_t n;
};

/* Those that a parameter or option names: "auto" (the GPUs, or the host where none is well), a kind, or one id. Lost
 * ones are among them only where there is no other. Returns how many. */
size_t choice_of(const struct server *server, const char *name, struct choice *ret);

bool choice_has(const struct choice *choice, const struct device *device);

/* The same devices; and at least one that is the same. */
bool choice_equal(const struct choice *a, const struct choice *b);
bool choice_overlap(const struct choice *a, const struct choice *b);

/* The one with the most available memory. NULL if all are lost. */
struct device *choice_roomiest(const struct choice *choice);

/* Where a planned model goes: to where the most is free, by the ledger and by the driver; if it fits nowhere, to where
 * it would if others were evicted, or will when they are gone. first: the device that the plan was cut for, which
 * others have to be like. */
struct device *choice_place(const struct server *server, const struct choice *choice, struct device *first,
                            const struct plan *plan);
