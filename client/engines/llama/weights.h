/* The resident weights of the models that an engine loads.
 *
 * A model is identified by its file. The plug-in passes the engine's open file to the daemon, as a descriptor. The
 * daemon finds the resident model of the same file: same device, inode, size and times. So a wrong name cannot lead to
 * other bytes.
 *
 * When the daemon is started anew, a thread takes the leases on the weights again.
 *
 * Only one thread at a time may call these functions, even for different weights. */
#pragma once

#include "client/engines/llama/open_files.h"
#include "client/rocmforge.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct weights;

enum weights_state {
    WEIGHTS_READY,
    WEIGHTS_NONE,  /* no model file is open: the engine allocates something else, for example an adapter */
    WEIGHTS_OTHER, /* the weights cannot be shared; the user was told why */
};

/* Attaches to each model whose file the engine has open and mapped. Loads a model first if it is not resident. pci: PCI
 * address of the GPU for the weights, as ggml writes it: "0000:c1:00.0"; NULL: host memory. Writes *ret if
 * WEIGHTS_READY. */
enum weights_state weights_open(const char *pci, struct weights **ret);

/* Whether a daemon answers. Gives no message if none does, because the caller only wants to save time. */
bool weights_daemon_answers(void);

/* What weights_find() looks for: a tensor as the engine describes it. */
struct weights_tensor {
    const char *name;
    uint32_t type;    /* ggml's */
    int64_t shape[4]; /* fastest dimension first */
    size_t bytes;
    size_t padding;   /* zero bytes that must follow the tensor */
    const void *data; /* the file's bytes in the engine's mapping; NULL: not known yet */
};

/* Finds the resident bytes of a tensor. Returns 0, and *ret is valid until weights_close(); -ENOENT: `data` is not in
 * the file of one of these models, or the model has no such tensor; -EINVAL: the tensor has another type, shape, size,
 * form, padding or other bytes. On an error *reason is a static text. */
int weights_find(const struct weights *weights, const struct weights_tensor *tensor, const void **ret,
                 const char **reason);

/* Whether the pointer points into resident bytes. */
bool weights_has(const struct weights *weights, const void *data);

/* The open files and mappings of the engine, when the weights were opened. */
const struct open_files *weights_files(const struct weights *weights);

/* "x on host": the models that the weights are of, for a message to the user. Static; valid until the next call. */
const char *weights_text(const struct weights *weights);

/* Detaches from all models and frees the weights. NULL is allowed. */
void weights_close(struct weights *weights);
