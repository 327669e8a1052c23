/* What the daemon has to know of a resident model to take it back after a restart, beside the bytes that descriptors
 * lead to: a sealed file in memory, with a version and a checksum.
 *
 * A description that was read is well formed: counts, lengths and values are within their bounds, and it is the one
 * that was written. Whether it fits the descriptors and the devices, resume.h finds out.
 *
 * The file has four numbers of 8 bytes in the byte order of bytes.h: DESCRIPTION_MAGIC, the version, the size of the
 * rest, and its checksum, XXH3_64bits(). The rest is the description: description_write.c and description_read.c have
 * one function for each part of it, in the same order.
 *
 * Any thread; but while the loop thread may change the model, only the loop thread writes its description. */
#pragma once

#include "daemon/model/model.h"

#include <stdint.h>

#define DESCRIPTION_MAGIC "rfkept\r\n"

/* Another version is not read: the model is loaded again then. */
#define DESCRIPTION_VERSION 6u

/* The most bytes of one. The tensors take most of them. */
#define DESCRIPTION_MAX ((size_t)64 << 20)

/* A part of the header: of one file. */
struct description_header {
    uint64_t bytes;     /* of the file in memory that it was written to */
    uint64_t file_size; /* of the file that it is the header of */
    uint32_t shard;     /* and which of the files that is */
};

struct description_file {
    uint32_t number;  /* of its descriptor in the store */
    char *path;       /* that it was opened by, or NULL */
    bool seen, named; /* its place, as in struct source_past */
    struct identity identity;
};

struct description_tensor {
    uint64_t file_offset;
    uint64_t file_bytes;
    uint32_t shard;
    struct tensor_place place;
};

struct description {
    uint8_t token[MODEL_TOKEN_SIZE];
    uint64_t id;
    uid_t uid;
    enum access access;
    bool pinned;
    bool changed;
    bool deleted;
    int64_t ttl;
    uint64_t overflows;
    char *origin; /* or NULL */
    char *link;   /* that leads to one of the files, or NULL */
    size_t n_names;
    struct model_name *names; /* as an array: the links mean nothing */
    size_t n_guests;
    uid_t *guests;
    struct access_facts *facts; /* or NULL */
    const struct forms *forms;
    const struct layout *layout;
    struct model_heads heads; /* that the layout was applied with */
    char *device_id, *device_kind, *device_uuid, *device_pci, *device_name;
    uint64_t device_total, device_budget, device_link; /* clients are told before its driver has started */
    uint64_t granule;
    uint64_t arena_bytes;
    size_t n_files; /* 0: the model was published; its header says where its tensors are, and n_tensors is 0 */
    struct description_file *files;
    size_t n_headers;
    struct description_header *headers; /* as the headers are linked */
    size_t n_tensors;
    struct description_tensor *tensors;
};

/* Describes a resident model. numbers: of the descriptors of its files. Returns a sealed file in memory, which the
 * caller closes; -ENOMEM; or the errno of making, filling or sealing the file. */
int description_write(const struct model *model, const uint32_t *numbers);

/* Reads one, from a descriptor that the caller still owns. Returns 0 and a description that the caller ends with
 * description_clear(); or, with a sentence that says why (static): -EBADMSG: it is none, or not as it was written;
 * -EPROTONOSUPPORT: it has another version; -EPERM: it is not sealed; -ENOMEM; or the errno of pread(). */
int description_read(int fd, struct description *ret, const char **ret_why);

/* Whether the descriptor is a file in memory that nobody can write to or change the size of any more. */
bool description_sealed(int fd);

void description_clear(struct description *description);
