#include "daemon/model/manifest.h"

#include "proto/utf8.h"

#include <stdlib.h>

bool manifest_text_valid(const char *text, size_t size, size_t most)
{
    if (size > most)
        return false;
    for (size_t at = 0; at < size;) {
        const size_t n = text[at] ? utf8_character(text + at, size - at) : 0;
        if (n == 0)
            return false;
        at += n;
    }
    return true;
}

void manifest_free(struct manifest *manifest)
{
    if (!manifest)
        return;
    free(manifest->key);
    free(manifest->metadata);
    free(manifest->strides);
    free(manifest->flags);
    free(manifest);
}

void manifest_parsed_free(struct manifest_parsed *parts)
{
    plan_free(parts->plan);
    model_header_free(parts->header);
    manifest_free(parts->manifest);
    *parts = (struct manifest_parsed){0};
}

const uint64_t *manifest_strides(const struct manifest *manifest, size_t tensor)
{
    if (!manifest || !(manifest->flags[tensor] & MANIFEST_STRIDED))
        return NULL;
    return manifest->strides + tensor * HEADER_DIMS_MAX;
}

bool manifest_is_view(const struct manifest *manifest, size_t tensor)
{
    return manifest && (manifest->flags[tensor] & MANIFEST_VIEW);
}
