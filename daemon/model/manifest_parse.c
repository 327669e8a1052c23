#include "daemon/model/manifest_place.h"
#include "proto/array.h"
#include "proto/json_read.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES_FIRST 64 /* of an array that grows */
#define NAME_TOLD     64 /* bytes of a name in a fault */

/* Ids of GGUF's types are smaller. */
#define TYPE_IDS 256u

/* The state of parsing one list. */
struct parser {
    struct json_reader json;
    struct manifest *manifest;
    struct model_header *header;
    struct plan *plan;
    size_t places_capacity;
    size_t strides_capacity, flags_capacity; /* tensors that there is room for */
    bool strided;                            /* one of them has strides */
    struct manifest_fault *fault;
};

/* The tensor that is being read is refused. */
#define refuse_this(p, ...) manifest_refuse((p)->fault, (p)->header->n_tensors, __VA_ARGS__)

static int refuse_json(struct parser *p)
{
    return refuse_this(p, "the list of tensors is not valid JSON at byte %zu: %s", p->json.at, p->json.reason);
}

/* --- one tensor --- */

/* What a tensor's fields say, before they are held against each other. */
struct fields {
    struct json_span name;
    const struct tensor_type *type;
    uint32_t n_dims, n_strides;
    uint64_t shape[HEADER_DIMS_MAX]; /* slowest first */
    uint64_t strides[HEADER_DIMS_MAX];
    bool has_strides;
    uint64_t offset; /* MANIFEST_NOWHERE: none */
};

enum { NAME = 1, TYPE = 2, SHAPE = 4, STRIDES = 8, OFFSET = 16 };

static unsigned field_of(const struct json_reader *json, const struct json_span *key)
{
    return json_equals(json, key, "name")      ? NAME
           : json_equals(json, key, "type")    ? TYPE
           : json_equals(json, key, "shape")   ? SHAPE
           : json_equals(json, key, "strides") ? STRIDES
           : json_equals(json, key, "offset")  ? OFFSET
                                               : 0;
}

/* The type of this name, if tensors of a published model may have it; else NULL. */
static const struct tensor_type *type_named(const struct json_reader *json, const struct json_span *name)
{
    for (uint32_t id = 0;; id = id + 1 == TYPE_IDS ? TYPE_KEPT_FIRST : id + 1) {
        const struct tensor_type *type = tensor_type_find(id);
        if (!type && id >= TYPE_KEPT_FIRST)
            return NULL;
        if (type && type->block_bytes > 0 && json_equals(json, name, type->name))
            return type;
    }
}

static int read_type(struct parser *p, struct fields *fields)
{
    struct json_span name;
    if (json_read_string(&p->json, &name) < 0)
        return refuse_json(p);
    fields->type = type_named(&p->json, &name);
    if (fields->type)
        return 0;
    const int told = (int)min_u64(name.end - name.begin, NAME_TOLD);
    return refuse_this(p, "there is no type '%.*s'", told, p->json.bytes + name.begin);
}

static int read_numbers(struct parser *p, const char *what, uint64_t ret[HEADER_DIMS_MAX], uint32_t *ret_n)
{
    bool first = true;
    int more;
    if (json_enter(&p->json, '[') < 0)
        return refuse_json(p);
    while ((more = json_next_value(&p->json, &first)) == 1) {
        uint64_t number;
        if (json_read_u64(&p->json, &number) < 0)
            return refuse_json(p);
        if (*ret_n == HEADER_DIMS_MAX)
            return refuse_this(p, "its %s has more than %u numbers", what, HEADER_DIMS_MAX);
        if (number > MANIFEST_NUMBER_MAX)
            return refuse_this(p, "a number of its %s is larger than 2^53", what);
        ret[(*ret_n)++] = number;
    }
    return more < 0 ? refuse_json(p) : 0;
}

/* A field that may be null. Returns 1: it is, and was read. */
static int read_null(struct parser *p)
{
    const int is_null = json_read_null(&p->json);
    return is_null < 0 ? refuse_json(p) : is_null;
}

static int read_field(struct parser *p, unsigned field, struct fields *fields)
{
    int r;
    switch (field) {
    case NAME:
        return json_read_string(&p->json, &fields->name) < 0 ? refuse_json(p) : 0;
    case TYPE:
        return read_type(p, fields);
    case SHAPE:
        return read_numbers(p, "shape", fields->shape, &fields->n_dims);
    case STRIDES:
        r = read_null(p);
        if (r != 0)
            return r < 0 ? r : 0;
        fields->has_strides = true;
        return read_numbers(p, "strides", fields->strides, &fields->n_strides);
    default:
        r = read_null(p);
        if (r != 0)
            return r < 0 ? r : 0;
        if (json_read_u64(&p->json, &fields->offset) < 0)
            return refuse_json(p);
        return fields->offset > MANIFEST_NUMBER_MAX ? refuse_this(p, "its offset is larger than 2^53") : 0;
    }
}

static int read_fields(struct parser *p, struct fields *fields)
{
    struct json_span key;
    bool first = true;
    unsigned seen = 0;
    int more;
    if (json_enter(&p->json, '{') < 0)
        return refuse_json(p);
    while ((more = json_next_key(&p->json, &first, &key)) == 1) {
        const unsigned field = field_of(&p->json, &key);
        const int told = (int)min_u64(key.end - key.begin, NAME_TOLD);
        if (field == 0 || (seen & field))
            return refuse_this(p, "the key '%.*s' %s", told, p->json.bytes + key.begin,
                               field ? "stands there twice" : "is not known");
        seen |= field;
        const int r = read_field(p, field, fields);
        if (r < 0)
            return r;
    }
    if (more < 0)
        return refuse_json(p);
    if ((seen & (NAME | TYPE | SHAPE)) != (NAME | TYPE | SHAPE))
        return refuse_this(p, "it lacks its %s", !(seen & NAME) ? "name" : !(seen & TYPE) ? "type" : "shape");
    return 0;
}

static int check_name(struct parser *p, const struct json_span *name)
{
    if (name->decoded == 0)
        return refuse_this(p, "its name is empty");
    if (name->decoded > HEADER_NAME_MAX)
        return refuse_this(p, "its name is longer than %u bytes", HEADER_NAME_MAX);
    return 0;
}

/* Sets elements and ne. */
static int check_shape(struct parser *p, const struct fields *fields, struct header_tensor *tensor)
{
    const struct tensor_type *type = fields->type;
    tensor->elements = 1;
    for (uint32_t i = 0; i < HEADER_DIMS_MAX; i++)
        tensor->ne[i] = 1;
    for (uint32_t i = 0; i < fields->n_dims; i++) {
        if (__builtin_mul_overflow(tensor->elements, fields->shape[i], &tensor->elements) ||
            tensor->elements > INT64_MAX)
            return refuse_this(p, "the product of its shape is larger than 2^63");
        tensor->ne[fields->n_dims - 1 - i] = fields->shape[i];
    }
    const uint64_t whole = type->kind == TYPE_KEPT ? tensor->elements : tensor->ne[0];
    if (whole % type->block_elements != 0)
        return refuse_this(p, "its rows are no whole blocks of %u elements", type->block_elements);
    return 0;
}

/* Whether the strides are those that a tensor without strides has. */
static bool is_plain(const struct fields *fields)
{
    uint64_t expected = 1;
    for (uint32_t i = fields->n_dims; i-- > 0;) {
        if (fields->shape[i] == 1)
            continue;
        if (fields->strides[i] != expected)
            return false;
        expected *= fields->shape[i]; /* check_shape() multiplied them all */
    }
    return true;
}

/* How many elements there are from the first to the last one. */
static int measure(struct parser *p, struct fields *fields, const struct header_tensor *tensor, uint64_t *ret)
{
    *ret = tensor->elements;
    if (!fields->has_strides)
        return 0;
    if (fields->n_strides != fields->n_dims)
        return refuse_this(p, "it has %u strides and %u dimensions", fields->n_strides, fields->n_dims);
    if (fields->type->block_elements != 1)
        return refuse_this(p, "a tensor of blocks has no strides");
    if (tensor->elements == 0 || is_plain(fields)) {
        fields->has_strides = false;
        return 0;
    }
    uint64_t last = 0, step;
    for (uint32_t i = 0; i < fields->n_dims; i++)
        if (__builtin_mul_overflow(fields->shape[i] - 1, fields->strides[i], &step) ||
            __builtin_add_overflow(last, step, &last) || last >= INT64_MAX)
            return refuse_this(p, "its strides reach further than 2^63 elements");
    *ret = last + 1;
    return 0;
}

/* Adds strides for this tensor, zeros if it has none, and its flags. */
static int add_strides(struct parser *p, const struct fields *fields)
{
    struct manifest *manifest = p->manifest;
    const size_t n = p->header->n_tensors;
    if (array_reserve(&manifest->strides, &p->strides_capacity, n, sizeof(uint64_t[HEADER_DIMS_MAX]), ENTRIES_FIRST) <
            0 ||
        array_reserve(&manifest->flags, &p->flags_capacity, n, sizeof(*manifest->flags), ENTRIES_FIRST) < 0)
        return -ENOMEM;
    manifest->flags[n] = fields->has_strides ? MANIFEST_STRIDED : 0;
    uint64_t *strides = manifest->strides + n * HEADER_DIMS_MAX;
    memset(strides, 0, sizeof(uint64_t[HEADER_DIMS_MAX]));
    if (fields->has_strides)
        memcpy(strides, fields->strides, fields->n_dims * sizeof(*strides));
    p->strided |= fields->has_strides;
    return 0;
}

static char *add_name(struct parser *p, const struct json_span *name)
{
    char *at = p->header->text + p->header->text_bytes;
    json_decode(&p->json, name, at);
    at[name->decoded] = '\0';
    p->header->text_bytes += name->decoded + 1;
    return at;
}

static int add_tensor(struct parser *p, struct fields *fields)
{
    struct model_header *header = p->header;
    const size_t n = header->n_tensors;
    struct header_tensor tensor = {.type = fields->type, .n_dims = fields->n_dims, .exempt = true};
    struct tensor_place place = {.offset = fields->offset, .form = form_of_type(fields->type)};
    uint64_t reach = 0;
    int r = check_name(p, &fields->name);
    if (r == 0)
        r = check_shape(p, fields, &tensor);
    if (r == 0)
        r = measure(p, fields, &tensor, &reach);
    if (r < 0)
        return r;
    const struct tensor_type *type = fields->type;
    assert(type); /* measure() refuses tensors without one */
    if (__builtin_mul_overflow(reach / type->block_elements, type->block_bytes, &tensor.bytes) ||
        tensor.bytes >= PLAN_ARENA_MAX)
        return refuse_this(p, "it is larger than any memory");
    if (type->block_elements == 1 && place.offset != MANIFEST_NOWHERE && place.offset % type->block_bytes != 0)
        return refuse_this(p, "its offset is no multiple of its elements' size");
    if (array_reserve(&header->tensors, &header->tensors_capacity, n, sizeof(*header->tensors), ENTRIES_FIRST) < 0 ||
        array_reserve(&p->plan->places, &p->places_capacity, n, sizeof(place), ENTRIES_FIRST) < 0 ||
        add_strides(p, fields) < 0)
        return -ENOMEM;
    tensor.name = add_name(p, &fields->name);
    place.bytes = tensor.bytes;
    header->tensors[n] = tensor;
    p->plan->places[n] = place;
    header->n_tensors++;
    return 0;
}

static int read_list(struct parser *p)
{
    bool first = true;
    int more;
    if (json_enter(&p->json, '[') < 0)
        return refuse_json(p);
    while ((more = json_next_value(&p->json, &first)) == 1) {
        struct fields fields = {.offset = MANIFEST_NOWHERE};
        if (p->header->n_tensors == HEADER_TENSORS_MAX)
            return refuse_this(p, "there are more than %u tensors", HEADER_TENSORS_MAX);
        int r = read_fields(p, &fields);
        if (r == 0)
            r = add_tensor(p, &fields);
        if (r < 0)
            return r;
    }
    return more < 0 ? refuse_json(p) : 0;
}

static int parse(struct parser *p, struct manifest_parsed *parts, const struct manifest_room *room)
{
    int r = p->json.size > 0 ? read_list(p) : 0;
    if (r == 0 && p->json.size > 0 && json_end(&p->json) < 0)
        r = refuse_json(p);
    if (r == 0)
        r = manifest_place(parts, room, p->fault);
    if (r == 0 && !p->strided) {
        free(p->manifest->strides);
        p->manifest->strides = NULL;
    }
    return r;
}

int manifest_parse(const char *text, size_t size, uint64_t bytes, uint64_t granule, struct manifest_parsed *ret,
                   struct manifest_fault *ret_fault)
{
    struct parser p = {.json = {.bytes = text, .size = size}, .fault = ret_fault};
    p.manifest = calloc(1, sizeof(*p.manifest));
    p.header = calloc(1, sizeof(*p.header));
    p.plan = calloc(1, sizeof(*p.plan));
    if (p.header)
        p.header->text = malloc(
            size +
            1); /* a decoded name and its NUL take no more bytes than the name in the JSON and one of its quotes */
    if (p.plan)
        p.plan->places = calloc(1, sizeof(*p.plan->places));
    struct manifest_parsed parts = {.manifest = p.manifest, .header = p.header, .plan = p.plan};
    int r = p.manifest && p.header && p.header->text && p.plan && p.plan->places ? 0 : -ENOMEM;
    if (r == 0) {
        p.places_capacity = 1;
        p.header->format = "published";
        p.plan->model = p.header;
        p.plan->manifest = p.manifest;
        r = parse(&p, &parts, &(const struct manifest_room){bytes, granule});
        p.plan->tensors = p.header->tensors;
    }
    if (r < 0) {
        manifest_parsed_free(&parts);
        return r;
    }
    *ret = parts;
    return 0;
}

int manifest_parse_none(uint64_t bytes, uint64_t granule, struct manifest_parsed *ret, struct manifest_fault *ret_fault)
{
    return manifest_parse("", 0, bytes, granule, ret, ret_fault);
}
