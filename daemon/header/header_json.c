/* Decodes values of the metadata: scalars for the daemon, and JSON text for people and programs. */
#include "daemon/header/model_header.h"
#include "proto/utf8.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLOAT_DIGITS  9 /* so many digits always give the same f32 when read again */
#define DOUBLE_DIGITS 17

static const char *const type_names[GGUF_VALUE_TYPE_COUNT] = {
    [GGUF_U8] = "u8",         [GGUF_I8] = "i8",       [GGUF_U16] = "u16",   [GGUF_I16] = "i16", [GGUF_U32] = "u32",
    [GGUF_I32] = "i32",       [GGUF_F32] = "f32",     [GGUF_U64] = "u64",   [GGUF_I64] = "i64", [GGUF_F64] = "f64",
    [GGUF_STRING] = "string", [GGUF_ARRAY] = "array", [GGUF_BOOL] = "bool",
};

const char *gguf_value_type_name(enum gguf_value_type type)
{
    assert((unsigned)type < GGUF_VALUE_TYPE_COUNT);
    return type_names[type];
}

/* --- Elements: one scalar or string in the file's encoding --- */

/* Little-endian bytes as an unsigned number. */
static uint64_t load(const uint8_t *data, size_t size)
{
    uint64_t value = 0;

    memcpy(&value, data, size);
    return le64toh(value);
}

static double load_float(const uint8_t *data)
{
    uint32_t bits = (uint32_t)load(data, 4);
    float value;

    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

static double load_double(const uint8_t *data)
{
    uint64_t bits = load(data, 8);
    double value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Reads an integer of any type. Returns 0; 1 if it is negative, and then *ret is its two's complement; -EINVAL for
 * other types. */
static int load_integer(enum gguf_value_type type, const uint8_t *data, uint64_t *ret)
{
    int64_t value;

    switch (type) {
    case GGUF_U8:
        *ret = load(data, 1);
        return 0;
    case GGUF_BOOL:
        *ret = data[0] != 0;
        return 0;
    case GGUF_U16:
        *ret = load(data, 2);
        return 0;
    case GGUF_U32:
        *ret = load(data, 4);
        return 0;
    case GGUF_U64:
        *ret = load(data, 8);
        return 0;
    case GGUF_I8:
        value = (int8_t)load(data, 1);
        break;
    case GGUF_I16:
        value = (int16_t)load(data, 2);
        break;
    case GGUF_I32:
        value = (int32_t)load(data, 4);
        break;
    case GGUF_I64:
        value = (int64_t)load(data, 8);
        break;
    default:
        return -EINVAL;
    }
    *ret = (uint64_t)value;
    return value < 0;
}

int header_kv_u64(const struct header_kv *kv, uint64_t *ret)
{
    uint64_t value;

    if (!kv)
        return -ENOENT;
    if (load_integer(kv->type, kv->data, &value) != 0)
        return -EINVAL;
    *ret = value;
    return 0;
}

int header_kv_i64(const struct header_kv *kv, int64_t *ret)
{
    uint64_t value;

    if (!kv)
        return -ENOENT;
    int negative = load_integer(kv->type, kv->data, &value);
    if (negative < 0 || (!negative && value > INT64_MAX))
        return -EINVAL;
    *ret = (int64_t)value;
    return 0;
}

int header_kv_f64(const struct header_kv *kv, double *ret)
{
    if (!kv)
        return -ENOENT;
    if (kv->type != GGUF_F32 && kv->type != GGUF_F64)
        return -EINVAL;
    *ret = kv->type == GGUF_F32 ? load_float(kv->data) : load_double(kv->data);
    return 0;
}

int header_kv_string(const struct header_kv *kv, struct header_string *ret)
{
    if (!kv)
        return -ENOENT;
    if (kv->type != GGUF_STRING)
        return -EINVAL;
    *ret = (struct header_string){(const char *)kv->data + 8, kv->data_size - 8};
    return 0;
}

/* --- JSON --- */

/* Writes the fewest digits that give the same number when read again. JSON has no NaN and no infinities, so these
 * become strings. */
static void write_float(FILE *out, double value, bool is_double)
{
    char text[40];
    int most = is_double ? DOUBLE_DIGITS : FLOAT_DIGITS;

    if (!isfinite(value)) {
        fputs(isnan(value) ? "\"NaN\"" : value > 0 ? "\"Infinity\"" : "\"-Infinity\"", out);
        return;
    }
    for (int digits = 1; digits <= most; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (is_double ? strtod(text, NULL) == value : strtof(text, NULL) == (float)value)
            break;
    }
    fputs(text, out);
}

/* The state of writing one value as text. */
struct json_writer {
    FILE *out;
    size_t elements; /* that may still be written, of all arrays together */
    size_t max_string;
    bool cut; /* something was left out */
};

/* Cut at max_string bytes, but not inside a character. */
static void write_string(struct json_writer *w, const char *bytes, size_t size)
{
    fputc('"', w->out);
    for (size_t i = 0; i < size;) {
        size_t length = utf8_character(bytes + i, size - i);
        unsigned char c = (unsigned char)bytes[i];

        if (length > w->max_string - i || i == w->max_string) {
            w->cut = true;
            break;
        }
        if (length == 0)
            fputs("\xef\xbf\xbd", w->out);
        else if (c == '"' || c == '\\')
            fprintf(w->out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(w->out, "\\u%04x", c);
        else
            fwrite(bytes + i, 1, length, w->out);
        i += length ? length : 1;
    }
    fputc('"', w->out);
}

/* The end of `count` elements that begin at `data`. */
static const uint8_t *elements_end(enum gguf_value_type type, uint64_t count, const uint8_t *data)
{
    if (type != GGUF_STRING && type != GGUF_ARRAY)
        return data + count * gguf_scalar_bytes(type);
    for (uint64_t i = 0; i < count; i++)
        data = type == GGUF_STRING ? data + 8 + load(data, 8)
                                   : elements_end((enum gguf_value_type)load(data, 4), load(data + 4, 8), data + 12);
    return data;
}

static const uint8_t *write_array(struct json_writer *w, enum gguf_value_type type, uint64_t count,
                                  const uint8_t *data);

/* Writes one element. Returns the position of the next one. */
static const uint8_t *write_element(struct json_writer *w, enum gguf_value_type type, const uint8_t *data)
{
    uint64_t value = 0;

    switch (type) {
    case GGUF_STRING:
        value = load(data, 8);
        write_string(w, (const char *)data + 8, (size_t)value);
        return data + 8 + value;
    case GGUF_ARRAY:
        return write_array(w, (enum gguf_value_type)load(data, 4), load(data + 4, 8), data + 12);
    case GGUF_BOOL:
        fputs(data[0] ? "true" : "false", w->out);
        break;
    case GGUF_F32:
        write_float(w->out, load_float(data), false);
        break;
    case GGUF_F64:
        write_float(w->out, load_double(data), true);
        break;
    default:
        if (load_integer(type, data, &value) > 0)
            fprintf(w->out, "%" PRId64, (int64_t)value);
        else
            fprintf(w->out, "%" PRIu64, value);
    }
    return data + gguf_scalar_bytes(type);
}

/* Writes as many elements as may be told. Returns the position of the first that was not written, and how many are
 * left from there on. */
static const uint8_t *write_first(struct json_writer *w, enum gguf_value_type type, uint64_t count, const uint8_t *data,
                                  uint64_t *ret_left)
{
    uint64_t i = 0;

    fputc('[', w->out);
    for (; i < count && w->elements > 0; i++) {
        if (i > 0)
            fputc(',', w->out);
        w->elements--;
        data = write_element(w, type, data);
    }
    fputc(']', w->out);
    w->cut = w->cut || i < count;
    *ret_left = count - i;
    return data;
}

static const uint8_t *write_array(struct json_writer *w, enum gguf_value_type type, uint64_t count, const uint8_t *data)
{
    uint64_t left;
    data = write_first(w, type, count, data, &left);
    return elements_end(type, left, data);
}

int header_kv_json(const struct header_kv *kv, size_t max_elements, size_t max_string, char **ret, bool *ret_cut)
{
    char *text = NULL;
    size_t size;
    struct json_writer writer = {open_memstream(&text, &size), max_elements, max_string, false};

    if (!writer.out)
        return -ENOMEM;
    uint64_t unused; /* nobody needs the end: to look for that of a vocabulary takes milliseconds */
    if (kv->type == GGUF_ARRAY)
        write_first(&writer, kv->element_type, kv->count, kv->data, &unused);
    else
        write_element(&writer, kv->type, kv->data);
    bool failed = ferror(writer.out);
    if (fclose(writer.out) != 0 || failed || !text) { /* glibc reports no error if it cannot shrink the text */
        free(text);
        return -ENOMEM;
    }
    *ret = text;
    if (ret_cut)
        *ret_cut = writer.cut;
    return 0;
}

int header_kv_describe(const struct header_kv *kv, cJSON *entry)
{
    char *value;
    bool cut;
    cJSON_AddStringToObject(entry, "type", gguf_value_type_name(kv->element_type));
    if (kv->type == GGUF_ARRAY)
        cJSON_AddNumberToObject(entry, "count", (double)kv->count);
    else
        cJSON_AddNullToObject(entry, "count");
    int r = header_kv_json(kv, HEADER_TOLD_ELEMENTS, HEADER_TOLD_STRING, &value, &cut);
    if (r < 0)
        return r;
    cJSON_AddStringToObject(entry, "value", value);
    free(value);
    if (cut)
        cJSON_AddTrueToObject(entry, "cut");
    if (cut && kv->type == GGUF_STRING)
        cJSON_AddNumberToObject(entry, "size", (double)(kv->data_size - GGUF_STRING_LENGTH));
    return 0;
}
