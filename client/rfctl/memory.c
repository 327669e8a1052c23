#include "client/rfctl/memory.h"

#include "proto/array.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void *needed(void *memory)
{
    if (!memory) {
        fputs("rfctl: not enough memory\n", stderr);
        exit(1);
    }
    return memory;
}

void *need_memory(size_t size)
{
    return needed(calloc(1, size > 0 ? size : 1));
}

void need_room(void *pointer, size_t *capacity, size_t used, size_t element_size, size_t first)
{
    if (array_reserve(pointer, capacity, used, element_size, first) < 0)
        (void)needed(NULL);
}

char *need_text(const char *format, ...)
{
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    int r = vasprintf(&text, format, arguments);
    va_end(arguments);
    return needed(r < 0 ? NULL : text);
}
