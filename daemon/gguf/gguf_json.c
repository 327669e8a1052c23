/* Values of the metadata: scalars for the daemon, JSON text for people and programs. */
#include "daemon/gguf/gguf.h"
#include "proto/utf8.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLOAT_DIGITS  9 /* as many always read back the same f32 */
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

/* --- Elements: one scalar or string as it stands in the file --- */

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

/* An integer of any type. Returns 1 if it is negative, *ret being its two's complement, else 0; -EINVAL for other
 * types. */
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

int gguf_kv_u64(const struct gguf_kv *kv, uint64_t *ret)
{
    uint64_t value;

    if (!kv)
        return -ENOENT;
    if (load_integer(kv->type, kv->data, &value) != 0)
        return -EINVAL;
    *ret = value;
    return 0;
}

int gguf_kv_i64(const struct gguf_kv *kv, int64_t *ret)
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

int gguf_kv_f64(const struct gguf_kv *kv, double *ret)
{
    if (!kv)
        return -ENOENT;
    if (kv->type != GGUF_F32 && kv->type != GGUF_F64)
        return -EINVAL;
    *ret = kv->type == GGUF_F32 ? load_float(kv->data) : load_double(kv->data);
    return 0;
}

int gguf_kv_string(const struct gguf_kv *kv, struct gguf_string *ret)
{
    if (!kv)
        return -ENOENT;
    if (kv->type != GGUF_STRING)
        return -EINVAL;
    *ret = (struct gguf_string){(const char *)kv->data + 8, kv->data_size - 8};
    return 0;
}

/* --- JSON --- */

/* The fewest digits that read back as the same number. JSON has no NaN and no infinities: they become strings. */
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

/* Cut at max_size bytes, but not inside a character. */
static void write_string(FILE *out, const char *bytes, size_t size, size_t max_size)
{
    fputc('"', out);
    for (size_t i = 0; i < size;) {
        size_t length = utf8_character(bytes + i, size - i);
        unsigned char c = (unsigned char)bytes[i];

        if (length > max_size - i || i == max_size)
            break;
        if (length == 0)
            fputs("\xef\xbf\xbd", out);
        else if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\u%04x", c);
        else
            fwrite(bytes + i, 1, length, out);
        i += length ? length : 1;
    }
    fputc('"', out);
}

/* Writes one element and returns the bytes that it takes in the file. */
static size_t write_element(FILE *out, enum gguf_value_type type, const uint8_t *data, size_t max_string)
{
    uint64_t value = 0;

    switch (type) {
    case GGUF_STRING:
        value = load(data, 8);
        write_string(out, (const char *)data + 8, (size_t)value, max_string);
        return 8 + (size_t)value;
    case GGUF_BOOL:
        fputs(data[0] ? "true" : "false", out);
        return 1;
    case GGUF_F32:
        write_float(out, load_float(data), false);
        return 4;
    case GGUF_F64:
        write_float(out, load_double(data), true);
        return 8;
    default:
        if (load_integer(type, data, &value) > 0)
            fprintf(out, "%" PRId64, (int64_t)value);
        else
            fprintf(out, "%" PRIu64, value);
        return type == GGUF_U8 || type == GGUF_I8     ? 1
               : type == GGUF_U16 || type == GGUF_I16 ? 2
               : type == GGUF_U32 || type == GGUF_I32 ? 4
                                                      : 8;
    }
}

int gguf_kv_json(const struct gguf_kv *kv, size_t max_elements, size_t max_string, char **ret)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    const uint8_t *data = kv->data;

    if (!out)
        return -ENOMEM;
    if (kv->type == GGUF_ARRAY) {
        fputc('[', out);
        for (uint64_t i = 0; i < kv->count && i < max_elements; i++) {
            if (i > 0)
                fputc(',', out);
            data += write_element(out, kv->element_type, data, max_string);
        }
        fputc(']', out);
    } else {
        write_element(out, kv->type, data, max_string);
    }
    bool failed = ferror(out);
    if (fclose(out) != 0 || failed) {
        free(text);
        return -ENOMEM;
    }
    *ret = text;
    return 0;
}
