/* Decides where each tensor of a model goes in memory, and in which chunks the file is read: arithmetic on a parsed
 * header, no input or output.
 *
 * It goes in two steps, so that nothing large is allocated for a model before its size was held against the device:
 * plan_new() lays out the arena, plan_cut() makes the chunks.
 *
 * A plan is immutable once it is cut; any thread may read it. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/gguf/gguf.h"
#include "daemon/model/forms.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Tensors begin at multiples of this in an arena: what vector loads and GPU transactions like. */
#define PLAN_ALIGNMENT 256u

/* Behind a tensor of native blocks whose rows are no multiple of so many elements stand as many zeros as the blocks of
 * the missing elements take: GPU kernels of engines read whole tiles, and a NaN there would spoil a sum. */
#define PLAN_ROW_ELEMENTS 512u

/* An arena is smaller than this: sizes are JSON integers. */
#define PLAN_ARENA_MAX (1ull << 53)

/* Where a tensor goes. */
struct placement {
    uint64_t offset;   /* in the arena */
    uint64_t bytes;    /* in the arena */
    uint64_t padding;  /* zero bytes that stand behind them; part of no other tensor */
    enum form form;    /* what the bytes in the arena are; FORM_NATIVE for blocks that only the type describes */
    enum form convert; /* FORM_NATIVE: the file's bytes are copied; else they are decoded into this */
};

/* A span of one file that fills at most one slot. The pieces stand in the order of the file. */
struct chunk {
    uint32_t shard;
    uint64_t file_offset; /* a multiple of 4096 */
    uint64_t file_bytes;  /* from file_offset to the end of the last piece */
    uint64_t model_bytes; /* of tensors; what progress counts */
    size_t first_piece;
    size_t n_pieces;
};

struct plan {
    const struct gguf *model;     /* borrowed */
    struct placement *placements; /* one for each tensor of the model */
    uint64_t arena_bytes;         /* a multiple of the granule; never 0 */
    uint64_t model_bytes;         /* of all tensors in the file */

    /* After plan_cut(). */
    bool verbatim;
    struct chunk *chunks;
    size_t n_chunks;
    struct piece *pieces;
    uint64_t *piece_file_offsets; /* where each piece is in its file; its bytes there follow from the type */
    uint32_t *piece_tensors;      /* which tensor each piece is of */
    size_t n_pieces;
    size_t pieces_capacity; /* that there is room for */
    size_t chunks_capacity;
};

/* Lays a model out. forms: what it was asked for as. granule: the arena is rounded up to this, a power of two.
 * Returns 0 and a plan that the caller frees; -ENOTSUP and the index of a tensor whose type has no decoder; -EOVERFLOW
 * if the arena would be as large as PLAN_ARENA_MAX; -E2BIG if the forms' patterns would take too long; -ENOMEM. The
 * model outlives the plan. */
int plan_new(const struct gguf *model, const struct forms *forms, uint64_t granule, struct plan **ret,
             size_t *ret_tensor);

/* Two plans of the same files come to the same bytes for each tensor, whatever was asked for. */
bool plan_same(const struct plan *a, const struct plan *b);

/* Cuts the file into chunks for slots of `slot_bytes`, and these so that they can be divided into parts of about
 * `part_bytes`. verbatim: slots hold the bytes of the file; else what the arena gets. -ENOMEM. Called once. */
int plan_cut(struct plan *plan, size_t slot_bytes, size_t part_bytes, bool verbatim);

/* What one worker does of a chunk: of a verbatim plan, bytes at an offset from the chunk's beginning, the same in the
 * file and in the slot; else whole pieces. */
struct part {
    uint64_t offset;
    uint64_t bytes;
    size_t first_piece;
    size_t n_pieces;
};

#define PLAN_PARTS_MAX 64u

/* Divides a chunk into parts of about `part_bytes`. Returns how many, at least 1. */
size_t plan_divide(const struct plan *plan, const struct chunk *chunk, size_t part_bytes,
                   struct part ret[PLAN_PARTS_MAX]);

/* What of the arena no piece is put into: padding behind and between tensors, and the end. Gaps that are close together
 * are told as one, with what is between them. Returns 0 and an array that the caller frees, or -ENOMEM. */
int plan_gaps(const struct plan *plan, struct extent **ret, size_t *ret_n);

/* Cuts `bytes` of memory, as they lie, into chunks for slots of `slot_bytes`: a plan with nothing but chunks and
 * pieces, whose offsets in the file are those in the memory. The caller frees it. -ENOMEM. */
int plan_linear(uint64_t bytes, size_t slot_bytes, struct plan **ret);

/* The device has a kernel for everything that is to be decoded; also if nothing is. Any thread. */
bool plan_decoded_by(const struct plan *plan, struct device *device);

/* Bytes of memory that the plan itself takes, as it was allocated. */
uint64_t plan_memory(const struct plan *plan);

/* NULL is fine. */
void plan_free(struct plan *plan);

/* Bytes of a piece in the file. */
uint64_t plan_piece_file_bytes(const struct plan *plan, size_t piece);
