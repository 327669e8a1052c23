#include "client/metadata_json.h"

#include "proto/array.h"
#include "proto/gguf_value.h"
#include "proto/json_read.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH_BYTES 8u /* of the JSON, before it */

bool metadata_is_json(const void *header, size_t size)
{
    uint64_t length;
    if (size <= LENGTH_BYTES)
        return false;
    memcpy(&length, header, sizeof(length));
    return le64toh(length) == size - LENGTH_BYTES && ((const char *)header)[LENGTH_BYTES] == '{';
}

/* Moves the reader to the value of __metadata__. Returns 1; 0: there is none; or a negative errno. */
static int find(struct json_reader *json)
{
    struct json_span key;
    bool first = true;
    int more = json_enter(json, '{');
    if (more < 0)
        return -EBADMSG;
    while ((more = json_next_key(json, &first, &key)) == 1) {
        if (json_equals(json, &key, "__metadata__"))
            return 1;
        if (json_skip(json) < 0)
            return -EBADMSG;
    }
    return more < 0 ? -EBADMSG : 0;
}

/* Writes the decoded string and a NUL. */
static char *put(const struct json_reader *json, const struct json_span *string, char **at)
{
    char *begin = *at;
    json_decode(json, string, begin);
    begin[string->decoded] = '\0';
    *at += string->decoded + 1;
    return begin;
}

/* text: has room for all strings, see metadata_json_read(). */
static int read_entries(struct json_reader *json, char *text, rf_value **entries, size_t *n)
{
    struct json_span key, value;
    size_t capacity = 0;
    bool first = true;
    int more;
    while ((more = json_next_key(json, &first, &key)) == 1) {
        if (json_read_string(json, &value) < 0 || *n == HEADER_KV_MAX)
            return -EBADMSG;
        if (array_reserve(entries, &capacity, *n, sizeof(**entries), 16) < 0)
            return -ENOMEM;
        rf_value *entry = &(*entries)[(*n)++];
        *entry = (rf_value){.type = RF_STRING, .element_type = RF_STRING, .count = 1, .bytes = value.decoded};
        entry->key = put(json, &key, &text);
        entry->key_size = key.decoded;
        const uint64_t length = htole64(value.decoded);
        memcpy(text, &length, sizeof(length));
        text += sizeof(length);
        entry->data = put(json, &value, &text);
    }
    return more < 0 ? -EBADMSG : 0;
}

int metadata_json_read(const void *header, size_t size, rf_value **ret, size_t *ret_n, char **ret_text)
{
    struct json_reader json = {.bytes = (const char *)header + LENGTH_BYTES, .size = size - LENGTH_BYTES};
    rf_value *entries = NULL;
    char *text = NULL;
    size_t n = 0;
    int r = find(&json);
    int null = r == 1 ? json_read_null(&json) : 0;
    if (r == 1 && null == 0) {
        struct json_reader end = json;
        r = json_enter(&json, '{') < 0 || json_skip(&end) < 0 ? -EBADMSG : 0;
        /* A key and its value have six bytes besides their text, and here two NULs and a length: twice is enough. */
        text = r == 0 ? malloc(2 * (end.at - json.at) + 16) : NULL;
        if (r == 0)
            r = text ? read_entries(&json, text, &entries, &n) : -ENOMEM;
    }
    if (r < 0 || null < 0) {
        free(entries);
        free(text);
        return r < 0 ? r : -EBADMSG;
    }
    *ret = entries;
    *ret_n = n;
    *ret_text = text;
    return 0;
}
