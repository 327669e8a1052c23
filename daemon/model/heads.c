#include "daemon/model/heads.h"

#include "proto/model_config.h"

#include <stdio.h>

/* A number that stands under the architecture's name in the metadata; 0: it is not there. */
static uint64_t number_of(const struct model_header *model, const char *key)
{
    struct header_string architecture;
    char full[128];
    uint64_t value = 0;
    if (header_kv_string(model_header_find(model, "general.architecture"), &architecture) < 0 || architecture.size > 64)
        return 0;
    snprintf(full, sizeof(full), "%.*s.%s", (int)architecture.size, architecture.bytes, key);
    return header_kv_u64(model_header_find(model, full), &value) == 0 && value <= LAYOUT_HEADS_MAX ? value : 0;
}

struct model_heads heads_told(const struct model_header *model, const struct layout *layout)
{
    struct model_heads heads = {0};
    if (!layout)
        return heads;
    heads = (struct model_heads){layout->heads, layout->kv_heads};
    if (heads.heads == 0) {
        heads.heads = number_of(model, "attention.head_count");
        heads.kv_heads = number_of(model, "attention.head_count_kv");
    }
    if (heads.kv_heads == 0)
        heads.kv_heads = heads.heads;
    return heads;
}

bool heads_needed(const struct model_header *model, const struct layout *layout)
{
    return layout && layout->kind == LAYOUT_VLLM && layout->parts > 1 && heads_told(model, layout).heads == 0;
}

void heads_read_config(const char *text, size_t size, struct model_heads *heads)
{
    (void)model_config_heads(text, size, LAYOUT_HEADS_MAX, &heads->heads, &heads->kv_heads);
}
