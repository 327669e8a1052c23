/* Allocation for a program that runs for a short time: if there is no memory, the program ends with status 1. */
#pragma once

#include <stddef.h>

/* Allocates `size` bytes, all zero; the caller frees them. */
void *need_memory(size_t size);

/* As realloc(), to `n` elements of `size` bytes each. */
void *need_more(void *memory, size_t n, size_t size);

/* The text that snprintf() would write, in new memory; the caller frees it. */
char *need_text(const char *format, ...) __attribute__((format(printf, 1, 2)));
