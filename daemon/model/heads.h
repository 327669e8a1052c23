/* How many attention heads a model has, which its tensors alone do not tell.
 *
 * Any thread. */
#pragma once

#include "daemon/header/model_header.h"
#include "daemon/model/layout.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What has to be known of a model besides its tensors. 0: not known. */
struct model_heads {
    uint64_t heads;    /* attention heads */
    uint64_t kv_heads; /* those of k and v */
};

/* Whether the layout needs to know the heads of this model, and neither the layout nor the metadata tells. */
bool heads_needed(const struct model_header *model, const struct layout *layout);

/* What the layout or the metadata tells of the model's heads. */
struct model_heads heads_told(const struct model_header *model, const struct layout *layout);

/* Reads the heads from the text of a file config.json of transformers; those that it does not tell stay as they are. */
void heads_read_config(const char *text, size_t size, struct model_heads *heads);
