/* Allocation for a program that runs for a short time: if there is no memory, the program ends with status 1. */
#pragma once

#include <stddef.h>

/* Allocates `size` bytes, all zero; the caller frees them. */
void *need_memory(size_t size);

/* As array_reserve() of proto/array.h. */
void need_room(void *pointer, size_t *capacity, size_t used, size_t element_size, size_t first);

/* The text that snprintf() would write, in new memory; the caller frees it. */
char *need_text(const char *format, ...) __attribute__((format(printf, 1, 2)));
