/* What a layout makes of a certain model: which tensors memory has, of which bytes of the file, and which of them stand
 * together.
 *
 * An arrangement is immutable once its plan is made; any thread may read it. */
#pragma once

#include "daemon/header/model_header.h"
#include "daemon/model/heads.h"
#include "daemon/model/layout.h"
#include "daemon/model/tensor_cut.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRANGED_ALONE UINT32_MAX

/* Tensors that stand one behind the other, without padding, and are one tensor of their own. */
struct arranged_group {
    char *name;              /* NULL: it is none, and its members only stand together */
    const uint32_t *members; /* indexes of tensors, in the order of memory */
    size_t n_members;
    uint32_t stack;
    bool asked; /* the request names the members: it is refused if they cannot be joined; else they stay apart */
    uint32_t n_dims;
    uint64_t ne[HEADER_DIMS_MAX]; /* as in struct header_tensor */
};

struct arrangement {
    size_t n_tensors;
    struct header_tensor *tensors; /* as memory has them: shape, elements and bytes; `offset` is where the first byte is
                                    in the file, if the tensor is not gathered */
    struct gather *gathers;        /* one for each tensor */
    uint32_t *group_of;            /* index of the tensor's group, or ARRANGED_ALONE */
    uint32_t *order;               /* the tensors in the order of memory */
    size_t n_groups;
    struct arranged_group *groups;
    uint32_t *members; /* of all groups */
    bool gathers_any;
};

/* Arranges a model; layout NULL: layout_none(). Returns 0 and an arrangement that the caller frees, or NULL if the
 * layout changes nothing; -EDOM and the fault if the layout does not fit the model; -ENOMEM. The model outlives the
 * arrangement. */
int arrange(const struct model_header *model, const struct layout *layout, const struct model_heads *heads,
            struct arrangement **ret, struct layout_fault *ret_fault);

/* Takes a group apart: its members stand alone. Before the plan is made. */
void arrangement_dissolve(struct arrangement *arrangement, size_t group);

/* Sets `order`, once all groups are known. */
void arrangement_order(struct arrangement *arrangement);

/* Whether both have the same tensors of the same bytes in the same places, and the same groups. Either may be NULL. */
bool arrangement_same(const struct arrangement *a, const struct arrangement *b);

/* Bytes of memory that are allocated. NULL is allowed. */
uint64_t arrangement_memory(const struct arrangement *arrangement);

/* NULL is allowed. */
void arrangement_free(struct arrangement *arrangement);
