/* The table of an attached model's tensors: mapped, and read with checks. The daemon wrote it, so it is right unless
 * the daemon is wrong. The functions that read it are in rocmforge.h.
 *
 * A thread at a time, as its client. */
#pragma once

#include "client/attached.h"

/* Maps the table from a descriptor, which stays the caller's; -1: the daemon gave none. Sets `table`, `table_bytes` and
 * `bytes` of the model. -EPROTO: it is wrong; or the errno of mapping. The client has the message. */
int tensors_map(rf_model *model, int fd);
