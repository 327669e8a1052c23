/* Who may do everything: root, and the user that the daemon runs as.
 *
 * Any thread. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

/* Limits do not bind such a user, and it may see and end every model. */
bool trusted_user(uid_t uid);
