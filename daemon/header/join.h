/* Joins the headers of a model's files into one: the first file's metadata, and the tensors of all.
 *
 * Any thread. */
#pragma once

#include "daemon/header/model_header.h"

/* One of the headers. */
struct file_header {
    struct model_header *model; /* owned; NULL: it was not read yet */
    size_t file;                /* index of its file, for the tensors' `shard` */
};

/* Gives the first header the tensors of all, in the order of the headers, and the other headers, which it then owns.
 * -EBADMSG and the fault: there are more than HEADER_TENSORS_MAX tensors, or a name stands in two files; -ENOMEM. After
 * an error the headers are unchanged. */
int headers_join(const struct file_header *headers, size_t n, struct header_fault *fault);
