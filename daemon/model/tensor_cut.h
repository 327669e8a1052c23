/* Which bytes of one tensor a layout takes: the rows or columns of one part, in which order.
 *
 * Any thread. */
#pragma once

#include "daemon/header/model_header.h"
#include "daemon/model/heads.h"
#include "daemon/model/layout.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Consecutive rows of a tensor in memory, and where they stand in the file. */
struct gather_range {
    uint64_t first; /* row in the file */
    uint64_t rows;
    uint64_t heads; /* 0: in the order of the file. Else the rows of so many heads, in halves; the file has pairs */
};

#define GATHER_RANGES_MAX 3u

/* Where the blocks of a tensor come from, if memory does not have all of them in the order of the file. Blocks are
 * counted in the order of memory. */
struct gather {
    uint64_t blocks;    /* that are read. Zeros follow, if the tensor has more */
    uint64_t file_row;  /* blocks of a row in the file */
    uint64_t row_first; /* the first of them that memory has */
    uint64_t row;       /* and how many; 0: the tensor is not gathered, but read as it is */
    size_t n_ranges;
    struct gather_range ranges[GATHER_RANGES_MAX];
};

struct cutting {
    const struct layout *layout;
    const struct model_heads *heads;
    bool permuted; /* tensors_permuted() */
    struct layout_fault *fault;
};

/* Whether the rows of q and k stand in pairs in this model's file. */
bool tensors_permuted(const struct model_header *model);

/* Changes a tensor's shape, bytes and offset to those that memory gets, and sets its gather. asked: the request's group
 * that names the tensor; NULL: the layout's name decides. -EDOM and the fault: the layout does not fit. */
int tensor_cut(const struct cutting *cutting, const struct layout_group *asked, struct header_tensor *tensor,
               struct gather *gather);

/* How many blocks, from block `at` of a gathered tensor on, stand one behind the other in the file; at most `most`.
 * *ret_file: where the first of them is, counted in blocks from the tensor's beginning there. */
uint64_t gather_run(const struct gather *gather, uint64_t at, uint64_t most, uint64_t *ret_file);
