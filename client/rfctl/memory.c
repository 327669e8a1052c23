#include "client/rfctl/memory.h"

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

void *need_more(void *memory, size_t n, size_t size)
{
    return needed(reallocarray(memory, n, size));
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
