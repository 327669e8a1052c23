/* Memory for a program of one short life: it is there, or the program ends with status 1. */
#pragma once

#include <stddef.h>

/* `size` bytes, zeroed; the caller frees them. */
void *need_memory(size_t size);

/* realloc() to `n` elements of `size` bytes. */
void *need_more(void *memory, size_t n, size_t size);

/* What snprintf() would write; the caller frees it. */
char *need_text(const char *format, ...) __attribute__((format(printf, 1, 2)));
