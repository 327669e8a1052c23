/* Plans under way, for whoever counts them. Loop thread only. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

struct server;

/* Those that the user asked for: until they are off the workers, whether anybody still waits for them or not. */
uint64_t plans_of(const struct server *server, uid_t uid);
