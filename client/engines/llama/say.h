/* What the plug-in tells the engine's user: lines on standard error. */
#pragma once

#include <stdbool.h>

/* Writes "rocmforge: ", the text and a newline. Control characters in it, which a file's name may have, become '?'.
 * Any thread. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ROCMFORGE_STRICT=1: what would be loaded in the ordinary way is refused. */
bool say_strict(void);
