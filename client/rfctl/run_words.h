/* What the command line of one of llama.cpp's programs says that matters to shared weights. */
#pragma once

#include <stdbool.h>

#define RUN_ALL_LAYERS (-1L)

struct run_words {
    const char *model;   /* the file; NULL: none is named */
    const char *refused; /* the option or variable that does not work with shared weights; NULL: none */
    const char *reason;  /* why, and what to do instead; set with `refused` */
    const char *device;  /* of -dev, "CUDA1"; NULL: not said */
    const char *split;   /* of -sm; NULL: not said */
    const char *experts; /* "-cmoe" or the like, which keeps some tensors on the CPU; NULL: none */
    long gpu_layers;     /* of -ngl; RUN_ALL_LAYERS: not said, or all */
    long main_gpu;       /* of -mg; 0: not said */
    bool draft;          /* there is a draft model, and no -otd for it */
    bool lock;           /* --mlock */
    bool overrides;      /* -ot, or the variable for it */
    bool fixed;          /* -c sets the size of the context; no draft model, and nothing is said of --fit */
    bool informs;        /* --help and the like: it runs no model */
};

/* Reads the words behind the program's name, up to a NULL, and the environment variables that mean the same. As in
 * llama.cpp, the last of several words with the same meaning counts, and words count more than variables.
 *
 * bench: the program is llama-bench. It reads no variables, and makes one test for each of several values: then
 * `refused` is set, because the tests would need weights at different places.
 *
 * What it returns points into the words and the environment. */
void run_words_read(char **words, bool bench, struct run_words *ret);
