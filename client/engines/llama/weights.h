/* The weights of the models that an engine is loading, as a daemon keeps them resident.
 *
 * A model is known by its file: the one that the engine has open goes to the daemon as a descriptor, and the daemon
 * joins what is resident of that very file (device, inode, size, times). No name can bring in other bytes.
 *
 * One thread at a time calls these, for all of them. */
#pragma once

#include "client/engines/llama/open_files.h"
#include "client/rocmforge.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct weights;

enum weights_state {
    WEIGHTS_READY,
    WEIGHTS_NONE,  /* no model file is open: the engine allocates something else, an adapter say */
    WEIGHTS_OTHER, /* they cannot be had, which was said with the reason */
};

/* Attaches to each model whose file the engine has open and mapped; loads it first if it is not resident. `pci`: the
 * GPU that is to have it, as ggml names it, "0000:c1:00.0"; NULL: host memory. Writes *ret if WEIGHTS_READY. */
enum weights_state weights_open(const char *pci, struct weights **ret);

/* A daemon answers. For what is only to be quicker: says nothing if none does. */
bool weights_daemon_answers(void);

/* What a tensor of the engine's has to be to be found. */
struct weights_tensor {
    const char *name;
    uint32_t type;    /* ggml's */
    int64_t shape[4]; /* fastest dimension first */
    size_t bytes;
    size_t padding;   /* zero bytes that have to stand behind it */
    const void *data; /* the file's bytes, as the engine has them mapped; NULL: not known yet */
};

/* Finds the resident bytes of a tensor: 0, and *ret lives until weights_close(). -ENOENT: the file at `data` is no
 * model's here, or has no such tensor; -EINVAL: another type, shape, size or form, or `reason` says what else. */
int weights_find(const struct weights *weights, const struct weights_tensor *tensor, const void **ret,
                 const char **reason);

/* Whether the pointer is into resident bytes. */
bool weights_has(const struct weights *weights, const void *data);

/* What the engine has of the weights' files: to know which bytes come from them. */
const struct open_files *weights_files(const struct weights *weights);

/* "a of x.gguf on host": what is shared, for a line to the user. Static, until the next call. */
const char *weights_text(const struct weights *weights);

/* Detaches. NULL is fine. */
void weights_close(struct weights *weights);
