/* What a layout makes of a certain model: which tensors memory has, of which bytes of the file, and which of them stand
 * together.
 *
 * An arrangement is immutable once its plan is made; any thread may read it. */
#pragma once

#include "daemon/gguf/gguf.h"
#include "daemon/model/layout.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What has to be known of a model besides its tensors. 0: not known. */
struct model_heads {
    uint64_t heads;    /* attention heads */
    uint64_t kv_heads; /* those of k and v */
};

/* Why a layout does not fit a model. The names are borrowed from the model or from the layout; NULL: none. */
struct layout_fault {
    char reason[160];
    const char *tensor;
    const char *group;
};

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

#define ARRANGED_ALONE UINT32_MAX

/* Tensors that stand one behind the other, without padding, and are one tensor of their own. */
struct arranged_group {
    char *name;              /* NULL: it is none, and its members only stand together */
    const uint32_t *members; /* indexes of tensors, in the order of memory */
    size_t n_members;
    uint32_t stack;
    bool asked; /* the request names the members: it is refused if they cannot be joined; else they stay apart */
    uint32_t n_dims;
    uint64_t ne[GGUF_DIMS_MAX]; /* as in struct gguf_tensor */
};

struct arrangement {
    size_t n_tensors;
    struct gguf_tensor *tensors; /* as memory has them: shape, elements and bytes; `offset` is where the first byte is
                                    in the file, if the tensor is not gathered */
    struct gather *gathers;      /* one for each tensor */
    uint32_t *group_of;          /* index of the tensor's group, or ARRANGED_ALONE */
    uint32_t *order;             /* the tensors in the order of memory */
    size_t n_groups;
    struct arranged_group *groups;
    uint32_t *members; /* of all groups */
    bool gathers_any;
};

/* Whether the layout needs to know the heads of this model, and neither the layout nor the metadata tells. */
bool arrange_needs_heads(const struct gguf *model, const struct layout *layout);

/* What the layout or the metadata tells of the model's heads. */
struct model_heads arrange_heads(const struct gguf *model, const struct layout *layout);

/* Reads the heads from the text of a file config.json of transformers; those that it does not tell stay as they are. */
void arrange_config(const char *text, size_t size, struct model_heads *heads);

/* Arranges a model; layout NULL: layout_none(). Returns 0 and an arrangement that the caller frees, or NULL if the
 * layout changes nothing; -EDOM and the fault if the layout does not fit the model; -ENOMEM. The model outlives the
 * arrangement. */
int arrange(const struct gguf *model, const struct layout *layout, const struct model_heads *heads,
            struct arrangement **ret, struct layout_fault *ret_fault);

/* Takes a group apart: its members stand alone. Before the plan is made. */
void arrangement_dissolve(struct arrangement *arrangement, size_t group);

/* Sets `order`, once all groups are known. */
void arrangement_order(struct arrangement *arrangement);

/* Whether both have the same tensors of the same bytes in the same places, and the same groups. Either may be NULL. */
bool arrangement_same(const struct arrangement *a, const struct arrangement *b);

/* How many blocks, from block `at` of a gathered tensor on, stand one behind the other in the file; at most `most`.
 * *ret_file: where the first of them is, counted in blocks from the tensor's beginning there. */
uint64_t gather_run(const struct gather *gather, uint64_t at, uint64_t most, uint64_t *ret_file);

/* Bytes of memory that are allocated. NULL is allowed. */
uint64_t arrangement_memory(const struct arrangement *arrangement);

/* NULL is allowed. */
void arrangement_free(struct arrangement *arrangement);

/* Says why a layout does not fit. Returns -EDOM. */
int layout_refuse(struct layout_fault *fault, const char *tensor, const char *group, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
