/* The tensor types of GGUF and safetensors (one table of ids, names and block sizes), and the forms that a tensor can
 * have in memory.
 *
 * A type is decoded block by block: `block_elements` consecutive elements of a row are in `block_bytes` bytes. There is
 * no padding between blocks. To add a type, add one line to kernels/types.def and one function to kernels/blocks.h.
 *
 * All of it is constant data; any thread may call any function. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The form of a tensor's bytes in memory. FORM_NATIVE: the blocks as they are in the file. */
enum form {
    FORM_NATIVE,
    FORM_F32,
    FORM_F16,
    FORM_BF16,
    FORM_COUNT,
};

/* Why a type can or cannot be used. */
enum type_kind {
    TYPE_PLAIN,     /* a block is one element, a number that a processor knows */
    TYPE_QUANTISED, /* a block has codes and scales */
    TYPE_INTERNAL,  /* Q8_1, Q8_K: engines use them for activations; no decoder */
    TYPE_REMOVED,   /* an id that the format no longer uses; it has no block size */
    TYPE_FOREIGN,   /* not in the table: only the file tells how many bytes such a tensor has; counted in bytes */
    TYPE_KEPT,      /* of safetensors, and not of GGUF: always FORM_NATIVE; no decoder. Whole tensors have whole blocks,
                       rows need not */
};

/* The first id of a TYPE_KEPT. GGUF files have smaller ids. */
#define TYPE_KEPT_FIRST 65536u

struct tensor_type {
    uint32_t id;             /* as in a GGUF file; of a TYPE_KEPT, this project's own */
    const char *name;        /* as ggml prints it: "q4_K" */
    uint32_t block_elements; /* 0 for TYPE_REMOVED */
    uint32_t block_bytes;    /* 0 for TYPE_REMOVED */
    enum type_kind kind;
};

/* The type with this id, which may be removed or internal. NULL if no type has this id. The result is
 * static. */
const struct tensor_type *tensor_type_find(uint32_t id);

/* The form's name ("native", "f32", ...); never NULL for a value below FORM_COUNT. */
const char *form_name(enum form form);

/* Parses the name of a form. Returns 0 and sets *ret_form, or returns -EINVAL. "auto" is not a form: it means that a
 * form is chosen for each tensor when its place is planned. */
int form_parse(const char *name, enum form *ret_form);

/* Bytes of one element in a form other than FORM_NATIVE: 4, 2 or 2. */
size_t form_element_bytes(enum form form);
