/* Where the weights should be that an engine of llama.cpp shares. */
#pragma once

#include "client/rfctl/rfctl.h"
#include "client/rfctl/run_words.h"

struct run_place {
    char *device;     /* the daemon's name of it; NULL: the plug-in chooses, because it sees the engine's GPUs; owned */
    char *pattern;    /* of -ot; owned */
    const char *also; /* a further text for the message to the user; NULL: none */
    bool one_gpu;     /* the engine gets an option to use only one GPU, -sm none */
    bool named;       /* the user named one GPU */
    bool on_gpu;      /* only the plug-in knows to which of the daemon's GPUs the model belongs, if there are any */
    bool other_gpu;   /* the engine has a backend for GPUs on which weights cannot be shared */
    cJSON *devices;   /* the daemon's; NULL: they were not asked for; owned */
};

/* Finds it by the daemon's devices, the engine's backends, its options and rfctl's --device. Returns an exit status;
 * STATUS_USAGE: --device and the engine's options contradict each other. Not STATUS_DONE: the error was reported.
 * run_place_free() must be called in any case; *ret must be zero before. */
int run_place_find(struct rfctl *ctl, const struct run_words *words, struct run_place *ret);

/* Whether the file is on the daemon's device as native, or the daemon has room for it there. True if the daemon cannot
 * tell. *ret_bytes: what it takes; 0: not known. */
bool run_place_fits(struct rfctl *ctl, const char *model, const char *device, bool *ret_there, uint64_t *ret_bytes);

/* Whether weights can be shared on the engine's first GPU, as `on_gpu` says. Only the engine knows which of the
 * daemon's GPUs that is. So each must have the model or room for it, or, if the user named a GPU, one of them. Reports
 * why they cannot. */
bool run_place_has_room(struct rfctl *ctl, const struct run_words *words, const struct run_place *place);

void run_place_free(struct run_place *place);
