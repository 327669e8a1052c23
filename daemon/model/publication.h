/* What clients get of a model besides its memory: the table of its tensors, as a sealed binary file and as JSON; the
 * metadata as JSON, with long values cut; and the complete header of the file, as a sealed file. A model that a client
 * publishes has a manifest (manifest.h) instead of a file.
 *
 * A worker makes the publication once, while the file is read. A header may be large, and the loop thread must not wait
 * for it. Later it is immutable. */
#pragma once

#include "daemon/model/plan.h"

#include <stddef.h>

/* The most bytes of all metadata as JSON. Further entries are left out. */
#define PUBLICATION_METADATA_MAX ((size_t)4 << 20)

struct publication {
    int table_fd;   /* sealed memfd, in the format of proto/table.h; -1: not made yet */
    int header_fd;  /* sealed memfd: the header as in the file; of a split model, in the first one; of a published one
                       as manifest_header() makes it; -1: not made yet */
    char *tensors;  /* an array of `Tensor` */
    char *metadata; /* an array of `Metadata` */
    size_t n_left;  /* entries that `metadata` leaves out */
    size_t bytes;   /* of memory that all of the above take */
};

#define PUBLICATION_NONE ((struct publication){.table_fd = -1, .header_fd = -1})

/* worker. Makes the whole publication; the caller frees it with publication_clear(). -ENOMEM; or, with the fault,
 * -EOVERFLOW if the size of the table overflows, or the errno of the call that made, filled or sealed a file. */
int publication_make(const struct plan *plan, struct publication *ret, struct device_fault *ret_fault);

/* Makes the publication again, but for the header: a sealed file in memory, which is there and is the publication's
 * from now on. After an error it is still the caller's. Errors are those of publication_make(). */
int publication_resume(const struct plan *plan, int header_fd, struct publication *ret, struct device_fault *ret_fault);

/* Frees a publication. Any thread. It may be cleared already, or PUBLICATION_NONE. */
void publication_clear(struct publication *publication);
