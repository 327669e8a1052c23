/* Decides where in memory each tensor of a model goes, and in which chunks the file is read. It computes this from a
 * parsed header, and reads and writes no files.
 *
 * There are two steps: plan_new() lays out the arena, and plan_cut() makes the chunks. Between them the caller checks
 * whether the model fits the device. So nothing large is allocated for a model that does not fit.
 *
 * A plan is immutable once it is cut; any thread may read it. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/header/model_header.h"
#include "daemon/model/arrange.h"
#include "daemon/model/forms.h"
#include "daemon/model/layout.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The alignment of tensors in an arena. Vector loads and GPU memory transactions are fast at this alignment. */
#define PLAN_ALIGNMENT 256u

/* If a quantised tensor stays native and its rows are no multiple of so many elements, zeros follow it in the arena: as
 * many bytes as the blocks of the missing elements would have. The GPU kernels of engines read whole tiles, past the
 * end of the last row, and a NaN there would make the sum wrong. */
#define PLAN_ROW_ELEMENTS 512u

/* An arena is smaller than this: sizes are JSON integers. */
#define PLAN_ARENA_MAX (1ull << 53)

/* Where a tensor goes. */
struct tensor_place {
    uint64_t offset;   /* in the arena */
    uint64_t bytes;    /* in the arena */
    uint64_t padding;  /* zero bytes after the tensor; part of no other tensor. In a group only the last one has them */
    enum form form;    /* form of the bytes in the arena; FORM_NATIVE: blocks of the tensor's type */
    enum form convert; /* FORM_NATIVE: the file's bytes are copied; else they are decoded into this form */
};

/* A range of one file that fits into one slot. Its pieces are in the order of the file. */
struct chunk {
    uint32_t shard;
    uint64_t file_offset; /* a multiple of 4096 */
    uint64_t file_bytes;  /* from file_offset to the end of the last piece */
    uint64_t model_bytes; /* of tensors; counted for the progress of a load */
    size_t first_piece;
    size_t n_pieces;
};

struct manifest;

struct plan {
    const struct model_header *model;    /* borrowed */
    const struct manifest *manifest;     /* of a published model (manifest.h), borrowed; NULL: the model is of files */
    struct arrangement *arrangement;     /* NULL: the layout changes nothing */
    const struct header_tensor *tensors; /* as memory has them: the arrangement's, or else the model's */
    struct model_heads heads;            /* that the arrangement was made with */
    struct tensor_place *places;         /* one for each tensor of the model */
    uint64_t arena_bytes;                /* a multiple of the granule; never 0 */
    uint64_t model_bytes;                /* that are read of all tensors, in the file */

    /* After plan_cut(). */
    bool verbatim;
    bool packed; /* slots have pieces one behind the other, each read by itself; else a range of the file as it is */
    struct chunk *chunks;
    size_t n_chunks;
    struct piece *pieces;
    uint64_t *piece_file_offsets; /* where each piece is in its file; its bytes there follow from the type. Of a tensor
                                     that is gathered: see plan_gather() */
    uint32_t *piece_tensors;      /* the tensor of each piece */
    size_t n_pieces;
    size_t pieces_capacity; /* allocated entries */
    size_t chunks_capacity;
};

/* Lays out a model. forms: the forms that the request asks for. granule: the arena's size is rounded up to a multiple
 * of this power of two. Returns 0 and a plan that the caller frees; -ENOTSUP and the index of a tensor whose type has
 * no decoder; -EOVERFLOW if the arena would be as large as PLAN_ARENA_MAX; -E2BIG if the forms' patterns would take too
 * long; -ENOMEM. The model outlives the plan. */
int plan_new(const struct model_header *model, const struct forms *forms, uint64_t granule, struct plan **ret,
             size_t *ret_tensor);

/* The same in a layout. heads: what is known of the model's heads. -EDOM and the fault if the layout does not fit the
 * model. The layout need not outlive the plan, but the fault. */
int plan_new_arranged(const struct model_header *model, const struct forms *forms, const struct layout *layout,
                      const struct model_heads *heads, uint64_t granule, struct plan **ret, size_t *ret_tensor,
                      struct layout_fault *ret_fault);

/* Makes the plan of a model that is laid out already, from where its tensors are: as many as the model has. The plan
 * is not cut yet. -EBADMSG if a tensor would have other bytes than its type, form and layout say, is not aligned,
 * overlaps the one before, or is not within the arena; -ENOTSUP if it was decoded and its type has no decoder;
 * -ENOMEM. */
int plan_resume(const struct model_header *model, const struct layout *layout, const struct model_heads *heads,
                const struct tensor_place *places, uint64_t arena_bytes, struct plan **ret);

/* How a tensor's blocks are gathered from the file; NULL: they stand there as in memory. */
const struct gather *plan_gather(const struct plan *plan, size_t tensor);

/* Bytes of a tensor that are read from its file. */
uint64_t plan_tensor_reads(const struct plan *plan, size_t tensor);

/* Bytes of a group in memory, without the padding after it. */
uint64_t plan_group_bytes(const struct plan *plan, const struct arranged_group *group);

/* Whether two plans of the same files give each tensor the same bytes in the same layout. Different requests may lead
 * to the same bytes. */
bool plan_same(const struct plan *a, const struct plan *b);

/* Cuts the file into chunks for slots of `slot_bytes`. The chunks can be divided into parts of about `part_bytes`.
 * verbatim: slots hold blocks as in the file; else slots hold the bytes that go into the arena. -ENOMEM. Called once
 * for a plan. */
int plan_cut(struct plan *plan, size_t slot_bytes, size_t part_bytes, bool verbatim);

/* The same for the slots of a device. If nothing is decoded on the CPU, slots hold the file's bytes unchanged.
 * decode_on_cpu: the CPU decodes, even if the device has kernels for it. */
int plan_cut_for(struct plan *plan, struct device *device, bool decode_on_cpu);

/* The part of a chunk that one worker does. Of a packed plan it is a range of whole pieces. Else it is a range of
 * bytes; `offset` counts from the chunk's beginning, in the file and in the slot. */
struct chunk_part {
    uint64_t offset;
    uint64_t bytes;
    size_t first_piece;
    size_t n_pieces;
};

#define CHUNK_PARTS_MAX 64u

/* Divides a chunk into parts of about `part_bytes`. Returns how many, at least 1. */
size_t plan_divide(const struct plan *plan, const struct chunk *chunk, size_t part_bytes,
                   struct chunk_part ret[CHUNK_PARTS_MAX]);

/* The ranges of the arena that no piece is written to: the padding after and between tensors, and the end of the arena.
 * Gaps that are close together are joined into one, which includes the bytes between them. So gaps must be cleared
 * before tensors are written. Returns 0 and an array that the caller frees, or -ENOMEM. */
int plan_gaps(const struct plan *plan, struct extent **ret, size_t *ret_n);

/* Makes a plan that copies `bytes` of memory without change, in chunks for slots of `slot_bytes`. The plan has only
 * chunks and pieces, and their offsets in the file are offsets in the memory. The caller frees the plan. -ENOMEM. */
int plan_linear(uint64_t bytes, size_t slot_bytes, struct plan **ret);

/* Whether the device has a kernel for each decoding that the plan needs. True if nothing is decoded. Any thread. */
bool plan_decoded_by(const struct plan *plan, struct device *device);

/* Bytes of memory that are allocated for the plan. */
uint64_t plan_memory(const struct plan *plan);

/* Frees a plan. NULL is allowed. */
void plan_free(struct plan *plan);

/* Bytes of a piece in the file. */
uint64_t plan_piece_file_bytes(const struct plan *plan, size_t piece);
