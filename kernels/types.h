/* The tensor types of GGUF: one table of ids, names and block sizes, and the forms that a tensor can be resident in.
 *
 * A type is decoded block by block: `block_elements` consecutive elements of a row stand in `block_bytes` bytes, with
 * no padding between blocks. Adding a type is one line in kernels/types.def and one function in kernels/blocks.h.
 *
 * Everything here is constant data; any thread may call anything. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How a tensor's bytes stand in memory. NATIVE is the file's own blocks, verbatim. */
enum form {
    FORM_NATIVE,
    FORM_F32,
    FORM_F16,
    FORM_BF16,
    FORM_COUNT,
};

/* Why a type can or cannot be used. */
enum type_kind {
    TYPE_PLAIN,     /* one element a block, a machine number */
    TYPE_QUANTISED, /* blocks of codes and scales */
    TYPE_INTERNAL,  /* Q8_1, Q8_K: activations inside an engine; no decoder */
    TYPE_REMOVED,   /* an id that the format gave up; it has no block size */
    TYPE_FOREIGN,   /* not in the table: only the file tells how many bytes such a tensor has; counted in bytes */
};

struct tensor_type {
    uint32_t id;             /* as stored in the file */
    const char *name;        /* as ggml prints it: "q4_K" */
    uint32_t block_elements; /* 0 for TYPE_REMOVED */
    uint32_t block_bytes;    /* 0 for TYPE_REMOVED */
    enum type_kind kind;
};

/* The type with this id, removed and internal ones included; NULL if the format never had it. The result is static. */
const struct tensor_type *tensor_type_find(uint32_t id);

/* The form's name ("native", "f32", ...); never NULL for a value below FORM_COUNT. */
const char *form_name(enum form form);

/* Parses a form's name. Returns 0 and sets *ret_form, or -EINVAL. "auto" is not a form: it is a choice, made for each
 * tensor when its place is planned. */
int form_parse(const char *name, enum form *ret_form);

/* Bytes that one element takes in a form other than FORM_NATIVE: 4, 2 or 2. */
size_t form_element_bytes(enum form form);
