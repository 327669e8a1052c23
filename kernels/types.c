#include "kernels/types.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* Indexed by id. An id that the format never had has no name here. */
static const struct tensor_type types[] = {
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               [id] = {id, name, 1, bytes, TYPE_PLAIN},
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) [id] = {id, name, elements, bytes, TYPE_QUANTISED},
#define TYPE_INTERNAL_DEF(id, ident, name, elements, bytes)  [id] = {id, name, elements, bytes, TYPE_INTERNAL},
#define TYPE_REMOVED_DEF(id, name)                           [id] = {id, name, 0, 0, TYPE_REMOVED},
#include "kernels/types.def"
};

/* Indexed by id, less TYPE_KEPT_FIRST. */
static const struct tensor_type kept[] = {
#define TYPE_KEPT_DEF(id, name, elements, bytes) [id - TYPE_KEPT_FIRST] = {id, name, elements, bytes, TYPE_KEPT},
#include "kernels/types.def"
};

static const char *const form_names[FORM_COUNT] = {
    [FORM_NATIVE] = "native",
    [FORM_F32] = "f32",
    [FORM_F16] = "f16",
    [FORM_BF16] = "bf16",
};

const struct tensor_type *tensor_type_find(uint32_t id)
{
    if (id >= TYPE_KEPT_FIRST)
        return id - TYPE_KEPT_FIRST < sizeof kept / sizeof kept[0] ? &kept[id - TYPE_KEPT_FIRST] : NULL;
    if (id >= sizeof types / sizeof types[0] || !types[id].name)
        return NULL;
    return &types[id];
}

const char *form_name(enum form form)
{
    assert((unsigned)form < FORM_COUNT);
    return form_names[form];
}

int form_parse(const char *name, enum form *ret_form)
{
    for (unsigned i = 0; i < FORM_COUNT; i++) {
        if (strcmp(name, form_names[i]) == 0) {
            *ret_form = (enum form)i;
            return 0;
        }
    }
    return -EINVAL;
}

size_t form_element_bytes(enum form form)
{
    assert(form > FORM_NATIVE && form < FORM_COUNT);
    return form == FORM_F32 ? 4 : 2;
}
