/* The manifest of a published model: what its tensors are, and where they are in its memory; its key and its metadata.
 * A client wrote it, so nothing in it is trusted: every number goes through checked arithmetic, and a tensor that does
 * not lie within the memory is refused. Of what is in the memory itself nothing is read.
 *
 * A manifest comes as JSON text: an array of NewTensor (io.rocmforge.varlink). manifest_parse() makes of it what a
 * model of a file has as well: a header (struct model_header) and a plan, which say the same to all who read them.
 *
 * Any thread. After the model is published a manifest is immutable. */
#pragma once

#include "daemon/header/model_header.h"
#include "daemon/model/plan.h"

#include <stdint.h>

/* The most bytes of the JSON text of the tensors, of a key, and of the metadata. */
#define MANIFEST_TENSORS_TEXT_MAX ((size_t)16 << 20)
#define MANIFEST_KEY_MAX          1024u
#define MANIFEST_METADATA_MAX     ((size_t)1 << 20)

/* No header that manifest_header() makes has more bytes. */
#define MANIFEST_HEADER_MAX ((size_t)64 << 20)

/* A dimension and a stride are at most this, as are all integers of the interface. */
#define MANIFEST_NUMBER_MAX (1ull << 53)

struct manifest {
    char *key;         /* NULL: it has none */
    char *metadata;    /* UTF-8; NULL: it has none */
    uint64_t *strides; /* HEADER_DIMS_MAX for each tensor, as manifest_strides() returns them; NULL: none is strided */
    uint8_t *flags;    /* MANIFEST_* of each tensor */
    size_t n_tensors;
};

enum {
    MANIFEST_VIEW = 1,    /* it begins within the bytes of another tensor */
    MANIFEST_STRIDED = 2, /* it has strides */
};

/* Why a manifest was refused. */
struct manifest_fault {
    size_t tensor; /* its number in the list, from 0; SIZE_MAX: of none */
    char reason[192];
};

/* What manifest_parse() makes. The caller frees all three; the plan borrows from the others. */
struct manifest_parsed {
    struct manifest *manifest; /* with the tensors only: without key and metadata */
    struct model_header *header;
    struct plan *plan; /* of an arena of whole granules; without chunks */
};

/* Parses a list of tensors, and places those that have no offset. bytes: of the memory, if the client asked for so
 * many; 0: as many as the tensors need. granule: the arena's size is rounded up to a multiple of it. Returns 0;
 * -EBADMSG and the fault; -ENOMEM. */
int manifest_parse(const char *text, size_t size, uint64_t bytes, uint64_t granule, struct manifest_parsed *ret,
                   struct manifest_fault *ret_fault);

/* A list without tensors, for memory of so many bytes: at least 1. Errors as above. */
int manifest_parse_none(uint64_t bytes, uint64_t granule, struct manifest_parsed *ret,
                        struct manifest_fault *ret_fault);

/* Whether the text may be metadata, or a key: valid UTF-8 without a NUL in it, and not longer than `most`. */
bool manifest_text_valid(const char *text, size_t size, size_t most);

/* The strides of a tensor, in elements, of the slowest dimension first: as many as it has dimensions. NULL: it has
 * none, and its elements lie one behind the other. manifest NULL: the model is of files. Borrowed. */
const uint64_t *manifest_strides(const struct manifest *manifest, size_t tensor);

/* Whether the tensor begins within the bytes of another one. */
bool manifest_is_view(const struct manifest *manifest, size_t tensor);

/* The header that clients get: 8 bytes with the length of a JSON text, in little-endian, and the text, as in a
 * safetensors file: {"__metadata__":{"key":…,"metadata":…},"tensors":[…]}. The tensors all have offsets. Returns 0 and
 * newly allocated memory; -ENOMEM. */
int manifest_header(const struct plan *plan, char **ret, size_t *ret_size);

/* Reads such a header again, with key and metadata. arena_bytes: of the memory, a whole number of granules. -EBADMSG:
 * it is none, or its tensors do not lie within the memory; -ENOMEM. */
int manifest_read_header(const char *bytes, size_t size, uint64_t arena_bytes, struct manifest_parsed *ret);

/* Makes the entries of the metadata, "key" and "metadata", in the form that a file's have. `ret` has room for two; they
 * borrow *ret_text, which the caller frees. -ENOMEM. */
int manifest_entries(const struct manifest *manifest, struct header_kv ret[2], size_t *ret_n, char **ret_text);

/* Bytes of memory that are allocated for it. NULL is fine: 0. */
uint64_t manifest_memory(const struct manifest *manifest);

/* NULL is fine. */
void manifest_free(struct manifest *manifest);

/* Frees all three. */
void manifest_parsed_free(struct manifest_parsed *parts);

/* Reads a text that a client passed: a file in memory that is sealed, so that it neither changes nor ends too early.
 * The descriptor stays the caller's. Returns 0 and newly allocated memory with a NUL behind it; -EPERM: it is no such
 * file, or not sealed; -E2BIG: it has more than `most` bytes; -ENOMEM; or the errno of reading it. */
int manifest_text_read(int fd, size_t most, char **ret, size_t *ret_size);
