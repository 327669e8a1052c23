/* What clients are given of a model besides its memory: the table of its tensors, as a sealed file in binary and as
 * JSON; the metadata as JSON, as much of it as people are told; and the file's header whole, as a sealed file.
 *
 * Made once, while the file is being read: a header may be large, and the loop has others to answer. Immutable then. */
#pragma once

#include "daemon/model/plan.h"

#include <stddef.h>

/* Of all metadata as JSON; entries beyond it are left out. */
#define PUBLICATION_METADATA_MAX ((size_t)4 << 20)

struct publication {
    int table_fd;  /* sealed memfd, in the format of proto/table.h; -1: not made yet */
    int header_fd; /* sealed memfd: the header as it stands in the file, of a split model in the first one; -1: as above
                    */
    char *tensors; /* an array of `Tensor` */
    char *metadata; /* an array of `Metadata` */
    size_t n_left;  /* entries of metadata that are left out of it */
    size_t bytes;   /* of memory that these take */
};

#define PUBLICATION_NONE ((struct publication){.table_fd = -1, .header_fd = -1})

/* worker. Makes all of it, which the caller gives back with publication_clear(). -ENOMEM; or, with the fault,
 * -EOVERFLOW for a table that is larger than any memory, or the errno of the call that made, filled or sealed its file.
 */
int publication_make(const struct plan *plan, struct publication *ret, struct device_fault *ret_fault);

/* Any thread. One that was cleared, or not made, is fine. */
void publication_clear(struct publication *publication);
