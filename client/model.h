/* Attached models, as the connection sees them. The functions that use them are in rocmforge.h. */
#pragma once

#include "client/rocmforge.h"

/* Unmaps the memory and frees the model. Sends nothing to the daemon: its lease must have ended, or end with the
 * connection. */
void model_free(rf_model *model);
