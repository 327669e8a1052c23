#include "proto/model_config.h"

#include "proto/json_read.h"

#include <errno.h>
#include <stdbool.h>

struct config {
    uint64_t heads, kv_heads; /* 0: not told */
};

/* nested: this is "text_config". */
static int take_object(struct json_reader *reader, bool nested, struct config *config)
{
    struct json_span key;
    bool first = true;
    int r = json_enter(reader, '{');
    while (r == 0 && (r = json_next_key(reader, &first, &key)) > 0) {
        uint64_t *number = json_equals(reader, &key, "num_attention_heads")   ? &config->heads
                           : json_equals(reader, &key, "num_key_value_heads") ? &config->kv_heads
                                                                              : NULL;
        const int next = json_peek_value(reader);
        if (number && json_is_digit(next))
            r = json_read_u64(reader, number);
        else if (!nested && next == '{' && json_equals(reader, &key, "text_config"))
            r = take_object(reader, true, config);
        else
            r = json_skip(reader);
    }
    return r;
}

int model_config_heads(const char *text, size_t size, uint64_t most, uint64_t *ret_heads, uint64_t *ret_kv_heads)
{
    struct json_reader reader = {.bytes = text, .size = size};
    struct config config = {0};
    if (take_object(&reader, false, &config) < 0 || json_end(&reader) < 0 || config.heads == 0 || config.heads > most ||
        config.kv_heads > most)
        return -ENOENT;
    *ret_heads = config.heads;
    *ret_kv_heads = config.kv_heads > 0 ? config.kv_heads : config.heads;
    return 0;
}
