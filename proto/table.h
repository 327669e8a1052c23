/* The tensor table in binary. Attach passes it as a sealed memfd. So a client does not parse JSON to find a tensor,
 * which takes long if there are a thousand of them or more.
 *
 * Little-endian, all offsets from the start of the table:
 *
 *     struct table_header
 *     struct table_entry [n_tensors]          in the order of the file
 *     uint32_t           [n_tensors]          indexes of entries, in ascending order of name (strcmp)
 *     struct table_strides [n_strided]        of the entries that have TABLE_STRIDED, in their order; before them, if
 *                                             there are any, zero bytes up to a multiple of 8
 *     names, each NUL-terminated, in UTF-8    in the order of the entries, one right behind the other, to the end
 *
 * A new version of the layout gets a new magic. Both programs run on the same machine, so no bytes are ever swapped. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define TABLE_MAGIC "rftable2"

/* How every version's magic begins; the version's number follows. */
#define TABLE_MAGIC_ANY "rftable"

#define TABLE_DIMS_MAX  8u
#define TABLE_TYPE_SIZE 16u /* of a type's name, its NUL included */

/* Flags of an entry. TABLE_VIEW: its bytes are also those of other entries: it is a group of a layout, or begins within
 * the bytes of another one; whoever counts bytes counts those once. TABLE_STRIDED: its elements do not lie one behind
 * the other; the bits from TABLE_STRIDES_SHIFT on say which of the strides are its own. TABLE_MEMBER: it is a member of
 * a group, and begins where the one before it ends. */
#define TABLE_VIEW          (1u << 0)
#define TABLE_STRIDED       (1u << 1)
#define TABLE_MEMBER        (1u << 2)
#define TABLE_STRIDES_SHIFT 8u
#define TABLE_STRIDES_MAX   (1u << 24) /* entries with strides */

struct table_header {
    char magic[8];
    uint64_t size; /* of the whole table */
    uint32_t n_tensors;
    uint32_t n_strided;   /* entries that have TABLE_STRIDED; at most TABLE_STRIDES_MAX */
    uint64_t arena_bytes; /* of the model's memory; every tensor lies inside */
};

struct table_entry {
    uint64_t name;                  /* offset of the name, which may be of any length */
    uint64_t offset;                /* from the start of the model's memory */
    uint64_t bytes;                 /* in the model's memory */
    uint64_t padding;               /* zero bytes behind them */
    uint64_t shape[TABLE_DIMS_MAX]; /* slowest dimension first; n_dims of them, the rest are 0 */
    uint32_t n_dims;
    uint32_t type;                   /* id in the file */
    uint32_t form;                   /* enum form */
    uint32_t flags;                  /* TABLE_VIEW, TABLE_STRIDED, TABLE_MEMBER, and which strides */
    char type_name[TABLE_TYPE_SIZE]; /* as the daemon calls the type; the rest is NUL */
};

/* In elements, slowest dimension first; the rest are 0. */
struct table_strides {
    uint64_t of[TABLE_DIMS_MAX];
};

_Static_assert(sizeof(struct table_header) == 32 && sizeof(struct table_entry) == 128, "the layout is the protocol");

/* A tensor, as table_build() takes it. The names are borrowed during the call. The name of a type may be NULL, and is
 * cut if it is too long. */
struct table_tensor {
    const char *name;
    const char *type_name;
    uint64_t offset;
    uint64_t bytes;
    uint64_t padding;
    uint64_t shape[TABLE_DIMS_MAX];
    uint32_t n_dims; /* at most TABLE_DIMS_MAX */
    uint32_t type;
    uint32_t form;
    uint32_t flags;          /* TABLE_VIEW, TABLE_MEMBER */
    const uint64_t *strides; /* n_dims of them, borrowed during the call; NULL: none */
};

/* Builds a table in newly allocated memory; the caller frees *ret. No two names are the same. -ENOMEM, -EOVERFLOW. */
int table_build(const struct table_tensor *tensors, size_t n, uint64_t arena_bytes, void **ret, size_t *ret_size);

/* Checks the header of a table that another process made: magic, sizes, and that the names end inside the table. The
 * time does not depend on the number of tensors, so attaching to a model takes as long with 100,000 tensors as with
 * one. The entries are checked when they are asked for, by the two functions below. The table is aligned to 8 bytes, as
 * memory of mmap() and malloc() is. Returns 0, -EBADMSG, or -EPROTONOSUPPORT for a table of another version. */
int table_check(const void *table, size_t size);

/* The entry with this index, which is less than n_tensors, of a table that table_check() returned 0 for. Checks it: the
 * name is inside the table, the tensor with its padding within arena_bytes, its strides are there if it has some, and
 * what is not used is zero. Borrowed from the table. NULL: it is wrong. */
const struct table_entry *table_entry(const void *table, size_t index);

/* Finds the entry with this name by a binary search, and checks it as table_entry() does. Returns 0 and *ret, borrowed
 * from the table; -ENOENT if there is none; -EBADMSG if the table is wrong. A wrong table may also hide a tensor. */
int table_find(const void *table, const char *name, const struct table_entry **ret);

/* The name of an entry that one of these functions returned. Borrowed from the table. */
const char *table_name(const void *table, const struct table_entry *entry);

/* The strides of such an entry, n_dims of them; NULL: it has none. Borrowed from the table. */
const uint64_t *table_strides(const void *table, const struct table_entry *entry);
