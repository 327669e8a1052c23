/* Reads the header of a GGUF file: metadata, tensor infos, and where each tensor's bytes are.
 *
 * The file is untrusted. Every count, length and size is held against the bytes that are left before anything is
 * allocated for it; memory is at most a small multiple of the header's size. Nothing is read through mmap. A model that
 * is given out is sound: every tensor has whole rows of blocks, an aligned offset, and lies inside the file. Tensors
 * may stand in any order and may share bytes. A tensor whose type has no known block size ends where the next one
 * begins.
 *
 * Blocking; meant for a worker thread. A parsed model is immutable: any thread may read it.
 *
 * It is the one part of the daemon that `rfctl inspect` has too, which reads files without a daemon: a second parser
 * would be a second one to harden, and might see another file. So this, with header_reader and name_set, is a library
 * of its own (gguf_dep), and includes nothing of the rest of the daemon. */
#pragma once

#include "daemon/gguf/fault.h"
#include "kernels/types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bounds that no real model comes near. */
#define GGUF_TENSORS_MAX (1u << 16)
#define GGUF_KV_MAX      (1u << 16)
#define GGUF_NAME_MAX    4095u  /* bytes of a tensor's name */
#define GGUF_KEY_MAX     65535u /* bytes of a key */
#define GGUF_DIMS_MAX    8u     /* of a tensor */
#define GGUF_TYPE_MAX    65535u /* a larger number of a tensor's type is no number of a type */
#define GGUF_FOREIGN_MAX 64u    /* different types without a known block size */
#define GGUF_NESTING_MAX 8u     /* arrays in arrays */

/* Ids are those of the file. */
enum gguf_value_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_VALUE_TYPE_COUNT,
};

/* What a string's length takes in the file, before the string. */
#define GGUF_STRING_LENGTH 8u

/* Bytes as they stand in the file; not terminated, perhaps not UTF-8. */
struct gguf_string {
    const char *bytes;
    size_t size;
};

/* One key and its value. `data` points to the value as it stands in the file (for arrays: the first element), and
 * `data_size` is its size there. Decode scalars with gguf_kv_*(), and anything for people with gguf_kv_json(). */
struct gguf_kv {
    struct gguf_string key;
    enum gguf_value_type type;         /* GGUF_ARRAY for arrays */
    enum gguf_value_type element_type; /* of an array, GGUF_ARRAY if its elements are arrays; else the same as type */
    uint64_t count;                    /* of an array, the outermost one; else 1 */
    const uint8_t *data;
    size_t data_size;
};

struct gguf_tensor {
    const char *name; /* NUL-terminated, valid UTF-8 */
    const struct tensor_type *type;
    uint32_t n_dims;            /* 0 to GGUF_DIMS_MAX */
    uint64_t elements;          /* product of ne; 0 if any is 0 */
    uint64_t bytes;             /* elements / block_elements * block_bytes; of a TYPE_FOREIGN, up to the next tensor */
    uint64_t offset;            /* of the first byte, from the start of the FILE */
    uint32_t shard;             /* which file of a split model; 0 */
    uint64_t ne[GGUF_DIMS_MAX]; /* as in the file: ne[0] is the fastest; missing ones are 1 */
};

/* A type that is not in the table, or has no block size there. */
struct gguf_foreign {
    struct tensor_type type;
    char name[16]; /* "type65535" */
};

struct gguf {
    uint32_t version;
    uint64_t alignment;
    uint64_t data_start; /* from the start of the file */
    uint64_t file_size;
    size_t n_kv;
    struct gguf_kv *kv; /* in the order of the file */
    size_t n_tensors;
    struct gguf_tensor *tensors; /* in the order of the file */
    void *memory;                /* what the pointers above point into: the header, with names that were terminated */
    size_t memory_bytes;         /* of it */
    size_t header_bytes;         /* of the header: from the file's first byte to the end of the tensor infos */
    size_t n_infos;              /* tensors whose infos stand in it: the first of them */
    size_t kv_capacity;          /* entries that there is room for */
    size_t tensors_capacity;
    struct gguf_foreign *foreign; /* types that are not in the table; NULL: none */
    size_t n_foreign;
    struct gguf *next; /* of a joined model: the next file's header, which tensors point into; owned */
};

/* Parses the header of the file open at `fd`, which stays the caller's; its position is neither used nor moved.
 * file_size: as fstat() said. Returns 0 and a model that the caller frees with gguf_free(); -EBADMSG and *ret_fault if
 * the file is refused; -ENOMEM; or the negative errno of pread(), where -ENODATA says that the file is shorter than
 * file_size by now. */
int gguf_read(int fd, uint64_t file_size, struct gguf **ret, struct gguf_fault *ret_fault);

/* The same of one of several files whose headers are kept together: its header may have at most `most` bytes, of the
 * GGUF_HEADER_MAX that there are for all of them. */
int gguf_read_within(int fd, uint64_t file_size, uint64_t most, struct gguf **ret, struct gguf_fault *ret_fault);

/* Has memory ready for the next header: it is read in half the time then. Any thread; best called when nobody waits. */
void gguf_prepare(void);

/* Bytes of memory that the model itself takes, as it was allocated. */
uint64_t gguf_memory(const struct gguf *model);

/* Writes the header to a file, at its position, as it stands in the model's: metadata and tensor infos, from the magic
 * to the last info. Of a joined model the first file's. Returns 0, or the negative errno of write(). */
int gguf_header_write(const struct gguf *model, int fd);

/* NULL is fine. */
void gguf_free(struct gguf *model);

/* Whether the headers say the same, of all files of a split model. What was read of a name's last byte stands in the
 * tensor. */
bool gguf_same(const struct gguf *a, const struct gguf *b);

/* The entry for a key, or NULL. */
const struct gguf_kv *gguf_find(const struct gguf *model, const char *key);

/* The tensor of a name, or NULL. */
const struct gguf_tensor *gguf_tensor_find(const struct gguf *model, const char *name);

/* Scalars of any integer type (bool included) that fit; -ENOENT for kv NULL, -EINVAL for another type or range. */
int gguf_kv_u64(const struct gguf_kv *kv, uint64_t *ret);
int gguf_kv_i64(const struct gguf_kv *kv, int64_t *ret);

/* f32 or f64. */
int gguf_kv_f64(const struct gguf_kv *kv, double *ret);

/* A string; borrowed from the model. */
int gguf_kv_string(const struct gguf_kv *kv, struct gguf_string *ret);

/* "u32", "string", "array", ... Static; never NULL for a value below GGUF_VALUE_TYPE_COUNT. */
const char *gguf_value_type_name(enum gguf_value_type type);

/* Writes a value as JSON text: numbers exactly (integers in decimal, floats with the fewest digits that read back the
 * same; NaN and infinities as strings), strings escaped with bytes that are not UTF-8 replaced by U+FFFD. Of arrays at
 * most max_elements elements are told (those of arrays in arrays count as well), of each string at most max_string
 * bytes (cut at a character). *ret_cut, unless NULL, tells whether something was left out. The caller frees *ret.
 * -ENOMEM. */
int gguf_kv_json(const struct gguf_kv *kv, size_t max_elements, size_t max_string, char **ret, bool *ret_cut);

/* As much as people are told of a long value. */
#define GGUF_TOLD_ELEMENTS 16u
#define GGUF_TOLD_STRING   4096u
