/* The header of a model's file, whatever the format: metadata, tensors, and where each tensor's bytes are. A reader of
 * a format fills it: daemon/gguf/, daemon/safetensors/; daemon/format/ knows which.
 *
 * What a reader returns is valid: every tensor has whole rows of blocks and lies inside the file.
 *
 * A header that was read is immutable: any thread may read it.
 *
 * `rfctl inspect` uses these readers as well, because it reads files without a daemon. With a second reader, the two
 * could read the same file differently, and both would have to be made safe. So daemon/header/ and the readers are
 * libraries of their own, which include nothing else of the daemon. */
#pragma once

#include "daemon/header/fault.h"
#include "kernels/types.h"
#include "proto/gguf_value.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bounds, and those of proto/gguf_value.h. Most models stay far below them; some with several hundred experts in each
 * layer, whose files have them as tensors of their own, and scales, are over the first one. */
#define HEADER_TENSORS_MAX (1u << 16)
#define HEADER_NAME_MAX    4095u  /* bytes of a tensor's name */
#define HEADER_KEY_MAX     65535u /* bytes of a key */
#define HEADER_DIMS_MAX    8u     /* of a tensor */
#define HEADER_FOREIGN_MAX 64u    /* different types without a known block size, in one model */

/* Bytes as they are in the file: without a NUL at the end, and not always valid UTF-8. */
struct header_string {
    const char *bytes;
    size_t size;
};

/* One key and its value. `data` points to the value in the file's own encoding (of an array: to the first element), and
 * `data_size` is its size in bytes. Use header_kv_*() to decode scalars, and header_kv_json() to show any value to
 * people. */
struct header_kv {
    struct header_string key;
    enum gguf_value_type type;         /* GGUF_ARRAY for arrays */
    enum gguf_value_type element_type; /* of an array: GGUF_ARRAY if its elements are arrays. Else the same as type */
    uint64_t count;                    /* elements of the outermost array; 1 for a value that is no array */
    const uint8_t *data;
    size_t data_size;
};

struct header_tensor {
    const char *name; /* NUL-terminated, valid UTF-8 */
    const struct tensor_type *type;
    uint32_t n_dims;   /* 0 to HEADER_DIMS_MAX */
    uint64_t elements; /* product of ne; 0 if any is 0 */
    uint64_t bytes;    /* elements / block_elements * block_bytes; of a TYPE_FOREIGN, up to the next tensor */
    uint64_t offset;   /* of the first byte, from the start of the FILE */
    bool exempt;    /* a form that is asked for all tensors does not concern this one; only a rule that names it does */
    uint32_t shard; /* index of the file, of a split model; else 0 */
    uint64_t ne[HEADER_DIMS_MAX]; /* dimensions in the file's order: ne[0] changes fastest; unused ones are 1 */
};

/* A type that is not in the table of types, or whose block size the table does not have. */
struct header_foreign {
    struct tensor_type type;
    char name[16]; /* "type65535" */
};

/* The header of a model's file, or of all files of a model (join.h). `format` says which reader filled it, and `text`
 * owns the strings that do not stand in `memory` as they are needed. */
struct model_header {
    const char *format; /* "gguf", "safetensors"; static */
    uint32_t version;   /* of GGUF; else 0 */
    uint64_t alignment;
    uint64_t data_start; /* from the start of the file */
    uint64_t file_size;
    size_t n_kv;
    struct header_kv *kv; /* in the order of the file */
    size_t n_tensors;
    struct header_tensor *tensors; /* in the order of the file */
    void *memory; /* the header's bytes, which the pointers above point into; each tensor name has a NUL at its end */
    size_t memory_bytes; /* of `memory` */
    char *text;          /* NULL: there is none */
    size_t text_bytes;   /* of `text`, those in use */
    size_t header_bytes; /* from the file's first byte to the end of the tensor infos */
    size_t n_infos;      /* tensors whose names the parser ended in `memory`; they come first in `tensors` */
    size_t kv_capacity;  /* number of entries that are allocated */
    size_t tensors_capacity;
    struct header_foreign *foreign; /* types without a known block size; NULL: none */
    size_t n_foreign;
    struct model_header
        *next; /* of a joined model: the header of the next file, which some tensors point into; owned */
};

/* Bytes of memory that are allocated for the model. */
uint64_t model_header_memory(const struct model_header *model);

/* Writes the header to `fd` at its position, with the same bytes as in the model's file: everything before the tensor
 * data, without padding. Of a joined model, writes the header of the first file. Returns 0, or the negative errno of
 * write(). */
int model_header_write(const struct model_header *model, int fd);

/* Frees a model. NULL is allowed. */
void model_header_free(struct model_header *model);

/* Whether the headers are the same; of a split model, those of all files. The parser overwrote the byte after each
 * tensor's name (gguf.c): the tensors' n_dims are compared instead. */
bool model_header_same(const struct model_header *a, const struct model_header *b);

/* The entry for a key, or NULL. */
const struct header_kv *model_header_find(const struct model_header *model, const char *key);

/* The tensor with this name, or NULL. */
const struct header_tensor *model_header_tensor(const struct model_header *model, const char *name);

/* Read a scalar of any integer type, or a bool. -ENOENT if kv is NULL; -EINVAL if the type is another, or if the value
 * does not fit. */
int header_kv_u64(const struct header_kv *kv, uint64_t *ret);
int header_kv_i64(const struct header_kv *kv, int64_t *ret);

/* Reads an f32 or f64. Errors as above. */
int header_kv_f64(const struct header_kv *kv, double *ret);

/* Reads a string, which is borrowed from the model. Errors as above. */
int header_kv_string(const struct header_kv *kv, struct header_string *ret);

/* "u32", "string", "array", ... A static string; never NULL for a value below GGUF_VALUE_TYPE_COUNT. */
const char *gguf_value_type_name(enum gguf_value_type type);

/* Writes a value as JSON text. Integers are decimal. Floats have the fewest digits that give the same number when read
 * again; NaN and infinities become strings. Strings are escaped, and bytes that are not UTF-8 become U+FFFD. At most
 * max_elements elements of arrays are written, the elements of nested arrays included, and at most max_string bytes of
 * each string, cut between two characters. *ret_cut, unless NULL, is set to whether something was left out. The caller
 * frees *ret. -ENOMEM. */
int header_kv_json(const struct header_kv *kv, size_t max_elements, size_t max_string, char **ret, bool *ret_cut);

/* The limits for header_kv_json() where a value is shown to people. */
#define HEADER_TOLD_ELEMENTS 16u
#define HEADER_TOLD_STRING   4096u

/* Adds to an entry of Show, or of rfctl inspect, what the value is: "type", "count", "value", and whether it was cut to
 * these limits. -ENOMEM. */
int header_kv_describe(const struct header_kv *kv, cJSON *entry);

/* One of the files of a model, whose headers are read. */
struct header_file {
    int fd; /* borrowed; its position is neither used nor moved */
    uint64_t size;
};

/* Says what is wrong with the files of a model together: at no offset of one of them. Returns -EBADMSG. */
int model_header_refuse(struct header_fault *fault, const char *format, ...) __attribute__((format(printf, 2, 3)));
