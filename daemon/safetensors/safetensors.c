#include "daemon/safetensors/safetensors.h"

#include "daemon/header/header_reader.h"
#include "daemon/header/join.h"
#include "daemon/header/name_set.h"
#include "proto/array.h"
#include "proto/json_read.h"
#include "proto/min.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH_BYTES  8u                  /* the header's length, before the header */
#define SIZE_BOUND    (UINT64_C(1) << 53) /* of a file's size and of a dimension: JSON numbers are exact up to here */
#define ENTRIES_FIRST 64                  /* of an array that grows */
#define NAME_TOLD     64                  /* bytes of a name in a fault */

/* The types of the format. floats: a form for all tensors converts them. Integers may be packed codes, so they stay. */
static const struct dtype {
    const char *name;
    uint32_t id; /* of kernels/types.def */
    bool floats;
} dtypes[] = {
    {"F32", 0, true},          {"F16", 1, true},
    {"BF16", 30, true},        {"F64", 28, true},
    {"I8", 24, false},         {"I16", 25, false},
    {"I32", 26, false},        {"I64", 27, false},
    {"BOOL", 65536, false},    {"U8", 65537, false},
    {"U16", 65538, false},     {"U32", 65539, false},
    {"U64", 65540, false},     {"C64", 65541, false},
    {"F8_E4M3", 65542, false}, {"F8_E4M3FNUZ", 65543, false},
    {"F8_E5M2", 65544, false}, {"F8_E5M2FNUZ", 65545, false},
    {"F8_E8M0", 65546, false}, {"F6_E2M3", 65547, false},
    {"F6_E3M2", 65548, false}, {"F4", 65549, false},
};

/* What is needed of a tensor until all are read. begin, end: in the tensor data. key: offset of its name in the JSON.
 */
struct span {
    uint64_t begin, end;
    size_t key;
    size_t tensor; /* index in model->tensors, as the header has them */
};

/* The state of reading one file. */
struct parser {
    struct header_reader file;
    struct json_reader json;
    struct model_header *model;
    struct span *spans; /* as many as tensors */
    size_t spans_capacity;
    size_t *keys; /* offsets of the metadata's keys in the JSON, as many as kv */
    size_t keys_capacity;
    bool has_metadata;
};

bool safetensors_starts(const uint8_t *start, size_t size)
{
    /* A GGUF file of 123 tensors has a brace at this place, too. "GGUF" as the beginning of a length is more than is
     * allowed. */
    return size >= SAFETENSORS_START && memcmp(start, "GGUF", 4) != 0 && start[LENGTH_BYTES] == '{';
}

/* Refuses the file for what stands at `at` in the JSON. */
#define refuse_at(p, at, ...) header_refuse(&(p)->file, LENGTH_BYTES + (at), __VA_ARGS__)

/* The JSON itself is wrong. */
static int refuse_json(struct parser *p)
{
    return refuse_at(p, p->json.at, "the header is not valid: %s", p->json.reason);
}

/* Adds a decoded string and a NUL to the text. There is room: see text_new(). */
static char *text_add(struct parser *p, const struct json_span *string)
{
    char *at = p->model->text + p->model->text_bytes;
    json_decode(&p->json, string, at);
    at[string->decoded] = '\0';
    p->model->text_bytes += string->decoded + 1;
    return at;
}

/* The text never moves, so that there can be pointers into it. Each string needs its decoded bytes and a NUL, and each
 * value of the metadata GGUF_STRING_LENGTH bytes more. In the JSON, a key and its value have six bytes besides their
 * characters. So twice the size of the JSON is enough. Pages that are not used take no memory. */
static int text_new(struct parser *p)
{
    p->model->text = malloc(2 * p->json.size + 64);
    return p->model->text ? 0 : -ENOMEM;
}

/* --- metadata --- */

static int read_entry(struct parser *p, const struct json_span *key)
{
    struct model_header *model = p->model;
    struct json_span value;
    const size_t at = key->begin - 1;
    if (json_read_string(&p->json, &value) < 0)
        return refuse_json(p);
    if (model->n_kv == HEADER_KV_MAX)
        return refuse_at(p, at, "more than %u keys", HEADER_KV_MAX);
    if (key->decoded > HEADER_KEY_MAX)
        return refuse_at(p, at, "a key is longer than %u bytes", HEADER_KEY_MAX);
    if (array_reserve(&model->kv, &model->kv_capacity, model->n_kv, sizeof(*model->kv), ENTRIES_FIRST) < 0 ||
        array_reserve(&p->keys, &p->keys_capacity, model->n_kv, sizeof(*p->keys), ENTRIES_FIRST) < 0)
        return -ENOMEM;
    struct header_kv *kv = &model->kv[model->n_kv];
    *kv = (struct header_kv){.type = GGUF_STRING, .element_type = GGUF_STRING, .count = 1};
    kv->key = (struct header_string){text_add(p, key), key->decoded};
    const uint64_t length = htole64(value.decoded);
    char *data = model->text + model->text_bytes;
    memcpy(data, &length, GGUF_STRING_LENGTH);
    model->text_bytes += GGUF_STRING_LENGTH;
    (void)text_add(p, &value);
    kv->data = (const uint8_t *)data;
    kv->data_size = GGUF_STRING_LENGTH + value.decoded;
    p->keys[model->n_kv++] = at;
    return 0;
}

static int read_metadata(struct parser *p, const struct json_span *name)
{
    struct json_span key;
    bool first = true;
    if (p->has_metadata)
        return refuse_at(p, name->begin - 1, "__metadata__ stands twice in the header");
    p->has_metadata = true;
    int more = json_read_null(&p->json);
    if (more == 1)
        return 0;
    if (more < 0 || json_enter(&p->json, '{') < 0)
        return refuse_json(p);
    while ((more = json_next_key(&p->json, &first, &key)) == 1) {
        const int error = read_entry(p, &key);
        if (error)
            return error;
    }
    return more < 0 ? refuse_json(p) : 0;
}

/* --- tensors --- */

static int read_dtype(struct parser *p, struct header_tensor *tensor)
{
    struct json_span name;
    if (json_read_string(&p->json, &name) < 0)
        return refuse_json(p);
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (json_equals(&p->json, &name, dtypes[i].name)) {
            tensor->type = tensor_type_find(dtypes[i].id);
            tensor->exempt = !dtypes[i].floats;
            return 0;
        }
    }
    const int told = (int)min_u64(name.end - name.begin, NAME_TOLD);
    return refuse_at(p, name.begin - 1, "dtype '%.*s' is not known", told, p->json.bytes + name.begin);
}

/* ne: in the order of the file. */
static int read_shape(struct parser *p, struct header_tensor *tensor)
{
    bool first = true;
    int more;
    if (json_enter(&p->json, '[') < 0)
        return refuse_json(p);
    while ((more = json_next_value(&p->json, &first)) == 1) {
        const size_t at = p->json.at;
        uint64_t dimension;
        if (json_read_u64(&p->json, &dimension) < 0)
            return refuse_json(p);
        if (tensor->n_dims == HEADER_DIMS_MAX)
            return refuse_at(p, at, "a tensor has more than %u dimensions", HEADER_DIMS_MAX);
        if (dimension > SIZE_BOUND)
            return refuse_at(p, at, "a tensor's dimension is larger than 2^53");
        if (__builtin_mul_overflow(tensor->elements, dimension, &tensor->elements) || tensor->elements > INT64_MAX)
            return refuse_at(p, at, "the product of a tensor's dimensions is larger than 2^63");
        tensor->ne[tensor->n_dims++] = dimension;
    }
    return more < 0 ? refuse_json(p) : 0;
}

static int read_offsets(struct parser *p, struct span *span)
{
    uint64_t *ends[] = {&span->begin, &span->end};
    bool first = true;
    int more = json_enter(&p->json, '[');
    for (size_t i = 0; i < 2 && more == 0; i++) {
        const size_t at = p->json.at;
        more = json_next_value(&p->json, &first);
        if (more == 0)
            return refuse_at(p, at, "data_offsets are not two numbers");
        more = more < 0 ? more : json_read_u64(&p->json, ends[i]);
    }
    const size_t at = p->json.at;
    more = more < 0 ? more : json_next_value(&p->json, &first);
    if (more < 0)
        return refuse_json(p);
    return more == 0 ? 0 : refuse_at(p, at, "data_offsets are not two numbers");
}

static int check_size(struct parser *p, struct header_tensor *tensor, const struct span *span)
{
    const struct tensor_type *type = tensor->type;
    if (tensor->elements % type->block_elements != 0)
        return refuse_at(p, span->key, "a tensor of %" PRIu64 " elements of %s does not end on a byte",
                         tensor->elements, type->name);
    if (__builtin_mul_overflow(tensor->elements / type->block_elements, type->block_bytes, &tensor->bytes))
        return refuse_at(p, span->key, "a tensor is larger than 2^64 bytes");
    if (span->end < span->begin)
        return refuse_at(p, span->key, "a tensor ends before it begins");
    if (span->end - span->begin != tensor->bytes)
        return refuse_at(p, span->key, "a tensor has %" PRIu64 " bytes, and by its shape and dtype %" PRIu64,
                         span->end - span->begin, tensor->bytes);
    /* ne[0] changes fastest. */
    for (uint32_t i = 0, j = tensor->n_dims; i + 1 < j; i++) {
        const uint64_t other = tensor->ne[--j];
        tensor->ne[j] = tensor->ne[i];
        tensor->ne[i] = other;
    }
    for (uint32_t i = tensor->n_dims; i < HEADER_DIMS_MAX; i++)
        tensor->ne[i] = 1;
    return 0;
}

/* The fields of a tensor's info. */
enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };

static unsigned field_of(const struct json_reader *json, const struct json_span *key)
{
    return json_equals(json, key, "dtype")          ? DTYPE
           : json_equals(json, key, "shape")        ? SHAPE
           : json_equals(json, key, "data_offsets") ? OFFSETS
                                                    : 0;
}

static int read_field(struct parser *p, unsigned field, struct header_tensor *tensor, struct span *span)
{
    switch (field) {
    case DTYPE:
        return read_dtype(p, tensor);
    case SHAPE:
        return read_shape(p, tensor);
    case OFFSETS:
        return read_offsets(p, span);
    default: /* of a later version of the format */
        return json_skip(&p->json) < 0 ? refuse_json(p) : 0;
    }
}

static int read_info(struct parser *p, struct header_tensor *tensor, struct span *span)
{
    struct json_span key;
    bool first = true;
    unsigned seen = 0;
    int more;
    if (json_enter(&p->json, '{') < 0)
        return refuse_json(p);
    while ((more = json_next_key(&p->json, &first, &key)) == 1) {
        const unsigned field = field_of(&p->json, &key);
        if (seen & field)
            return refuse_at(p, key.begin - 1, "a key stands twice in a tensor's info");
        seen |= field;
        const int error = read_field(p, field, tensor, span);
        if (error)
            return error;
    }
    if (more < 0)
        return refuse_json(p);
    if (seen != (DTYPE | SHAPE | OFFSETS))
        return refuse_at(p, span->key, "a tensor lacks its %s",
                         !(seen & DTYPE)   ? "dtype"
                         : !(seen & SHAPE) ? "shape"
                                           : "data_offsets");
    return check_size(p, tensor, span);
}

static int read_tensor(struct parser *p, const struct json_span *name)
{
    struct model_header *model = p->model;
    const size_t n = model->n_tensors, at = name->begin - 1;
    if (name->decoded == 0)
        return refuse_at(p, at, "a tensor's name is empty");
    if (name->decoded > HEADER_NAME_MAX)
        return refuse_at(p, at, "a tensor's name is longer than %u bytes", HEADER_NAME_MAX);
    if (n == HEADER_TENSORS_MAX)
        return refuse_at(p, at, "more than %u tensors", HEADER_TENSORS_MAX);
    if (array_reserve(&model->tensors, &model->tensors_capacity, n, sizeof(*model->tensors), ENTRIES_FIRST) < 0 ||
        array_reserve(&p->spans, &p->spans_capacity, n, sizeof(*p->spans), ENTRIES_FIRST) < 0)
        return -ENOMEM;
    model->tensors[n] = (struct header_tensor){.name = text_add(p, name), .elements = 1};
    p->spans[n] = (struct span){.key = at, .tensor = n};
    const int error = read_info(p, &model->tensors[n], &p->spans[n]);
    model->n_tensors += error == 0;
    return error;
}

/* --- a file --- */

/* Refuses keys and names that stand twice. */
static int check_twice(struct parser *p)
{
    __attribute__((cleanup(name_set_free))) struct name_set seen = {0}, keys = {0};
    const struct model_header *model = p->model;
    if (name_set_init(&seen, model->n_tensors) < 0 || name_set_init(&keys, model->n_kv) < 0)
        return -ENOMEM;
    for (size_t i = 0; i < model->n_kv; i++)
        if (!name_set_add(&keys, model->kv[i].key.bytes, model->kv[i].key.size))
            return refuse_at(p, p->keys[i], "a key stands twice in the metadata");
    for (size_t i = 0; i < model->n_tensors; i++)
        if (!name_set_add(&seen, model->tensors[i].name, strlen(model->tensors[i].name)))
            return refuse_at(p, p->spans[i].key, "two tensors are called %.*s", NAME_TOLD, model->tensors[i].name);
    return 0;
}

static int span_compare(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return x->tensor < y->tensor ? -1 : x->tensor > y->tensor;
}

/* Puts the tensors into the order of their bytes, and refuses holes, shared bytes, and what does not end with the file.
 * The spans are sorted afterwards. */
static int place_tensors(struct parser *p)
{
    struct model_header *model = p->model;
    const uint64_t room = model->file_size - model->data_start;
    struct header_tensor *tensors = calloc(model->n_tensors ? model->n_tensors : 1, sizeof(*tensors));
    uint64_t end = 0;
    size_t last = 0;
    if (!tensors)
        return -ENOMEM;
    if (model->n_tensors > 0)
        qsort(p->spans, model->n_tensors, sizeof(*p->spans), span_compare);
    for (size_t i = 0; i < model->n_tensors; i++) {
        const struct span *span = &p->spans[i];
        tensors[i] = model->tensors[span->tensor];
        tensors[i].offset = model->data_start + span->begin;
        if (span->begin != end || span->end > room) {
            const int told = NAME_TOLD;
            const char *name = tensors[i].name;
            free(tensors);
            if (span->begin != end)
                return refuse_at(p, span->key,
                                 "tensor %.*s begins at byte %" PRIu64 " of the data, and not at %" PRIu64, told, name,
                                 span->begin, end);
            return refuse_at(p, span->key, "tensor %.*s reaches past the end of the file", told, name);
        }
        end = span->end;
        last = span->key;
    }
    free(model->tensors);
    model->tensors = tensors;
    model->tensors_capacity = model->n_tensors ? model->n_tensors : 1;
    if (end != room)
        return refuse_at(p, last, "the tensors end at byte %" PRIu64 " of the data, and the file at %" PRIu64, end,
                         room);
    return 0;
}

static int read_json(struct parser *p)
{
    struct json_span name;
    bool first = true;
    int more = 0, error = 0;
    if (json_enter(&p->json, '{') < 0)
        return refuse_json(p);
    while (error == 0 && (more = json_next_key(&p->json, &first, &name)) == 1)
        error = json_equals(&p->json, &name, "__metadata__") ? read_metadata(p, &name) : read_tensor(p, &name);
    if (error)
        return error;
    return more < 0 || json_end(&p->json) < 0 ? refuse_json(p) : 0;
}

static int read_header(struct parser *p)
{
    struct header_reader *file = &p->file;
    struct model_header *model = p->model;
    uint64_t length;
    if (file->file_size > SIZE_BOUND)
        return header_refuse(file, 0, "the file is larger than 2^53 bytes");
    int error = header_take_u64(file, &length);
    if (error)
        return error;
    if (length > SAFETENSORS_HEADER_MAX)
        return header_refuse(file, 0, "the header is larger than %u bytes", SAFETENSORS_HEADER_MAX);
    if (length > file->file_size - LENGTH_BYTES)
        return header_refuse(file, 0, "the header of %" PRIu64 " bytes reaches past the end of the file", length);
    error = header_ensure(file, length, 0);
    if (error)
        return error;
    file->pos += (size_t)length;
    header_trim(file);
    p->json = (struct json_reader){.bytes = (const char *)file->bytes + LENGTH_BYTES, .size = (size_t)length};
    model->header_bytes = model->data_start = LENGTH_BYTES + length;
    if (length > 0 && p->json.bytes[0] != '{')
        return refuse_at(p, 0, "the header does not begin with '{'");
    error = text_new(p);
    error = error ? error : read_json(p);
    error = error ? error : check_twice(p);
    return error ? error : place_tensors(p);
}

static int read_one(int fd, uint64_t file_size, uint64_t most, struct model_header **ret,
                    struct header_fault *ret_fault)
{
    struct parser p = {.file = {.fd = fd, .file_size = file_size, .most = most, .fault = ret_fault}};
    p.model = calloc(1, sizeof(*p.model));
    if (!p.model)
        return -ENOMEM;
    p.model->format = "safetensors";
    p.model->file_size = file_size;
    p.model->alignment = 1;
    const int error = read_header(&p);
    p.model->memory = p.file.bytes;
    p.model->memory_bytes = p.file.capacity;
    free(p.spans);
    free(p.keys);
    if (error)
        model_header_free(p.model);
    else
        *ret = p.model;
    return error;
}

/* --- all files --- */

/* Numbers of at most 8 bits are multiplied with scales, which engines read in the type in which they were written. So
 * in a model that has such numbers, tensors stay as they are if "scale" is in the last part of their names. */
static void exempt_scales(struct model_header *model)
{
    bool scaled = false;
    for (size_t i = 0; i < model->n_tensors; i++) {
        const struct tensor_type *type = model->tensors[i].type;
        scaled = scaled || (type->kind == TYPE_KEPT && type->name[0] == 'f');
    }
    for (size_t i = 0; i < model->n_tensors && scaled; i++) {
        struct header_tensor *tensor = &model->tensors[i];
        const char *dot = strrchr(tensor->name, '.');
        tensor->exempt = tensor->exempt || strstr(dot ? dot : tensor->name, "scale");
    }
}

int safetensors_read(const struct header_file *files, size_t n, struct model_header **ret,
                     struct header_fault *ret_fault, size_t *ret_file)
{
    struct file_header *headers = calloc(n, sizeof(*headers));
    uint64_t left = HEADER_BYTES_MAX;
    int r = headers ? 0 : -ENOMEM;
    *ret_file = 0;
    for (size_t i = 0; i < n && r == 0; i++) {
        *ret_file = headers[i].file = i;
        r = read_one(files[i].fd, files[i].size, left, &headers[i].model, ret_fault);
        if (r == 0)
            left -= min_u64(model_header_memory(headers[i].model), left);
    }
    if (r == 0 && n > 1) {
        *ret_file = n;
        r = headers_join(headers, n, ret_fault);
    }
    if (r == 0) {
        exempt_scales(headers[0].model);
        *ret = headers[0].model;
    }
    for (size_t i = 0; i < n && headers && r < 0; i++)
        model_header_free(headers[i].model);
    free(headers);
    return r;
}
