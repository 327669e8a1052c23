/* Where the weights should be that an engine of llama.cpp shares. */
#pragma once

#include "client/rfctl/rfctl.h"
#include "client/rfctl/run_words.h"

struct run_place {
    char *device;     /* the daemon's name of it; NULL: the plug-in chooses, because it sees the engine's GPUs; owned */
    char *pattern;    /* of -ot; owned */
    const char *also; /* a further text for the message to the user; NULL: none */
    bool one_gpu;     /* the engine gets an option to use only one GPU */
};

/* Finds it by the daemon's devices, the engine's backends, its options and rfctl's --device. Returns an exit status;
 * STATUS_USAGE: --device and the engine's options contradict each other. Not STATUS_DONE: the error was reported.
 * run_place_free() must be called in any case; *ret must be zero before. */
int run_place_find(struct rfctl *ctl, const struct run_words *words, struct run_place *ret);

void run_place_free(struct run_place *place);
