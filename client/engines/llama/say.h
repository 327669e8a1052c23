/* Messages of the plug-in to the engine's user: lines on standard error. */
#pragma once

#include <stdbool.h>

/* Writes "rocmforge: ", the text and a newline. Control characters in the text become '?'; file names may have them.
 * Any thread. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether ROCMFORGE_STRICT is set, for example to 1: then a load that cannot share weights is refused. */
bool say_strict(void);
