/* Which bytes of one tensor a layout takes: the rows or columns of one part, in which order. For arrange.c. */
#pragma once

#include "daemon/model/arrange.h"

struct cutting {
    const struct layout *layout;
    const struct model_heads *heads;
    bool permuted; /* arrange_permuted() */
    struct layout_fault *fault;
};

/* Whether the rows of q and k stand in pairs in this model's file. */
bool arrange_permuted(const struct gguf *model);

/* Changes a tensor's shape, bytes and offset to those that memory gets, and sets its gather. asked: the request's group
 * that names the tensor; NULL: the layout's name decides. -EDOM and the fault: the layout does not fit. */
int arrange_cut(const struct cutting *cutting, const struct layout_group *asked, struct gguf_tensor *tensor,
                struct gather *gather);
