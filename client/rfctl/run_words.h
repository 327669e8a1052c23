/* What the command line of one of llama.cpp's programs says that matters to shared weights. */
#pragma once

#include <stdbool.h>

#define RUN_ALL_LAYERS (-1L)

struct run_words {
    const char *model;     /* the file; NULL: none is named */
    const char *elsewhere; /* the option that names a model somewhere else: "-hf"; NULL: none */
    const char *refused;   /* the option that cannot be had with shared weights, NULL: none; and why */
    const char *reason;
    const char *device; /* of -dev, "CUDA1"; NULL: not said */
    const char *split;  /* of -sm; NULL: not said */
    long gpu_layers;    /* of -ngl; RUN_ALL_LAYERS: not said, or all */
    bool draft;         /* there is a draft model */
    bool lock;          /* --mlock */
    bool overrides;     /* -ot, or the variable for it */
    bool informs;       /* --help and the like: it runs no model */
};

/* Reads the words behind the program's name, up to a NULL, and the environment variables that mean the same. What it
 * gives points into them. */
void run_words_read(char **words, struct run_words *ret);
