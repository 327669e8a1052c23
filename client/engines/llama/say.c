#include "client/engines/llama/say.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void say(const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    for (char *at = text; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            *at = '?';
    fprintf(stderr, "rocmforge: %s\n", text);
}

bool say_strict(void)
{
    const char *value = getenv("ROCMFORGE_STRICT");
    return value && value[0] && strcmp(value, "0") != 0;
}
