/* What the file config.json beside safetensors files says of a model.
 *
 * The text is untrusted. Any thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MODEL_CONFIG_NAME "config.json"

/* The most bytes of such a file that is read. */
#define MODEL_CONFIG_MAX ((size_t)1 << 20)

/* Reads how many attention heads the model has, and how many those of k and v are: at most `most` each. A model of
 * several kinds of input has the text's in "text_config". -ENOENT: the text does not say it, or is not JSON. */
int model_config_heads(const char *text, size_t size, uint64_t most, uint64_t *ret_heads, uint64_t *ret_kv_heads);
